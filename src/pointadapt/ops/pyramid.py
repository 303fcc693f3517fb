"""A pyramid of neighbourhoods: each level keeps half of the points before it, farthest first, with their neighbours.

Which points belong together depends on coordinates alone, and turning or scaling a cloud evenly changes nothing about
it. So a training loop that only does that to its clouds computes the rows once per cloud with :func:`pyramid_rows` and
hands them over in ``point.extra["pyramid"]``. Legend: B clouds, N points, levels of N_1, N_1 / 2, ... points, K
neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pointadapt.errors import UserError
from pointadapt.ops.neighbors import Rule, check_finite, clouds_of, farthest_points, gather, lexicographic, nearest
from pointadapt.point import Point


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Rows of all levels of B clouds, into tensors whose clouds lie one behind the other.

    order   [N] rows of the batch's points in an order of their own (rule "clean"); level 0 is sorted by it
    first   [B, N_1] rows of level 0 that are level 1; level s + 1 is the first half of every cloud of level s
    near    for each level s >= 1, [B, N_s, K] rows of level s - 1 next to its points, nearest first
    """

    order: Tensor
    first: Tensor
    near: list[Tensor]


def level_sizes(groups: int, levels: int) -> list[int]:
    """Points of levels 1 .. ``levels``, the last of which has ``groups``."""
    return [groups << (levels - 1 - level) for level in range(levels)]


def pyramid_rows(coord: Tensor, groups: int = 64, neighbors: int = 40, levels: int = 4, rule: Rule = "clean") -> Tensor:
    """[B, M] int32: the pyramid of each cloud of coord [B, N, 3], for ``point.extra["pyramid"]``.

    A row is N + N_1 + K (N_1 + N_2 + ...) numbers: order, first, and near of all levels, counted within the cloud.
    With fewer points than level 1 has, or than K, points are repeated.
    """
    batch, points, _ = coord.shape
    sizes = level_sizes(groups, levels)
    if rule == "clean":
        order = lexicographic(coord)
        coord = gather(coord, order)
    else:
        order = torch.arange(points, device=coord.device).expand(batch, points)
    first = farthest_points(coord, sizes[0], rule)
    parts, below, center = [order, first], coord, gather(coord, first)
    for size in sizes:
        # A farthest point sample of a farthest point sample is its beginning.
        center = center[:, :size]
        near = nearest(center, below, min(neighbors, below.shape[1]))
        if near.shape[2] < neighbors:
            near = near.repeat(1, 1, -(-neighbors // near.shape[2]))[..., :neighbors]
        parts.append(near.flatten(1))
        below = center
    return torch.cat(parts, 1).int()


def pyramid(point: Point, groups: int, neighbors: int, levels: int, rule: Rule = "clean") -> Pyramid:
    """The pyramid of a batch: out of ``point.extra["pyramid"]`` if that is there, else computed; remembered.

    Raises UserError for an empty cloud, NaN or infinite coordinates, and given rows that are not those of such clouds
    and levels.
    """

    def make() -> Pyramid:
        if min(point.counts) == 0:
            raise UserError("a cloud of 0 points has no tokens: leave it out")
        check_finite(point)
        given = point.extra.get("pyramid")
        sizes = level_sizes(groups, levels)
        if given is None:
            rows = [r for coord in clouds_of(point) for r in pyramid_rows(coord, groups, neighbors, levels, rule)]
        else:
            rows = list(given)
        tail = sizes[0] + neighbors * sum(sizes)
        lengths = [count + tail for count in point.counts]
        if [len(r) for r in rows] != lengths:
            raise UserError(
                f'point.extra["pyramid"] has {len(rows)} rows of {len(rows[0])} numbers, needed are {len(lengths)} of '
                f"{lengths[0]}: make it with pyramid_rows(coord, {groups}, {neighbors}, {levels}) for the same clouds"
            )
        start = point.offset - torch.tensor(point.counts, device=point.offset.device)
        own = [r[:count].long() for r, count in zip(rows, point.counts, strict=True)]
        rest = torch.stack([r[count:] for r, count in zip(rows, point.counts, strict=True)]).long()
        first, *near = rest.split([sizes[0], *(neighbors * size for size in sizes)], 1)
        clouds = torch.arange(len(rest), device=rest.device)[:, None]
        first = first + start[:, None]
        near = [n + (start[:, None] if s == 0 else clouds * sizes[s - 1]) for s, n in enumerate(near)]
        return Pyramid(
            torch.cat([o + s for o, s in zip(own, start.tolist(), strict=True)]),
            first,
            [n.unflatten(1, (-1, neighbors)) for n in near],
        )

    return point.remember(("pyramid", groups, neighbors, levels, rule), make)
