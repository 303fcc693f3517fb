"""LoRA on sparse convolutions: beside the frozen one, a narrow convolution of the same kernel and a 1^3 one.

Hu et al. 2022 (arXiv 2106.09685), in the form that peft has for dense convolutions. As a matrix [out, k^3 in] the
frozen weight gets an update of rank r, so it can be merged. GEM's table 9 compares with LoRA on a sparse U-Net and does
not say how it was put there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, peft_method
from pointadapt.methods.sites import Site, Unfit
from pointadapt.ops.sparse_conv import neighbors, subm_conv
from pointadapt.point import Point


@peft_method("convlora")
@dataclass
class ConvLoraConfig(AdapterConfig):
    """r (27 C_in + C_out) parameters per 3^3 convolution, both of every residual block of the encoder: 1,032,192 on
    the sparse U-Net with r=8. Scale and dropout are those of method lora."""

    paper: ClassVar[str] = "Hu et al. 2022, arXiv 2106.09685"
    works_on: ClassVar[tuple[str, ...]] = ("voxels",)
    needs: ClassVar[str] = "blocks of sparse convolutions; on Linear layers use method lora"
    default_targets: ClassVar[tuple[str, ...]] = ("conv1", "conv2")

    r: int = field(default=8, metadata={"help": "Rank of the update."})
    lora_alpha: int = field(default=16, metadata={"help": "The update is scaled by alpha / rank."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout on the update's input."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, r=self.r)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        return LowRankConv(frozen, self)


METHODS["convlora"] = ConvLoraConfig


class LowRankConv(Adapter):
    """conv(x) + alpha / r B (A * x), A a submanifold convolution to r channels [r, k, k, k, in], B [out, r]."""

    def __init__(self, frozen: Any, config: ConvLoraConfig) -> None:
        super().__init__()
        if not hasattr(frozen, "kernel_size"):
            raise Unfit(f"{type(frozen).__name__} is no convolution")
        out, *cube, channels = frozen.weight.shape
        self.kernel_size, self.scale = frozen.kernel_size, config.lora_alpha / config.r
        self.dropout = nn.Dropout(config.lora_dropout)
        self.a = nn.Parameter(torch.empty(config.r, *cube, channels))
        self.b = nn.Parameter(torch.zeros(out, config.r))
        nn.init.kaiming_uniform_(self.a.view(config.r, -1), a=5**0.5)

    def forward(self, base, point: Point) -> Tensor:
        hidden = subm_conv(self.dropout(point.feat), self.a, None, neighbors(point, self.kernel_size))
        return base(point) + self.scale * F.linear(hidden, self.b)

    def deltas(self, frozen: nn.Module) -> dict[str, Tensor]:
        return {"weight": (self.scale * torch.einsum("or,rxyzi->oxyzi", self.b, self.a)).detach()}
