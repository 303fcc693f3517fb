"""Point: a packed batch of point clouds, the one value that flows through every model here.

Legend used across the package: N points, B clouds (scenes), C channels, H heads, D channels of a head,
K orders, W window length, P windows, L latents, R rank, M voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

#: Fields whose value belongs to single points; they are permuted, gathered and moved together.
PER_POINT = ("coord", "feat", "grid_coord", "mask")


@dataclass(frozen=True, eq=False)
class Point:
    """A batch of B clouds packed along N; never mutated, copies are made by :meth:`but`.

    coord       [N, 3] float, metres (times the data set's scale)
    feat        [N, C] float
    grid_coord  [N, 3] int, voxel indices >= 0, or None (then made from coord and grid_size by the backbone)
    offset      [B] int, cumulative point counts, so cloud b has rows offset[b-1]:offset[b]; repeated = empty cloud
    mask        [N] bool, rows replaced by the backbone's mask token
    condition   data-set name for prompt-driven normalisation (PPT)
    grid_size   edge of a voxel at this level
    parent      the finer Point this one was pooled from; pooling_inverse [N_parent] = its rows' pooled row
    curves      the space-filling curve that block 0, 1, 2, ... of this level sorts its windows by (then again)
    extra       state of one forward pass (an adapter's latents); it survives pooling and unpooling
    cache       what depends on coordinates alone (orders, windows, neighbours), shared by all copies
    """

    coord: Tensor
    feat: Tensor
    offset: Tensor
    grid_coord: Tensor | None = None
    mask: Tensor | None = None
    condition: str | None = None
    grid_size: float | None = None
    parent: Point | None = None
    pooling_inverse: Tensor | None = None
    curves: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        rows = len(self.coord)
        for name in PER_POINT:
            value = getattr(self, name)
            if value is not None and len(value) != rows:
                raise ValueError(f"Point.{name} has {len(value)} rows where coord has {rows}")
        if self.offset.ndim != 1 or len(self.offset) == 0:
            raise ValueError("Point.offset must be a 1-D tensor of cumulative counts with one entry per cloud")
        if self.offset.device.type == "cpu" and int(self.offset[-1]) != rows:  # elsewhere it would wait for the device
            raise ValueError(f"Point.offset ends at {int(self.offset[-1])}, there are {rows} points")

    def __len__(self) -> int:
        return len(self.coord)

    def but(self, **changes: Any) -> Point:
        """A copy with some fields replaced. New coordinates, clouds or voxels drop the cache."""
        if not {"coord", "grid_coord", "offset"}.isdisjoint(changes):
            changes.setdefault("cache", {})
        return replace(self, **changes)

    def plus(self, branch: Point) -> Point:
        """The residual sum: this point's features plus the branch's; the branch's ``extra`` goes on."""
        return replace(self, feat=self.feat + branch.feat, extra=branch.extra)

    def remember(self, key: Any, make: Any) -> Any:
        """``cache[key]``, made by calling ``make()`` once for this set of coordinates."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    @property
    def num_clouds(self) -> int:
        return len(self.offset)

    @property
    def counts(self) -> list[int]:
        """Points of each cloud; a host list, computed once per set of coordinates."""
        return self.remember("counts", lambda: torch.diff(self.offset, prepend=self.offset.new_zeros(1)).tolist())

    @property
    def batch(self) -> Tensor:
        """[N] int64, the cloud of each point."""

        def make() -> Tensor:
            clouds = torch.arange(self.num_clouds, device=self.coord.device)
            offset = self.offset.to(self.coord.device)
            counts = torch.diff(offset, prepend=offset.new_zeros(1))
            return torch.repeat_interleave(clouds, counts, output_size=len(self))  # else it waits for the device

        return self.remember("batch", make)

    def to(self, device: torch.device | str) -> Point:
        """Move every tensor; the cache is dropped, it is rebuilt where the coordinates are."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) if isinstance(v, Tensor | Point) else v for k, v in moved.items()}
        moved["extra"] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.extra.items()}
        return Point(**{**moved, "cache": {}})

    def split(self) -> list[Point]:
        """The clouds one by one (parents and forward state dropped)."""
        clouds, start = [], 0
        for count in self.counts:
            rows = slice(start, start + count)
            cut = {name: getattr(self, name)[rows] for name in PER_POINT if getattr(self, name) is not None}
            offset = torch.tensor([count], device=self.offset.device, dtype=self.offset.dtype)
            clouds.append(Point(**cut, offset=offset, condition=self.condition, grid_size=self.grid_size))
            start += count
        return clouds


def collate(points: list[Point]) -> Point:
    """Pack single- or multi-cloud Points behind each other along N; what is in their ``extra`` stays behind.

    Raises ValueError on an empty list, for several conditions, or when only some of them carry an optional field.
    """
    if not points:
        raise ValueError("collate needs at least one Point")
    if len({p.condition for p in points}) > 1:
        raise ValueError("the Points to collate have several conditions, a batch has one")
    packed: dict[str, Any] = {}
    for name in PER_POINT:
        values = [getattr(p, name) for p in points]
        present = [v for v in values if v is not None]
        if present and len(present) != len(values):
            raise ValueError(f"only some of the Points to collate have {name}")
        packed[name] = torch.cat(present) if present else None
    counts = torch.tensor([n for p in points for n in p.counts], device=points[0].offset.device)
    first = points[0]
    return Point(**packed, offset=counts.cumsum(0), condition=first.condition, grid_size=first.grid_size)
