"""Farthest point sampling, nearest neighbours, and the groups of points that transformers take as tokens.

Two rules choose among points. "clean" (the default) depends on the set of points alone, not on their order: it starts
at the point farthest from the centroid. "released" is that of the CUDA operators in the published code: it starts at
row 0, never picks points within 0.0316 of the origin, and breaks ties by the threads' reduction tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pointadapt.errors import UserError
from pointadapt.ops.frozen import eager_cpu
from pointadapt.point import Point

Rule = Literal["clean", "released"]

#: Neighbours beyond those wanted that a tree is asked for: rounding to float32 may change the order of a few.
SPARE = 8


@dataclass(frozen=True, eq=False)
class Groups:
    """G groups of K neighbouring points in each of B clouds.

    center [B, G, 3];  coord [B, G, K, 3] relative to the centre;  index [B, G, K] rows within the cloud
    """

    center: Tensor
    coord: Tensor
    index: Tensor


def clouds_of(point: Point) -> list[Tensor]:
    """Coordinates of the clouds in stacks [b, N, 3] of equal length: one stack if all clouds are equally large."""
    if len(set(point.counts)) == 1:
        return [point.coord.view(point.num_clouds, -1, 3)]
    return [coord[None] for coord in point.coord.split(point.counts)]


def group(point: Point, groups: int, size: int, rule: Rule = "clean") -> Groups:
    """Centres by farthest point sampling and their ``size`` nearest points, cloud by cloud; remembered by the point.

    Raises UserError for a cloud of fewer points than ``groups`` or ``size``, and for NaN or infinite coordinates.
    """

    def make() -> Groups:
        check_finite(point)
        few = min(point.counts)
        if few < max(groups, size):
            raise UserError(
                f"a cloud of {few} points cannot be cut into {groups} groups of {size}: "
                f"give every shape at least {max(groups, size)} points"
            )
        found = [group_stack(coord, groups, size, rule) for coord in clouds_of(point)]
        return Groups(*(torch.cat([getattr(f, name) for f in found]) for name in ("center", "coord", "index")))

    return point.remember(("groups", groups, size, rule), make)


def check_finite(point: Point) -> None:
    """Raises UserError for NaN or infinite coordinates."""
    if not bool(point.coord.isfinite().all()):
        raise UserError("Point.coord holds NaN or infinite values, which have no neighbours: remove these points")


def group_stack(coord: Tensor, groups: int, size: int, rule: Rule = "clean") -> Groups:
    """:func:`group` for clouds of equal size, coord [B, N, 3]."""
    order = None
    if rule == "clean":
        order = lexicographic(coord)
        coord = gather(coord, order)
    center = gather(coord, farthest_points(coord, groups, rule))
    index = nearest(center, coord, size)
    relative = gather(coord, index) - center[:, :, None]
    if order is not None:
        index = order.gather(1, index.flatten(1)).view_as(index)
    return Groups(center, relative, index)


def gather(value: Tensor, index: Tensor) -> Tensor:
    """Rows of value [B, N, C] by index [B, ...] -> [B, ..., C]."""
    flat = index.flatten(1)[..., None].expand(-1, -1, value.shape[-1])
    return value.gather(1, flat).view(*index.shape, value.shape[-1])


@torch.no_grad()
def lexicographic(coord: Tensor) -> Tensor:
    """[B, N] rows of each cloud sorted by x, then y, then z: an order that belongs to the set of points."""
    order = coord[..., 2].argsort(stable=True, dim=1)
    for axis in (1, 0):
        order = order.gather(1, coord[..., axis].gather(1, order).argsort(stable=True, dim=1))
    return order


@torch.no_grad()
def farthest_points(coord: Tensor, count: int, rule: Rule = "clean", start: Tensor | None = None) -> Tensor:
    """[B, count] rows of coord [B, N, 3]: each the farthest from all before it. A longer sample starts like a shorter.

    "clean" expects rows in an order that belongs to the set (see :func:`lexicographic`): the first of equals wins.
    It begins with the rows ``start`` [B], by default those farthest from the centroids.
    """
    batch, points, _ = coord.shape
    device = coord.device
    lines = torch.arange(batch, device=device)
    distance = coord.new_full((batch, points), 1e10)
    if rule == "released":
        priority = thread_order(points).to(device)
        dead = (coord.square().sum(-1) <= 1e-3)[:, priority]
        coord = coord[:, priority]
        distance = distance.masked_fill(dead, -1.0)
        last = (priority == 0).nonzero().view(1).expand(batch)
    else:
        priority = None
        last = (coord - coord.mean(1, keepdim=True)).square().sum(-1).argmax(1) if start is None else start
    x, y, z = coord.unbind(-1)
    chosen = [last]
    for _ in range(count - 1):
        at = coord[lines, last]
        step = (x - at[:, :1]).square_() + (y - at[:, 1:2]).square_() + (z - at[:, 2:]).square_()
        distance = torch.minimum(distance, step)
        best, last = distance.max(1)
        if priority is not None:  # no candidate is left: the kernel emits row 0
            last = torch.where(best < 0, chosen[0], last)
        chosen.append(last)
    rows = torch.stack(chosen, 1)
    return rows if priority is None else priority[rows]


@lru_cache(maxsize=32)
def thread_order(points: int) -> Tensor:
    """[N] rows in the order in which the CUDA kernel prefers them among equals.

    A block has bs = min(512, 2^floor(log2 N)) threads, thread t sees rows t, t + bs, ...; a tree halves the threads,
    so that the one with the smallest bit-reversed number wins.
    """
    bits = min(9, points.bit_length() - 1)
    row = torch.arange(points)
    thread = row & ((1 << bits) - 1)
    reversed_thread = sum(((thread >> b) & 1) << (bits - 1 - b) for b in range(bits)) if bits else thread
    return (reversed_thread * points + row).argsort()


@torch.no_grad()
def nearest(query: Tensor, coord: Tensor, count: int) -> Tensor:
    """[B, Q, count] rows of coord [B, N, 3] nearest to query [B, Q, 3], nearest first; exact differences in its dtype.

    Coordinates must be finite (:func:`check_finite`): SciPy refuses others with a ValueError, comparing does not.
    """
    points = coord.shape[1]
    if points >= max(256, 4 * count) and eager_cpu(coord):
        rows = candidates(query, coord, count + SPARE)
        flat = rows.flatten(1)
        near = [coord[..., axis].gather(1, flat).view_as(rows) for axis in range(3)]
        chosen = distances(query, near).topk(count, largest=False).indices
        return rows.gather(2, chosen)
    return distances(query, [coord[:, None, :, axis] for axis in range(3)]).topk(count, largest=False).indices


def distances(query: Tensor, coord: Sequence[Tensor]) -> Tensor:
    """[B, Q, n] squared, from x, y and z that broadcast to that: no [B, Q, n, 3] is made."""
    first, *others = ((query[..., axis, None] - along).square_() for axis, along in enumerate(coord))
    return first.add_(others[0]).add_(others[1])


def candidates(query: Tensor, coord: Tensor, count: int) -> Tensor:
    """[B, Q, count] rows by SciPy's tree, which computes in float64: some more than wanted, to be ranked again."""
    from scipy.spatial import cKDTree

    trees = (cKDTree(cloud, balanced_tree=False, compact_nodes=False) for cloud in coord.double().numpy())
    return torch.from_numpy(
        np.stack([t.query(q, count)[1] for t, q in zip(trees, query.double().numpy(), strict=True)])
    )


def spread(point: Point, center: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """How every point is interpolated from the centres [B, G, 3] of its own cloud.

    Returns (index [N, count] of its nearest centres among the B G rows, weights [N, count] that sum to 1 and fall
    with the squared distance: 1 / (d^2 + 1e-8), as in PointNet++).
    """
    groups = center.shape[1]
    indices, weights = [], []
    first = 0
    for coord in clouds_of(point):
        near = center[first : first + len(coord)]
        index = nearest(coord, near, min(count, groups))
        weight = 1 / ((gather(near, index) - coord[:, :, None]).square().sum(-1) + 1e-8)
        start = groups * torch.arange(first, first + len(coord), device=coord.device)
        indices.append((index + start[:, None, None]).flatten(0, 1))
        weights.append((weight / weight.sum(-1, keepdim=True)).flatten(0, 1))
        first += len(coord)
    return torch.cat(indices), torch.cat(weights)
