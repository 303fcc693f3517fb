"""Where weights come from: names, files and hub repositories, and how official keys become ours.

    backbone = load_backbone("sonata")            # facebook/sonata on the Hugging Face Hub
    backbone = load_backbone("model_best.pth", config="ptv3")
    backbone = load_backbone("sonata", weights=None)   # the architecture with random weights

Nothing is ever loaded partially: every key and shape must match (specs/backbones.md section 8).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.errors import UserError
from pointadapt.files import write_bytes

ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class Source:
    """A named backbone: its architecture, where its weights lie and under which licence.

    indoor_grid  the voxel it was trained on in rooms, metres
    """

    config: PTv3Config
    repo: str | None = None
    file: str | None = None
    licence: str = ""
    note: str = ""
    indoor_grid: float = 0.02


SONATA = PTv3Config(mask_token=True)
SMALL = replace(
    SONATA, enc_depths=(2, 2, 2, 6, 2), enc_channels=(32, 64, 128, 256, 512), enc_num_head=(2, 4, 8, 16, 32)
)
LARGE = replace(SONATA, enc_channels=(64, 128, 256, 512, 768), enc_num_head=(4, 8, 16, 32, 48))
UTONIA = replace(SONATA, enc_channels=(54, 108, 216, 432, 576), rope_base=10.0)
CLASSIC = PTv3Config(
    in_channels=6,
    generation="m1",
    enc_depths=(2, 2, 2, 6, 2),
    enc_channels=(32, 64, 128, 256, 512),
    enc_num_head=(2, 4, 8, 16, 32),
    dec_depths=(2, 2, 2, 2),
    dec_channels=(64, 64, 128, 256),
    dec_num_head=(4, 4, 8, 16),
    dec_patch_size=(1024,) * 4,
)
NANO = PTv3Config(
    stride=(2, 2, 2),
    enc_depths=(2, 2, 2, 1),
    enc_channels=(32, 48, 96, 128),
    enc_num_head=(2, 3, 6, 8),
    enc_patch_size=(256,) * 4,
    drop_path=0.1,
)
CC_NC = "CC-BY-NC 4.0 (weights; research data terms)"

#: name -> where it is. Utonia's and Concerto's files are those named in their READMEs.
BACKBONES: dict[str, Source] = {
    "nano": Source(
        NANO, file="nano.safetensors", licence="Apache-2.0", note="bundled; procedural scans", indoor_grid=0.08
    ),
    "sonata": Source(SONATA, "facebook/sonata", "sonata.pth", CC_NC, "indoor, 2 cm grid"),
    "sonata-small": Source(SMALL, "facebook/sonata", "sonata_small.pth", CC_NC, "indoor, 2 cm grid"),
    "concerto-small": Source(SMALL, "Pointcept/Concerto", "concerto_small.pth", CC_NC, "indoor, 2 cm grid"),
    "concerto-base": Source(SONATA, "Pointcept/Concerto", "concerto_base.pth", CC_NC, "indoor, 2 cm grid"),
    "concerto-large": Source(LARGE, "Pointcept/Concerto", "concerto_large.pth", CC_NC, "indoor, 2 cm grid"),
    "utonia": Source(UTONIA, "Pointcept/Utonia", "utonia.pth", CC_NC, "all domains, 1 cm grid after scaling"),
    "ptv3": Source(CLASSIC, licence="", note="classic PTv3 with decoder; give the path of a checkpoint"),
}

#: Decoder of Sonata's decoder probe and fine-tuning recipe.
DECODER = dict(dec_depths=(2, 2, 2, 2), dec_channels=(64, 96, 192, 384), dec_num_head=(4, 6, 12, 24))


def load_backbone(
    name_or_path: str | os.PathLike[str],
    weights: Literal["default"] | None = "default",
    compat: Literal["clean", "official"] = "clean",
    decoder: bool | Mapping[str, Any] | None = None,
    config: str | Mapping[str, Any] | PTv3Config | None = None,
) -> PTv3:
    """A backbone by name, file, folder or hub repository ("org/repo" or "org/repo/file.pth").

    weights   None: the architecture with random weights, for tests and benchmarks (never silently)
    compat    "official" reproduces the official batch-dependent curves, shrinking windows and random evaluation
    decoder   True, or dec_depths / dec_channels / dec_num_head / dec_patch_size: put a new decoder on an encoder;
              it is listed in ``fresh`` and trained by ``pa.adapt``
    config    the architecture of a checkpoint file that does not say its own: a backbone name or official kwargs

    Raises UserError when the name is unknown, the file cannot be read, or keys or shapes do not match.
    """
    name = os.fspath(name_or_path)
    if weights not in ("default", None):
        raise UserError(f'weights must be "default" or None, got {weights!r}: give the checkpoint as name_or_path')
    if weights is None:
        if name not in BACKBONES:
            raise UserError(f"weights=None needs one of the names {', '.join(BACKBONES)}; got {name!r}")
        return build(BACKBONES[name].config, {}, compat, decoder, name=f"{name} (random weights)", origin=None)
    path = find(name)
    architecture, state = read_checkpoint(path, config or (name if name in BACKBONES else None))
    return build(architecture, state, compat, decoder, name=name, origin=path)


def build(
    config: PTv3Config,
    state: dict[str, Tensor],
    compat: Literal["clean", "official"],
    decoder: bool | Mapping[str, Any] | None,
    name: str,
    origin: Path | None,
) -> PTv3:
    config = replace(config, compat=compat, window_layout="flash" if compat == "clean" else "shrink")
    fresh = []
    if decoder:
        if config.dec_depths:
            raise UserError(f"{name} has a decoder already: leave decoder out")
        shape = {**DECODER, **(decoder if isinstance(decoder, Mapping) else {})}
        stages = len(config.enc_depths) - 1
        shape = {k: tuple(v)[:stages] for k, v in shape.items()}
        shape.setdefault("dec_patch_size", config.enc_patch_size[:stages])
        config, fresh = replace(config, **shape), ["dec"]
    backbone = PTv3(config)
    backbone.name_or_path, backbone.fresh = name, fresh
    if origin is not None:
        fill(backbone, state, origin)
    return backbone.eval()


def fill(backbone: PTv3, state: dict[str, Tensor], origin: Path) -> None:
    """Copy a state dict in our key names; raise UserError on any missing, unknown or misshapen entry."""
    own = {k: v for k, v in backbone.state_dict().items() if k.split(".")[0] not in backbone.fresh}
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{k} is {tuple(state[k].shape)}, should be {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if own[k].shape != state[k].shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing keys", missing), ("unknown keys", unknown), ("wrong shapes", shapes))
        if names
    ]
    if faults:
        raise UserError(
            f"{origin} does not fit this architecture: {'; '.join(faults)}; "
            "name the right one with config= (--architecture)"
        )
    backbone.load_state_dict(state, strict=not backbone.fresh)


def find(name: str) -> Path:
    """The local file of a backbone, downloaded from the hub when it is not here."""
    path = Path(name)
    if path.is_dir() and name not in BACKBONES:  # a name stays a name; ./nano is the folder
        for file in ("model.safetensors", "pytorch_model.bin"):
            if (path / file).is_file():
                return path / file
        raise UserError(
            f"{path} holds neither model.safetensors nor pytorch_model.bin: give the checkpoint file itself"
        )
    if path.is_file():
        return path
    if name in BACKBONES:
        source = BACKBONES[name]
        if source.repo is None and source.file is None:
            raise UserError(f"{name!r} has no hosted weights: give a checkpoint file, with config={name!r}")
        if source.repo is None:
            asset = ASSETS / str(source.file)
            if not asset.is_file():
                raise UserError(f"the bundled weights {asset.name} are missing from this installation: reinstall it")
            return asset
        print(f"{name}: weights of {source.repo}, licence {source.licence}")
        return download(source.repo, str(source.file))
    if path.suffix in (".pth", ".pt", ".safetensors", ".bin") and name.count("/") != 2:
        raise UserError(f"there is no checkpoint file {name}: check the path")
    if re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)?", name):
        org, repo, *inside = name.split("/")
        return download(f"{org}/{repo}", inside[0] if inside else "model.safetensors")
    raise UserError(f"unknown backbone {name!r}: use a file, an org/repo of the hub, or one of {', '.join(BACKBONES)}")


def download(repo: str, file: str) -> Path:
    """A file of a hub repository, from the cache when it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(repo, file))
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"cannot get {file} of {repo} from the hub ({type(error).__name__}): "
            "go online once, or download the file yourself and give its path"
        ) from error


