"""ST-Adapter: a bottleneck with a depthwise convolution over time before every MLP; baseline for point videos.

Pan et al., NeurIPS 2022, arXiv 2206.13559 (code: linziyi96/st-adapter). Made for
the fixed grid of images' patches; groups of points have no such grid, hence the option ``follow``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from pointadapt.errors import UserError
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.pointata import TemporalConv
from pointadapt.methods.sites import Site, width
from pointadapt.ops.frames import tracks
from pointadapt.tokens import Tokens


@peft_method("st-adapter", prefix="st_adapter_")
@dataclass
class STAdapterConfig(AdapterConfig):
    """Defaults: half the width, 1,785,600 parameters on Point-MAE. Clouds without ``extra["frames"]`` are clips of one.

    ``target_modules``: "mix" is before the MLP, as published; "mix" and "ffn" the published variant with two.
    """

    paper: ClassVar[str] = "Pan et al. 2022, arXiv 2206.13559"
    default_targets: ClassVar[tuple[str, ...]] = ("mix",)
    works_on: ClassVar[tuple[str, ...]] = ("tokens",)
    needs: ClassVar[str] = "a tokenizer of its own that cuts clouds into groups of points (point-mae and its family)"

    rank: int | None = field(default=None, metadata={"help": "Width of the bottleneck. Default: half the backbone's."})
    kernel: int = field(default=3, metadata={"help": "Frames the convolution sees, odd."})
    follow: Literal["nearest", "slot"] = field(
        default="nearest",
        metadata={
            "help": "Whom it mixes: the nearest anchor of the other frame, or the token of the same place in the "
            "sequence, which is the published layer to the letter and depends on the order of sampling."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, rank=self.rank, kernel=self.kernel)
        one_of("kernel % 2", self.kernel % 2, (1,))
        one_of("follow", self.follow, ("nearest", "slot"))

    def prepare(self, model: Any) -> None:
        backbone = getattr(model, "backbone", model)
        if not hasattr(getattr(backbone, "tokenizer", None), "embed"):
            raise UserError(f"method {self.method!r} cannot work on {type(backbone).__name__}: it needs {self.needs}")
        super().prepare(model)
        if hasattr(model, "widen"):
            model.widen(backbone.depth * (self.kernel // 2) * len(self.target_modules or ()), 1)

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        return STAdapter(width(frozen), self)


METHODS["st-adapter"] = STAdapterConfig


class STAdapter(Adapter):
    """z + W_u conv(W_d z) on the patch tokens of the stream behind a branch; the convolution starts at zero."""

    def __init__(self, channels: int, config: STAdapterConfig) -> None:
        super().__init__()
        rank = config.rank or channels // 2
        self.follow = config.follow == "nearest"
        self.down, self.up = nn.Linear(channels, rank), nn.Linear(rank, channels)
        self.temporal = TemporalConv(rank, config.kernel)
        for zero in (self.down.bias, self.up.bias, self.temporal.weight, self.temporal.bias):
            nn.init.zeros_(zero)

    def forward(self, base, tokens: Tokens) -> Tokens:
        out = base(tokens)
        hidden = self.down(tokens.part("patch") + out.part("patch"))
        delta = self.up(self.temporal(hidden, tracks(tokens, self.temporal.kernel, self.follow)))
        return out.with_part("patch", out.part("patch") + delta.to(out.feat.dtype))
