"""Which row each tap of a sparse convolution reads, as dense tables that kernels on a GPU walk through.

The pairs of :mod:`pointadapt.ops.sparse_conv` have lengths that the host must wait for. Here every shape follows from
the number of rows, so the tables are made and used without the host knowing what is in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

#: Taps of one int64 word of a mask: the sign and one spare bit stay clear.
WORD = 62


def compact(valid: Tensor) -> tuple[Tensor, Tensor]:
    """(index [A, B] int32, count [A] int32): of each row of ``valid`` [A, B] bool the places that are set, in order.

    Entries of ``index`` behind ``count`` mean nothing.
    """
    width = valid.shape[1]
    place = torch.where(valid, valid.cumsum(1) - 1, width)  # unset ones all go to a column that is cut off
    every = torch.arange(width, dtype=torch.int32, device=valid.device).expand(valid.shape)
    index = torch.zeros(len(valid), width + 1, dtype=torch.int32, device=valid.device)
    return index.scatter_(1, place, every)[:, :width], valid.sum(1, dtype=torch.int32)


def mask_order(valid: Tensor) -> Tensor:
    """[M] int64: rows sorted by the taps they have, ``valid`` [K, M] bool; equal ones in their own order.

    A row's taps are the bits of a number, the rarest tap the highest bit, and numbers stand in the order of the
    reflected Gray code: neighbours then differ in few taps, and a tile of rows has few that only some of them need.
    """
    valid = valid[valid.sum(1).argsort(descending=True, stable=True)]
    order = torch.arange(valid.shape[1], device=valid.device)
    for part in valid.split(WORD):  # from the low bits to the high ones: the sort is stable
        code = (part.long() << torch.arange(len(part), device=valid.device)[:, None]).sum(0)
        for shift in (1, 2, 4, 8, 16, 32):
            code = code ^ code >> shift
        order = order[code[order].argsort(stable=True)]
    return order


@dataclass(frozen=True, eq=False)
class TapTable:
    """For each of M output rows and K taps the row that is read.

    sources  [K, M] int32, -1 where there is none; columns stand in the order of ``order``
    order    [M] int32, the output row of each column
    """

    sources: Tensor
    order: Tensor
    made: dict[int, tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @staticmethod
    def sort(sources: Tensor) -> TapTable:
        """The table of ``sources`` [K, M] int32 whose columns stand in the order of rows, sorted by mask."""
        order = mask_order(sources >= 0)
        return TapTable(sources.index_select(1, order), order.int())

    def tiles(self, block: int) -> tuple[Tensor, ...]:
        """What tiles of ``block`` columns compute, all int32:

        taps     [T, K], the taps that any row of the tile has, the first ``count`` [T] of each
        sources  [T, K, block], their rows of the table, so that a tile reads one stretch of memory
        heavy    [T], the tiles with the most taps first: started last, they would run alone at the end
        """
        if block not in self.made:
            taps, columns = self.sources.shape
            # [T, K, block]
            split = F.pad(self.sources, (0, -columns % block), value=-1).view(taps, -1, block).transpose(0, 1)
            index, count = compact((split >= 0).any(2))
            sources = split.gather(1, index.long()[:, :, None].expand(split.shape))
            heavy = count.argsort(descending=True, stable=True).int()
            self.made[block] = index.contiguous(), count, sources, heavy
        return self.made[block]

    def pairs(self) -> tuple[Tensor, ...]:
        """(written [K, M], read [K, M], count [K]) int32: what each tap connects, the first ``count`` of each row."""
        if 0 not in self.made:
            column, count = compact(self.sources >= 0)
            column = column.long()
            self.made[0] = self.order[column], self.sources.gather(1, column), count
        return self.made[0]


class Duplicates:
    """Rows of one voxel: ``first`` [N] int64 is the first row of each row's voxel."""

    def __init__(self, first: Tensor) -> None:
        self.first = first
        self.is_first = first == torch.arange(len(first), device=first.device)
        # The answer travels to the host behind the work that finds it: who asks in the backward pass need not wait.
        self.answer = (~self.is_first).any().to("cpu", non_blocking=True)
        self.arrived = torch.cuda.Event() if first.is_cuda else None
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(first.device))

    def __bool__(self) -> bool:
        """Whether any voxel has more than one row."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.answer)

    def merge(self, feat: Tensor) -> Tensor:
        """[N, C]: the sum over a voxel's rows in its first row, 0 in the others."""
        return torch.zeros_like(feat).index_add_(0, self.first, feat)


@dataclass(frozen=True, eq=False)
class TapMap:
    """The tables of a convolution and of its gradient.

    there     what an output row reads
    back      what the gradient of an input row reads
    mirrored  ``back`` is ``there`` with the taps in the opposite order (submanifold convolution)
    same      output rows that ``back`` reaches through the first row of their voxel only
    merged    input rows that ``there`` reaches so: their features are summed into the first row beforehand
    """

    there: TapTable
    back: TapTable
    mirrored: bool = False
    same: Duplicates | None = None
    merged: Duplicates | None = None

    def reversed(self) -> TapMap:
        """The convolution from the output rows to the input rows over the same links (not of a mirrored one)."""
        return TapMap(self.back, self.there, same=self.merged, merged=self.same)

    def as_pairs(self) -> list[tuple[int, Tensor, Tensor]]:
        """The same as a list of (tap, rows written, rows read) int64; the centre tap of a submanifold one left out.

        Waits for the device.
        """
        if self.merged is not None:  # only the other direction lists every row
            return [(tap, written, read) for tap, read, written in self.reversed().as_pairs()]
        found = []
        for tap, sources in enumerate(self.there.sources):
            column = (sources >= 0).nonzero()[:, 0]
            if len(column) and not (self.mirrored and tap == len(self.there.sources) // 2):
                found.append((tap, self.there.order[column].long(), sources[column].long()))
        return found


def stride_map(tap: Tensor, coarse: Tensor, rows: int, taps: int) -> TapMap:
    """From fine rows to ``rows`` coarse ones: fine row n reaches row coarse[n] through tap[n], both [N] int64.

    Several fine rows of one coarse row and tap are duplicates of one voxel.
    """
    fine = torch.arange(len(tap), dtype=torch.int32, device=tap.device)
    up = torch.full((taps, len(tap)), -1, dtype=torch.int32, device=tap.device)
    up.scatter_(0, tap[None], coarse.int()[None])
    none, place = len(tap), tap * rows + coarse
    down = torch.full((taps * rows,), none, dtype=torch.int32, device=tap.device)
    down.scatter_reduce_(0, place, fine, "amin")
    first = Duplicates(down[place].long())
    down = torch.where(down == none, -1, down).view(taps, rows)
    return TapMap(TapTable.sort(down), TapTable.sort(up), merged=first)