def read_checkpoint(path: Path, config: str | Mapping[str, Any] | PTv3Config | None) -> tuple[PTv3Config, dict]:
    """(architecture, state dict in our key names) of a checkpoint file, ours or official."""
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        if "pointadapt" in metadata:
            return PTv3Config(**with_tuples(json.loads(metadata["config"]))), tensors
        stored = json.loads(metadata["config"]) if "config" in metadata else None
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # many kinds: a pickle with code, a truncated zip, no checkpoint at all
            # torch's own text advises to switch the safety off, so it stays out of the sentence
            raise UserError(
                f"{path} is not a readable torch checkpoint of plain tensors ({type(error).__name__}): "
                "download it again, or save its state_dict alone"
            ) from error
        if not isinstance(content, Mapping):
            raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint with a state_dict")
        tensors, stored = content.get("state_dict", content), content.get("config")
    sidecar = path.with_name("config.json")
    if stored is None and sidecar.is_file():
        stored = json.loads(sidecar.read_text())
    tensors = backbone_entries({k: v for k, v in tensors.items() if isinstance(v, Tensor)})
    if not tensors:
        raise UserError(f"{path} holds no backbone weights (no embedding.* or enc.* entries)")
    if isinstance(config, PTv3Config):
        architecture = config
    elif stored is None and isinstance(config, str) and config in BACKBONES:
        architecture = BACKBONES[config].config
    else:
        official = config if isinstance(config, Mapping) else stored
        if official is None:
            raise UserError(
                f"{path} does not say its architecture: name it with config= (--architecture), "
                f"one of {', '.join(BACKBONES)}"
            )
        architecture = config_from_official(official, tensors)
    if "embedding.mask_token" not in tensors:
        architecture = replace(architecture, mask_token=False)
    if any(".blocks." in key for key in tensors):  # our own names, saved by torch
        return architecture, tensors
    return architecture, rename_official(tensors, architecture.pre_norm)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {first_line(error)}") from error


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, the frozen config has no lists."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def save_backbone(backbone: PTv3, path: str | os.PathLike[str], **metadata: str) -> None:
    """Write weights and architecture as safetensors that :func:`load_backbone` reads; atomic."""
    from safetensors.torch import save

    path = Path(path)
    header = {"pointadapt": "backbone", "config": json.dumps(asdict(backbone.config)), **metadata}
    # save_file would make it readable for its owner alone
    write_bytes(path, save({k: v.contiguous() for k, v in backbone.state_dict().items()}, header))


