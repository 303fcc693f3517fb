"""Stochastic depth (Huang et al., 2016): a branch is left out at random while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops rows of the first dimension: whole clouds of [B, T, C], single points of packed [N, C].

    With packed clouds stochastic depth works point by point, as in PTv3.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, feat: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return feat
        keep = 1 - self.rate
        kept = torch.rand(len(feat), *[1] * (feat.ndim - 1), device=feat.device) < keep
        return feat * kept.to(feat.dtype) / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def rising(last: float, num: int) -> list[float]:
    """Drop-path rates from 0 to ``last``, one per block."""
    return [last * i / max(num - 1, 1) for i in range(num)]
