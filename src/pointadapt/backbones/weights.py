"""Where weights come from: names, files and hub repositories, and how they fill a backbone.

    backbone = load_backbone("sonata")            # facebook/sonata on the Hugging Face Hub
    backbone = load_backbone("model_best.pth", config="ptv3")
    backbone = load_backbone("pretrain.pth", config={"groups": 128})   # Point-MAE and its kin say the rest themselves
    backbone = load_backbone("sonata", weights=None)   # the architecture with random weights

Nothing is ever loaded partially: every key and shape must match. How official keys
become ours is in ptv3_weights.py and object_weights.py.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pointadapt.backbones.backbone import Backbone
from pointadapt.backbones.foundations import FOUNDATIONS, load_foundation
from pointadapt.backbones.object_weights import build_objects, changed, is_object_checkpoint, read_object
from pointadapt.backbones.point_vit import PointViTConfig
from pointadapt.backbones.ptv3 import PTv3, PTv3Config
from pointadapt.backbones.ptv3_weights import backbone_entries, config_from_official, rename_official, with_tuples
from pointadapt.backbones.sparse_unet import SparseUNet, SparseUNetConfig
from pointadapt.errors import UserError
from pointadapt.files import read_json, write_bytes

Config = PTv3Config | PointViTConfig | SparseUNetConfig
Compat = Literal["clean", "official"]
ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class Source:
    """A named backbone: its architecture, where its weights lie and under which licence.

    indoor_grid  the voxel it was trained on in rooms, metres; for scenes alone
    """

    config: Config
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
RECON = PointViTConfig(family="recon", cls_tokens=3, drop_path=0.2)
GPT_S = PointViTConfig(family="gpt", qkv_bias=True)
GPT_B = replace(GPT_S, channels=768, heads=12, embed_channels=768, embed_hidden=(256, 512, 1024, 2048))
GPT_L = replace(GPT_B, channels=1024, depth=24, heads=16, embed_channels=1024)
NANO_MAE = PointViTConfig(channels=192, depth=4, heads=6, embed_channels=192, embed_hidden=(64, 128, 128))
CC_NC = "CC-BY-NC 4.0 (weights; research data terms)"
BY_FILE = "objects; give the path of a checkpoint"

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
    "sparse-unet": Source(SparseUNetConfig(), note="sparse convolution U-Net; give a file that save_backbone wrote"),
    "nano-mae": Source(NANO_MAE, file="nano-mae.safetensors", licence="Apache-2.0", note="bundled; procedural objects"),
    "point-mae": Source(PointViTConfig(), note=BY_FILE),
    "point-bert": Source(PointViTConfig(embed_channels=256), note=BY_FILE),
    "act": Source(PointViTConfig(), note=BY_FILE),
    "recon": Source(RECON, note=BY_FILE),
    "recon-as-vit": Source(
        replace(RECON, family="recon-as-vit", cls_tokens=1), note=f"ReCon's weights in Point-MAE's blocks; {BY_FILE}"
    ),
    "pointgpt-s": Source(GPT_S, note=BY_FILE),
    "pointgpt-b": Source(GPT_B, note=BY_FILE),
    "pointgpt-l": Source(GPT_L, note=BY_FILE),
}

#: Decoder of Sonata's decoder probe and fine-tuning recipe.
DECODER = dict(dec_depths=(2, 2, 2, 2), dec_channels=(64, 96, 192, 384), dec_num_head=(4, 6, 12, 24))


def load_backbone(
    name_or_path: str | os.PathLike[str],
    weights: Literal["default"] | None = "default",
    compat: Compat = "clean",
    decoder: bool | Mapping[str, Any] | None = None,
    config: str | Mapping[str, Any] | Config | None = None,
) -> Backbone:
    """A backbone by name, file, folder or hub repository ("org/repo" or "org/repo/file.pth").

    weights   None: the architecture with random weights, for tests and benchmarks (never silently)
    compat    "official" reproduces the official behaviour: for PTv3 batch-dependent curves, shrinking windows and
              random evaluation, for networks over groups of points their order-dependent sampling
    decoder   PTv3 alone. True, or dec_depths / dec_channels / dec_num_head / dec_patch_size: put a new decoder on an
              encoder; it is listed in ``fresh`` and trained by ``pa.adapt``
    config    the architecture of a checkpoint file that does not say its own: a backbone name or official kwargs.
              For networks over groups of points a mapping changes single fields of PointViTConfig, wherever the
              weights come from: {"groups": 128}. For models of transformers (names in FOUNDATIONS, "hf:org/repo",
              their folders) it holds further arguments of load_foundation

    Raises UserError when the name is unknown, the file cannot be read, or keys or shapes do not match.
    """
    name = os.fspath(name_or_path)
    if weights not in ("default", None):
        raise UserError(f'weights must be "default" or None, got {weights!r}: give the checkpoint as name_or_path')
    if compat not in get_args(Compat):
        raise UserError(f"compat must be one of {', '.join(get_args(Compat))}, not {compat!r}")
    if is_foundation(name):
        return foundation(name, weights, decoder, config)
    if weights is None:
        if name not in BACKBONES:
            known = ", ".join([*BACKBONES, *FOUNDATIONS])
            raise UserError(f"weights=None needs one of the names {known}; got {name!r}")
        architecture = BACKBONES[name].config
        if isinstance(config, Mapping) and isinstance(architecture, PointViTConfig):
            architecture = changed(architecture, config)
        elif isinstance(config, type(architecture)):
            architecture = config
        elif config not in (None, name):
            raise UserError(f"{name} with weights=None has its own architecture and takes no config: leave it out")
        return build(architecture, {}, compat, decoder, name=f"{name} (random weights)", origin=None)
    path = find(name)
    architecture, state = read_checkpoint(path, config, name)
    return build(architecture, state, compat, decoder, name=name, origin=path)


def is_foundation(name: str) -> bool:
    """Whether the name stands for a model of transformers: a known one, "hf:org/repo", or a folder with its config."""
    if name in BACKBONES:
        return False
    if name in FOUNDATIONS or name.startswith("hf:"):
        return True
    sidecar = Path(name) / "config.json"
    content = read_json(sidecar) if sidecar.is_file() else {}
    return "model_type" in content and "enc_depths" not in content  # PTv3's kwargs may name a model_type, too


def foundation(name: str, weights: Literal["default"] | None, decoder: Any, config: Any) -> Backbone:
    """A model of transformers; ``config`` holds further arguments of :func:`load_foundation`."""
    if decoder:
        raise UserError(f"{name} takes no decoder: leave decoder out")
    options = set(inspect.signature(load_foundation).parameters) - {"name_or_path", "weights"}
    if config is not None and not (isinstance(config, Mapping) and config.keys() <= options):
        raise UserError(f"config of {name} is a mapping with any of {', '.join(sorted(options))}; got {config!r}")
    return load_foundation(name, weights, **(config or {}))


def build(
    config: Config,
    state: dict[str, Tensor],
    compat: Compat,
    decoder: bool | Mapping[str, Any] | None,
    name: str,
    origin: Path | None,
) -> Backbone:
    backbone: Backbone
    if isinstance(config, PointViTConfig):
        if decoder:
            raise UserError(f"{name} works on groups of points and takes no decoder: leave decoder out")
        backbone = build_objects(replace(config, sampling="released") if compat == "official" else config)
    elif isinstance(config, SparseUNetConfig):
        if decoder:
            raise UserError(f"{name} has a decoder already: leave decoder out")
        backbone = SparseUNet(config)
    else:
        backbone = build_ptv3(config, compat, decoder, name)
    backbone.name_or_path = name
    if origin is not None:
        fill(backbone, state, origin)
    return backbone.eval()


def build_ptv3(config: PTv3Config, compat: Compat, decoder: bool | Mapping[str, Any] | None, name: str) -> PTv3:
    """With random weights. Raises UserError for a second decoder."""
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
    backbone.fresh = fresh
    return backbone


def fill(backbone: Backbone, state: dict[str, Tensor], origin: Path) -> None:
    """Copy a state dict in our key names; raise UserError on any missing, unknown or misshapen entry.

    Fresh parts may be missing: they are trained in any case.
    """
    own = backbone.state_dict()
    missing = sorted(k for k in own.keys() - state.keys() if k.split(".")[0] not in backbone.fresh)
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
            raise UserError(
                f"{name!r} has no hosted weights: give a checkpoint file, with config={name!r} (--architecture)"
            )
        if source.repo is None:
            asset = ASSETS / str(source.file)
            if not asset.is_file():
                raise UserError(f"the bundled weights {asset.name} are missing from this installation: reinstall it")
            return asset
        print(f"{name}: weights of {source.repo}, licence {source.licence}")
        return download(source.repo, str(source.file))
    is_file_name = path.suffix in (".pth", ".pt", ".safetensors", ".bin") and name.count("/") != 2
    if is_file_name or name.startswith((".", "~")):
        raise UserError(f"there is no checkpoint file {name}: check the path")
    if re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)?", name):
        org, repo, *inside = name.split("/")
        return download(f"{org}/{repo}", inside[0] if inside else "model.safetensors")
    known = ", ".join([*BACKBONES, *FOUNDATIONS])
    raise UserError(f"unknown backbone {name!r}: use a file, an org/repo of the hub, or one of {known}")


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


def read_checkpoint(
    path: Path, config: str | Mapping[str, Any] | Config | None, name: str
) -> tuple[Config, dict[str, Tensor]]:
    """(architecture, state dict in our key names) of a checkpoint file, ours or official."""
    settings = config if isinstance(config, Mapping) else {}
    known = config if isinstance(config, Config) else None
    if isinstance(config, str) and config not in BACKBONES:
        raise UserError(f"config={config!r} is no backbone: use one of {', '.join(BACKBONES)}")
    if isinstance(config, str) or (config is None and name in BACKBONES):
        known = BACKBONES[config or name].config
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        stored = json.loads(metadata["config"]) if "config" in metadata else None
        if "pointadapt" in metadata and stored is not None:
            if isinstance(config, Config) or (settings and "family" not in stored):
                raise UserError(f"{path} says its own architecture: leave config (--architecture, --groups) out")
            if "family" in stored:
                return read_object(tensors, PointViTConfig(**with_tuples(stored)), settings, path)
            if "base_channels" in stored:
                return SparseUNetConfig(**with_tuples(stored)), tensors
            return PTv3Config(**with_tuples(stored)), tensors
    else:
        content = read_torch(path)
        stored = content.get("config")
        tensors = {k: v for k, v in state_dict_of(content).items() if isinstance(v, Tensor)}
    sidecar = path.with_name("config.json")
    if stored is None and sidecar.is_file():
        stored = read_json(sidecar)
    if isinstance(known, PointViTConfig) or is_object_checkpoint(tensors):
        if isinstance(known, PTv3Config | SparseUNetConfig):
            raise UserError(f"{path} holds a network over groups of points, not of points: name another with config=")
        return read_object(tensors, known, settings, path)
    if isinstance(known, SparseUNetConfig):
        raise UserError(f"{path} was not written by save_backbone: no other files of sparse U-Nets are read")
    tensors = backbone_entries(tensors)
    if not tensors:
        raise UserError(f"{path} holds no backbone weights (no embedding.*, enc.* or blocks.* entries)")
    if known is not None and (stored is None or isinstance(config, PTv3Config)):
        architecture = known
    else:
        official = settings or stored
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


#: What a training checkpoint calls its weights; the plain file has none of them.
CONTAINERS = ("state_dict", "base_model", "model", "model_state_dict")


def state_dict_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((content[name] for name in CONTAINERS if isinstance(content.get(name), Mapping)), content)


def read_torch(path: Path) -> Mapping[str, Any]:
    """A torch file of tensors, containers and numbers, NumPy's among them. Raises UserError for anything else."""
    import numpy as np

    dtypes = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([np.dtype, *dtypes, *numbers]):
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
    return content


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def save_backbone(backbone: Backbone, path: str | os.PathLike[str], **metadata: str) -> None:
    """Write weights and architecture as safetensors that :func:`load_backbone` reads; atomic."""
    from safetensors.torch import save

    path = Path(path)
    header = {"pointadapt": "backbone", "config": json.dumps(asdict(backbone.config)), **metadata}
    # save_file would make it readable for its owner alone
    write_bytes(path, save({k: v.contiguous() for k, v in backbone.state_dict().items()}, header))