def backbone_entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bare official keys out of a training checkpoint: ``module.``, then student, else the segmentor's backbone."""
    bare = {k.removeprefix("module."): v for k, v in tensors.items()}
    for prefix in ("student.backbone.", "backbone."):
        found = {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
        if found:
            return found
    return {k: v for k, v in bare.items() if k.split(".")[0] in ("embedding", "enc", "dec")}


#: Official constructor arguments that change nothing here: precision, bookkeeping, training-time augmentation.
WITHOUT_EFFECT = {
    "enable_flash", "upcast_attention", "upcast_softmax", "traceable", "freeze_encoder", "enc_mode", "cls_mode",
    "shift_coords", "jitter_coords", "rescale_coords", "type", "pdnorm_only", "model_type",
}  # fmt: skip
ESSENTIAL = ("order", "stride", "enc_depths", "enc_channels", "enc_num_head", "enc_patch_size")


def config_from_official(official: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PTv3Config:
    """Architecture from the official kwargs; the generation and rotary positions are read off the weights.

    Raises UserError for kwargs that are missing or unknown.
    """
    known = {f.name for f in fields(PTv3Config)} - {"generation", "window_layout", "compat"}
    if missing := [k for k in ESSENTIAL if k not in official]:
        raise UserError(f"the checkpoint's config lacks {', '.join(missing)}")
    if unknown := sorted(official.keys() - known - WITHOUT_EFFECT):
        raise UserError(f"the checkpoint's config has unknown entries: {', '.join(unknown)}")
    chosen = with_tuples({k: v for k, v in official.items() if k in known})
    if isinstance(chosen.get("order"), str):
        chosen["order"] = (chosen["order"],)
    if official.get("enc_mode") or official.get("cls_mode"):
        chosen = {k: v for k, v in chosen.items() if k not in ("dec_depths", "dec_channels", "dec_num_head")}
        chosen.pop("dec_patch_size", None)
    rotary = any(k.endswith("rope.inv_freq") for k in tensors)
    chosen["rope_base"] = chosen.get("rope_base") or 10.0 if rotary else None
    chosen["dec_rope_enable"] = any(k.startswith("dec.") and k.endswith("rope.inv_freq") for k in tensors)
    generation: Literal["m1", "m2"] = "m1" if "embedding.stem.conv.weight" in tensors else "m2"
    stem = tensors.get("embedding.stem.conv.weight", tensors.get("embedding.stem.linear.weight"))
    if stem is not None:
        chosen.setdefault("in_channels", stem.shape[-1])
    return PTv3Config(**chosen, generation=generation)


def rename_official(tensors: Mapping[str, Tensor], pre_norm: bool) -> dict[str, Tensor]:
    """Official keys to ours, e.g. ``enc.enc0.block1.mlp.0.fc1.weight`` -> ``enc.0.blocks.1.ffn.mlp.fc1.weight``."""
    rules = [
        (r"^embedding\.stem\.", "embedding."),
        (r"^(enc|dec)\.(?:enc|dec)(\d+)\.", r"\1.\2."),
        (r"\.block(\d+)\.", r".blocks.\1."),
        (r"\.down\.norm\.0\.", ".down.norm."),
        (r"\.up\.proj\.0\.", ".up.proj."),
        (r"\.up\.proj\.1\.", ".up.norm."),
        (r"\.up\.proj_skip\.0\.", ".up.skip_proj."),
        (r"\.up\.proj_skip\.1\.", ".up.skip_norm."),
        (r"\.cpe\.0\.", ".cpe.conv."),
        (r"\.cpe\.1\.", ".cpe.linear."),
        (r"\.cpe\.2\.", ".cpe.norm."),
        (r"\.attn\.", ".mix.attn."),
        (r"\.mlp\.0\.", ".ffn.mlp."),
        (r"\.ls1\.0\.", ".mix.scale."),
        (r"\.ls2\.0\.", ".ffn.scale."),
        (r"\.norm1\.0\.", ".mix.norm." if pre_norm else ".norm1."),
        (r"\.norm2\.0\.", ".ffn.norm." if pre_norm else ".norm2."),
    ]
    renamed = {}
    for key, value in tensors.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        renamed[key] = value
    return renamed
