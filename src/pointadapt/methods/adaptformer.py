"""AdaptFormer: a scaled bottleneck parallel to every feed-forward branch.

Chen et al.: AdaptFormer. NeurIPS 2022, arXiv 2205.13535.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import nn

from pointadapt.errors import UserError
from pointadapt.methods.core import METHODS, Adapter, AdapterConfig, Shared, at_least, one_of, peft_method
from pointadapt.methods.sites import Site, width
from pointadapt.point import Point
from pointadapt.tokens import Tokens


@peft_method("adaptformer")
@dataclass
class AdaptFormerConfig(AdapterConfig):
    """Defaults: 49,600 parameters per block of Point-MAE; 924,144 on Sonata-base."""

    paper: ClassVar[str] = "Chen et al. 2022, arXiv 2205.13535"
    works_on: ClassVar[tuple[str, ...]] = ("points", "voxels", "tokens")
    stand_ins: ClassVar[dict[str, str]] = {"ffn": "mix", "mlp": "convs"}

    mid: int = field(default=64, metadata={"help": "Width of the bottleneck."})
    scale: float = field(default=0.1, metadata={"help": "Factor s on the bottleneck's output."})
    learn_scale: bool = field(default=False, metadata={"help": "Train s, one per block."})
    reads: Literal["stream", "normed"] = field(
        default="stream",
        metadata={
            "help": "stream: the branch's input before its norm (released code), outside of drop path; normed: what "
            "the MLP reads (the paper's formula). What target_modules names decides, if it is given."
        },
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout before the up projection."})

    def __post_init__(self) -> None:
        one_of("reads", self.reads, ("stream", "normed"))
        at_least(1, mid=self.mid)
        if self.target_modules is None:
            self.target_modules = ["ffn" if self.reads == "stream" else "mlp"]
        super().__post_init__()

    def shared(self, sites: list[Site]) -> None:
        """Nothing is shared; all sites being known, raises UserError for one whose input is not normed."""
        other = next((s.name for s in sites if not s.name.endswith(("mlp", "convs"))), None)
        if self.reads == "normed" and other:
            raise UserError(
                f"reads='normed' contradicts target_modules={self.target_modules}, which asks for an adapter at "
                f"{other}: leave one of the two out"
            )

    def adapter(self, frozen: nn.Module, site: Site, shared: Shared) -> Adapter:
        return ScaledBottleneck(width(frozen), self)


METHODS["adaptformer"] = AdaptFormerConfig


class ScaledBottleneck(Adapter):
    """base(x) + s W_up ReLU(W_down x)."""

    def __init__(self, channels: int, config: AdaptFormerConfig) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, config.mid), nn.Linear(config.mid, channels)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = nn.Parameter(torch.tensor([config.scale])) if config.learn_scale else config.scale
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, base, x: Point | Tokens) -> Point | Tokens:
        out = base(x)
        delta = self.up(self.dropout(self.down(x.feat).relu()))
        return out.but(feat=out.feat + self.scale * delta)
