"""What the taps of a sparse convolution connect, for PyTorch; :mod:`pointadapt.ops.tap_map` has it for Triton kernels.

On a CPU rows are written a block at a time: all that a block reads is gathered tap by tap and multiplied, and one
``embedding_bag`` adds up each row's products. What is gathered stays in the processor's cache; nothing is scattered.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

#: (tap, rows written, rows read), int32 or int64.
Pairs = list[tuple[int, Tensor, Tensor]]

#: Rows of a block; numbers of rows within one must fit 16 bits.
ROWS = 2048


@dataclass(frozen=True, eq=False)
class Block:
    """The pairs that write rows ``first`` to ``first + len(offsets)``.

    read, written  [P] int32, tap by tap       taps, sizes  the taps that occur, and how many pairs each has
    order          [P] int32, the pairs by the row they write; those of row i begin at offsets[i]
    """

    first: int
    read: Tensor
    written: Tensor
    taps: list[int]
    sizes: list[int]
    order: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class TapPairs:
    """The links of a convolution.

    mirrored  the opposite tap connects the same pairs the other way round (submanifold convolution without duplicates)
    """

    pairs: Pairs
    mirrored: bool = False

    def reversed(self) -> TapPairs:
        """The links from the rows written to the rows read, tap by tap."""
        return self.turned

    @cached_property
    def turned(self) -> TapPairs:
        return TapPairs([(tap, read, written) for tap, written, read in self.pairs], self.mirrored)

    @cached_property
    def blocks(self) -> list[Block]:
        """The pairs in blocks of rows written; those that write none are left out."""
        pairs = [(tap, *by_written(written, read)) for tap, written, read in self.pairs]
        last = max((int(written[-1]) for _, written, _ in pairs), default=0)
        edges = ROWS * torch.arange(1, last // ROWS + 1)
        split = []
        for tap, written, read in pairs:
            at = torch.searchsorted(written, edges.to(written.dtype))
            split.append((tap, written.tensor_split(at), read.tensor_split(at)))
        parts = [[(t, w[i], r[i]) for t, w, r in split if len(w[i])] for i in range(len(edges) + 1)]
        return [block(number * ROWS, part) for number, part in enumerate(parts) if part]


def by_written(written: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """Both in ascending order of the rows written, as they mostly are."""
    if bool((written[1:] >= written[:-1]).all()):
        return written, read
    written, order = written.sort(stable=True)
    return written, read[order]


def block(first: int, pairs: Pairs) -> Block:
    taps, written, read = zip(*pairs, strict=True)
    rows = torch.cat(written).int()
    local = (rows - first).numpy()
    order = np.argsort(local.astype(np.uint16), kind="stable").astype(np.int32)  # NumPy sorts 16 bits by radix
    offsets = np.cumsum(np.bincount(local + 1)[:-1], dtype=np.int32)
    return Block(
        first, torch.cat(read).int(), rows, list(taps), list(map(len, written)),
        torch.from_numpy(order), torch.from_numpy(offsets),
    )  # fmt: skip
