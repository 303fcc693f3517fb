"""Low-rank updates of Linear layers as Hugging Face peft has them: LoRA (and DoRA), VeRA, RandLoRA.

Hu et al. 2022 (arXiv 2106.09685), Liu et al. 2024 (DoRA, arXiv 2402.09353), Kopiczko et al. 2024 (VeRA, arXiv
2310.11454), Albert et al. 2025 (RandLoRA, arXiv 2502.00987). The layers and their mathematics are peft's; what is set
here are defaults for point backbones, slot names as targets, and files of the size of what is trained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import peft
from peft import PeftConfig
from peft.tuners.randlora import RandLoraModel
from peft.tuners.vera import VeraModel
from peft.utils import register_peft_method
from torch import Tensor

from pointadapt.methods.core import METHODS, Recorded, at_least, check_dropouts, one_of, register_peft_type


def as_in(original: type, name: str, help: str, **default: Any) -> Any:
    """A field of a config of peft with another default or text; peft marks variants in the field's metadata."""
    known = original.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return field(**(default or {"default": known.default}), metadata={**known.metadata, "help": help})


def own_type(name: str) -> str:
    """What adapter_config.json calls a method of peft whose tuner is one of this file's."""
    return f"POINTADAPT_{name.upper()}"


def targets_field() -> Any:
    return field(default="encoder", metadata={"help": "encoder: leave decoder blocks alone; all: adapt them."})


TARGETS = "Slots (qkv, proj, fc1, fc2) or module names to adapt."


class OnLinear(Recorded):
    """Mixin for configs of peft: ``adapt`` resolves slot names in ``target_modules`` and keeps to the encoder.

    Given straight to ``peft.get_peft_model`` they are plain name suffixes.
    """

    works_on: ClassVar[tuple[str, ...]] = ("points", "tokens")
    needs: ClassVar[str] = "Linear layers in its blocks; on convolutions use method convlora"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("targets", self.targets, ("encoder", "all"))  # type: ignore[attr-defined]
        at_least(1, r=self.r)  # type: ignore[attr-defined]
        check_dropouts(self)

    def to_dict(self) -> dict:
        """Without ``targets``: by then it is part of ``target_modules``, and peft itself does not know it."""
        return {k: v for k, v in super().to_dict().items() if k != "targets"}


@dataclass
class LoraConfig(OnLinear, peft.LoraConfig):
    """LoRA or DoRA; defaults are the public recipe of Concerto, r=8 on fused qkv.

    228,864 parameters on Sonata-base. GEM's baseline of 1.83 M parameters is r=64.
    """

    paper: ClassVar[str] = "Hu et al. 2022, arXiv 2106.09685"
    method: ClassVar[str] = "lora"

    r: int = as_in(peft.LoraConfig, "r", "Rank of the update.", default=8)
    lora_alpha: int = as_in(peft.LoraConfig, "lora_alpha", "The update is scaled by alpha / rank.", default=16)
    lora_dropout: float = as_in(peft.LoraConfig, "lora_dropout", "Dropout on the update's input.", default=0.1)
    use_dora: bool = as_in(peft.LoraConfig, "use_dora", "DoRA: learn the magnitude of each weight row as well.")
    use_rslora: bool = as_in(peft.LoraConfig, "use_rslora", "Scale by alpha / sqrt(rank) instead.")
    target_modules: list[str] | str | None = as_in(
        peft.LoraConfig, "target_modules", TARGETS, default_factory=lambda: ["qkv"]
    )
    targets: Literal["encoder", "all"] = targets_field()


