"""SSF: every channel behind every operation is scaled and shifted; nothing else is trained.

Lian et al.: Scaling and Shifting Your Features. NeurIPS 2022, arXiv 2210.08823. DAPT calls the same TFTS.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, peft_method
from pointadapt.methods.sites import Site, Unfit


@peft_method("ssf")
@dataclass
class SSFConfig(AdapterConfig):
    """22 C parameters per block, 102,912 on Point-MAE.

    Mergeable where all that is scaled are Linear layers with bias and norms (PTv3); not behind the tokenizer, which
    ends in a maximum, and not behind a Linear without bias (Point-MAE's qkv). In a convolutional network the norm
    behind every convolution is scaled.
    """

    paper: ClassVar[str] = "Lian et al. 2022, arXiv 2210.08823"
    works_on: ClassVar[tuple[str, ...]] = ("points", "voxels", "tokens")
    default_targets: ClassVar[tuple[str, ...]] = (
        "tokenizer",
        "norm1",
        "qkv",
        "proj",
        "norm2",
        "fc1",
        "fc2",
        "final_norm",
    )

    spread: float = field(
        default=0.0,
        metadata={"help": "Standard deviation of the random start around scale 1 and shift 0; published: 0.02."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, spread=self.spread)

    def slot_of(self, name: str, module: nn.Module, slots: dict[str, str]) -> str | None:
        return super().slot_of(name, module, slots) if any(True for _ in module.parameters()) else None

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        return ScaleShift(out_width(frozen), self.spread)


METHODS["ssf"] = SSFConfig


def out_width(frozen: nn.Module) -> int:
    """Channels of what a module returns. Raises Unfit when nothing in it says."""
    for module in frozen.modules():
        for name in ("channels", "out_features", "num_features", "normalized_shape"):
            value: Any = getattr(module, name, None)
            if isinstance(value, tuple):
                return int(value[-1])
            if isinstance(value, int):
                return value
    raise Unfit(f"{type(frozen).__name__} does not say how many channels it returns")


class ScaleShift(Adapter):
    """scale * base(x) + shift, for modules that return a tensor [..., C], Tokens or a Point."""

    def __init__(self, channels: int, spread: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        if spread:
            nn.init.normal_(self.scale, 1.0, spread)
            nn.init.normal_(self.shift, 0.0, spread)

    def forward(self, base, *args: Any) -> Any:
        out = base(*args)
        return self.apply_to(out) if isinstance(out, Tensor) else out.but(feat=self.apply_to(out.feat))

    def apply_to(self, feat: Tensor) -> Tensor:
        # In float32 where the parameters are: a scale near 1 loses what it has learned in bfloat16.
        return (feat * self.scale + self.shift).to(feat.dtype)

    def deltas(self, frozen: nn.Module) -> dict[str, Tensor] | None:
        weight, bias = (frozen._parameters.get(name) for name in ("weight", "bias"))
        if weight is None or bias is None:
            return None
        gain, shift = (self.scale - 1).detach(), self.shift.detach()
        return {"weight": gain.view(-1, *[1] * (weight.ndim - 1)) * weight, "bias": gain * bias + shift}
