"""Features at several resolutions, without copies for every point: what a linear head needs of a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Levels:
    """Features of N points as the sum of what they hold at each resolution, finest first.

    feats    [n_l, C_l] features of level l; n_0 = N
    inverse  [n_l] int64 for all levels but the last: each row's place in level l + 1
    """

    feats: list[Tensor]
    inverse: list[Tensor]

    def dense(self) -> Tensor:
        """[N, sum of C_l]: coarse features copied to all of their points, behind the finer ones."""
        feat = self.feats[-1]
        for finer, rows in zip(self.feats[-2::-1], self.inverse[::-1], strict=True):
            feat = torch.cat([finer, feat.index_select(0, rows)], 1)
        return feat

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """[N, out]: ``F.linear(self.dense(), weight, bias)``, each level's product taken at its own resolution."""
        parts = weight.split([feat.shape[1] for feat in self.feats], 1)
        out = F.linear(self.feats[-1], parts[-1], bias)
        for finer, part, rows in zip(self.feats[-2::-1], parts[-2::-1], self.inverse[::-1], strict=True):
            out = F.linear(finer, part) + out.index_select(0, rows)
        return out

    def to(self, device: torch.device | str) -> Levels:
        return Levels([f.to(device) for f in self.feats], [i.to(device) for i in self.inverse])

    @staticmethod
    def pack(several: list[Levels]) -> Levels:
        """Clouds behind each other, as :func:`pointadapt.point.collate` puts them."""
        if len(several) == 1:
            return several[0]
        feats = [torch.cat(level) for level in zip(*(s.feats for s in several), strict=True)]
        inverse = []
        for level, rows in enumerate(zip(*(s.inverse for s in several), strict=True)):
            below = [len(s.feats[level + 1]) for s in several]
            starts = [sum(below[:i]) for i in range(len(below))]
            inverse.append(torch.cat([r + start for r, start in zip(rows, starts, strict=True)]))
        return Levels(feats, inverse)
