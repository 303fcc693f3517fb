"""Work that nobody will differentiate through: whether that is so, and doing it in blocks that stay in the cache.

Over 60,000 rows the hidden layer of an MLP is 46 MB: fresh pages for every call, and a way to memory and back that
takes longer than the arithmetic. In blocks of rows the same numbers come out of the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

#: Numbers that a block of intermediate values may hold: 1 MB of float32.
BLOCK = 1 << 18


def no_graph(feat: Tensor, *modules: nn.Module) -> bool:
    """Whether autograd would record nothing of a call of ``modules`` on ``feat``."""
    if not torch.is_grad_enabled():
        return True
    return not feat.requires_grad and not any(p.requires_grad for m in modules for p in m.parameters())


def eager_cpu(feat: Tensor) -> bool:
    """Whether blocks that stay in the cache help: on a CPU, unless torch.compile traces."""
    return feat.device.type == "cpu" and not torch.compiler.is_compiling()


def by_rows(call: Callable[[Tensor], Tensor], feat: Tensor, width: int) -> Tensor:
    """``call(feat)`` for a ``call`` that works row by row with at most ``width`` numbers between: in blocks of rows.

    No graph may be needed. On a GPU, and while torch.compile traces, all rows are one block.
    """
    rows = max(256, BLOCK // width)
    if len(feat) <= 2 * rows or not eager_cpu(feat):
        return call(feat)
    first = call(feat[:rows])
    out = first.new_empty(len(feat), *first.shape[1:])
    out[:rows] = first
    for start in range(rows, len(feat), rows):
        out[start : start + rows] = call(feat[start : start + rows])
    return out
