"""Reductions over groups of points, given each point's group index."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_max(feat: Tensor, index: Tensor, num: int) -> Tensor:
    """[num, C] maximum of feat [N, C] over the rows with the same index [N]; no group may be empty."""
    out = feat.new_zeros(num, feat.shape[1])
    return out.scatter_reduce(0, index[:, None].expand_as(feat), feat, "amax", include_self=False)


def segment_mean(feat: Tensor, index: Tensor, num: int) -> Tensor:
    """[num, C] mean of feat [N, C] over the rows with the same index [N]; an empty group gives zeros."""
    total = feat.new_zeros(num, feat.shape[1]).index_add(0, index, feat)
    count = torch.bincount(index, minlength=num).clamp(min=1)
    return total / count[:, None]