@dataclass
class VeraConfig(OnLinear, peft.VeraConfig):
    """VeRA: two vectors a layer scale one frozen random pair of matrices, cut to each layer's shape.

    r + 3 C parameters per fused qkv, 27,600 on Sonata-base. PointTPA's table has 0.08 M with the head and does not say
    how; target_modules=["qkv", "proj"] with r=512 comes to that.
    """

    paper: ClassVar[str] = "Kopiczko et al. 2024, arXiv 2310.11454"
    method: ClassVar[str] = "vera"

    r: int = as_in(peft.VeraConfig, "r", "Rank of the random matrices (not of the budget: a layer trains r + out).")
    vera_dropout: float = as_in(peft.VeraConfig, "vera_dropout", "Dropout on the update's input.")
    d_initial: float = as_in(peft.VeraConfig, "d_initial", "Start of the vector between the matrices.")
    projection_prng_key: int = as_in(peft.VeraConfig, "projection_prng_key", "Seed of the random matrices.")
    target_modules: list[str] | str | None = as_in(
        peft.VeraConfig, "target_modules", TARGETS, default_factory=lambda: ["qkv"]
    )
    targets: Literal["encoder", "all"] = targets_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = register_peft_type(own_type("vera"))


@dataclass
class RandLoraConfig(OnLinear, peft.RandLoraConfig):
    """RandLoRA: full-rank updates as sums of frozen random matrices of rank r with trained scales.

    A SMALLER r trains more: r=4 on fused qkv is 682,416 parameters on Sonata-base, with the head the 0.71 M that
    PointTPA's table has. alpha is 20 times the rank, as peft advises. Files hold the random matrices once, where
    peft's own hold them once more for every layer.
    """

    paper: ClassVar[str] = "Albert et al. 2025, arXiv 2502.00987"
    method: ClassVar[str] = "randlora"

    r: int = as_in(peft.RandLoraConfig, "r", "Rank of one random matrix; a layer has min(in, out) / r.", default=4)
    randlora_alpha: int = as_in(
        peft.RandLoraConfig, "randlora_alpha", "The update is scaled by alpha / rank.", default=80
    )
    randlora_dropout: float = as_in(peft.RandLoraConfig, "randlora_dropout", "Dropout on the update's input.")
    projection_prng_key: int = as_in(peft.RandLoraConfig, "projection_prng_key", "Seed of the random matrices.")
    target_modules: list[str] | str | None = as_in(
        peft.RandLoraConfig, "target_modules", TARGETS, default_factory=lambda: ["qkv"]
    )
    targets: Literal["encoder", "all"] = targets_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = register_peft_type(own_type("randlora"))


class PlainUnload:
    """Mixin for tuners of peft, whose default copies ``.weight`` onto all that it unwraps, trained tokens included."""

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        if hasattr(new_module, "base_layer"):
            super()._replace_module(parent, child_name, new_module, child)  # type: ignore[misc]
        else:
            setattr(parent, child_name, new_module)


class Vera(PlainUnload, VeraModel):
    """peft's VeRA."""


class RandLora(PlainUnload, RandLoraModel):
    """peft's RandLoRA, whose files hold the shared matrices once."""

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names):
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        return {k: v for k, v in found.items() if not is_copy(k)}

    @classmethod
    def _remap_adapter_state_dict_for_load(cls, model, config, adapter_name, state_dict) -> dict[str, Tensor]:
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        for key in model.state_dict():  # the layers' own names for what they share
            if is_copy(key) and key.endswith(f".{adapter_name}"):
                found[key] = found["base_model" + key[key.rindex(".randlora_") :]]
        return found


def is_copy(key: str) -> bool:
    """Whether a key names a layer's reference to the shared matrices."""
    return re.search(r"\.randlora_[AB](\.|$)", key) is not None and not key.startswith("base_model.randlora_")


for name, config_cls, tuner in (("vera", VeraConfig, Vera), ("randlora", RandLoraConfig, RandLora)):
    register_peft_type(own_type(name))
    prefix = getattr(tuner, "prefix")  # noqa: B009
    register_peft_method(name=own_type(name).lower(), config_cls=config_cls, model_cls=tuner, prefix=prefix)

OF_PEFT: dict[str, type[PeftConfig]] = {"lora": LoraConfig, "vera": VeraConfig, "randlora": RandLoraConfig}
METHODS.update(OF_PEFT)
