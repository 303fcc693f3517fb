"""Reductions over groups of points, given each point's group index."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_max(feat: Tensor, index: Tensor, num: int) -> Tensor:
    """[num, C] maximum of feat [N, C] over the rows with the same index [N]; no group may be empty."""
    out = feat.new_zeros(num, feat.shape[1])
    return out.scatter_reduce(0, index[:, None].expand_as(feat), feat, "amax", include_self=False)


def segment_mean(feat: Tensor, index: Tensor, num: int) -> Tensor:
    """[num, C] mean of feat [N, C] over the rows with the same index [N]; an empty group gives zeros.

    16-bit features are added up in float32: their own sums would stand still, or overflow, after some hundred rows.
    """
    wide = feat.to(torch.promote_types(feat.dtype, torch.float32))
    total = wide.new_zeros(num, feat.shape[1]).index_add(0, index, wide)
    return (total / segment_count(index, num).clamp(min=1)[:, None]).to(feat.dtype)


def segment_count(index: Tensor, num: int) -> Tensor:
    """[num] int64: rows of each group."""
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=num)
    return index.new_zeros(num).index_add_(0, index, torch.ones_like(index))  # bincount would wait for the device
