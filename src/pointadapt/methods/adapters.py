"""The small baselines: bottleneck adapters, BitFit, and the methods that train whole parts and add nothing.

Houlsby et al. 2019 (arXiv 1902.00751); He et al. 2022 for the parallel form (arXiv 2110.04366); Ben Zaken et al.
2022 for BitFit (arXiv 2106.10199). The tables of GEM (arXiv 2505.22444) and PointTPA (arXiv 2604.04933) compare
with them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.sites import Site, width
from pointadapt.point import Point

#: Kinds of backbones for methods that ask for nothing special.
EVERYWHERE = ("points", "voxels", "tokens")
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "none": nn.Identity}


@peft_method("adapter", prefix="bottleneck_")
@dataclass
class BottleneckConfig(AdapterConfig):
    """A bottleneck C -> mid -> C beside every feed-forward branch (parallel), or behind both branches (houlsby).

    With the defaults it is PointTPA's static module, 131 C + 64 parameters; 938,448 on Sonata-base. A block of a
    convolutional network has one branch, its convolutions.
    """

    paper: ClassVar[str] = "He et al. 2022, arXiv 2110.04366"
    works_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    stand_ins: ClassVar[dict[str, str]] = {"ffn": "mix"}

    mid: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    placement: Literal["parallel", "houlsby"] = field(
        default="parallel",
        metadata={"help": "parallel: beside ffn, on its input; houlsby: behind mix and ffn, on their output."},
    )
    norm: bool = field(default=True, metadata={"help": "LayerNorm before the down projection."})
    act: Literal["relu", "gelu", "none"] = field(default="relu", metadata={"help": "Nonlinearity in the middle."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout before the up projection."})
    alpha: float = field(default=1.0, metadata={"help": "Factor on the adapter's output."})

    def __post_init__(self) -> None:
        one_of("placement", self.placement, ("parallel", "houlsby"))
        one_of("act", self.act, tuple(ACTIVATIONS))
        at_least(1, mid=self.mid)
        if self.target_modules is None:
            self.target_modules = ["ffn"] if self.placement == "parallel" else ["mix", "ffn"]
        super().__post_init__()

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        return Bottleneck(width(frozen), self)


@dataclass
class HoulsbyConfig(BottleneckConfig):
    """BottleneckConfig behind both branches: two adapters a block, 1,876,896 parameters on Sonata-base."""

    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv 1902.00751"

    placement: Literal["parallel", "houlsby"] = "houlsby"  # no help text: not a flag of its own


METHODS["adapter"] = BottleneckConfig
METHODS["houlsby"] = HoulsbyConfig


class Bottleneck(Adapter):
    """up(act(down(norm(x)))), added to the branch; x is the branch's input (parallel) or its output (houlsby)."""

    def __init__(self, channels: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.parallel, self.alpha = config.placement == "parallel", config.alpha
        self.norm = nn.LayerNorm(channels) if config.norm else nn.Identity()
        self.down, self.act = nn.Linear(channels, config.mid), ACTIVATIONS[config.act]()
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.mid, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, base, point: Point) -> Point:
        out = base(point)
        feat = (point if self.parallel else out).feat
        delta = self.up(self.dropout(self.act(self.down(self.norm(feat)))))
        return out.but(feat=out.feat + self.alpha * delta)


@peft_method("bitfit")
@dataclass
class BitFitConfig(AdapterConfig):
    """A trained difference for every bias of the encoder; 102,592 parameters on Sonata-base. Mergeable.

    The frozen biases themselves stay as they are: the difference is added to the module's output.
    """

    paper: ClassVar[str] = "Ben Zaken et al. 2022, arXiv 2106.10199"
    default_targets: ClassVar[tuple[str, ...]] = (".*",)
    works_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def slot_of(self, name: str, module: nn.Module, slots: dict[str, str]) -> str | None:
        has_bias = isinstance(module._parameters.get("bias"), nn.Parameter)
        return super().slot_of(name, module, slots) if has_bias else None

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        return BiasDelta(len(frozen.get_parameter("bias")))


METHODS["bitfit"] = BitFitConfig


class BiasDelta(Adapter):
    """base(x) + delta, for modules that return a tensor [..., C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(channels))

    def forward(self, base, *args) -> Tensor:
        out = base(*args)
        return out + self.delta.to(out.dtype)

    def deltas(self, frozen: nn.Module) -> dict[str, Tensor]:
        return {"bias": self.delta.detach()}


class Retrained(Adapter):
    """A trained copy of a frozen module (with parameters) that stands in for it."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(frozen).requires_grad_(True)

    def forward(self, base, *args):
        return self.copy(*args)


@peft_method("linear")
@dataclass
class LinearConfig(AdapterConfig):
    """Linear probe: the head alone (and a decoder that no checkpoint filled, if the backbone has one)."""

    works_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    trains: ClassVar[tuple[str, ...]] = ()


@peft_method("decoder")
@dataclass
class DecoderConfig(AdapterConfig):
    """Decoder probe: decoder and head in full, encoder frozen."""

    works_on: ClassVar[tuple[str, ...]] = ("points", "voxels")
    needs: ClassVar[str] = (
        "a decoder, which scene networks have when loaded with one (--decoder, load_backbone(..., decoder=True)) and "
        "networks over groups of points never have"
    )
    trains: ClassVar[tuple[str, ...]] = ("dec",)


@peft_method("full")
@dataclass
class FullConfig(AdapterConfig):
    """Full fine-tuning: a copy of the whole backbone is trained, and saved with the head."""

    works_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    trains: ClassVar[tuple[str, ...]] = ("",)


METHODS.update(linear=LinearConfig, decoder=DecoderConfig, full=FullConfig)
