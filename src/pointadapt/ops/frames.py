"""Frames of point videos: a clip is a run of T clouds in a packed Point, a batch holds clips of equal length.

``point.extra["frames"]`` is T (1 where it is missing: every cloud is a clip of its own), ``point.extra["time"]`` [B T]
when each frame was seen, 0 to 1 (default t / T). Legend: B clips, T frames, R = B T rows, G anchors, K neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pointadapt.errors import UserError
from pointadapt.ops.neighbors import gather, nearest
from pointadapt.point import PER_POINT, Point
from pointadapt.tokens import Tokens

ROWS = 64  #: frames whose distances to anchors are held at once
PURITY = 0.6  #: share of a group's labelled points that must agree (inferred for PointATA)


def frames_in(value: Any, rows: int) -> int:
    """T of a Point or Tokens of that many clouds or rows. Raises UserError where they are no whole clips."""
    frames = int(value.extra.get("frames", 1))
    if frames < 1 or rows % frames:
        raise UserError(f'extra["frames"] is {frames}, which {rows} clouds are no multiple of: give whole clips')
    return frames


def times(point: Point) -> Tensor:
    """[R] when each frame was seen: what the point says, else t / T."""
    known = point.extra.get("time")
    if known is not None:
        return known.to(point.coord)
    frames = frames_in(point, point.num_clouds)
    time = torch.arange(frames, device=point.coord.device, dtype=point.coord.dtype) / frames
    return time.repeat(point.num_clouds // frames)


def neighbour_rows(rows: int, frames: int, offset: int, device: Any = None) -> Tensor:
    """[R] the row ``offset`` frames later (earlier) in the same clip; its last (first) frame where there is none."""
    row = torch.arange(rows, device=device)
    time = row % frames
    return row - time + (time + offset).clamp(0, frames - 1)


def anchor_frames(frames: int, stride: int = 1, padding: tuple[int, int] = (1, 1), window: int = 3) -> list[int]:
    """Frames that carry anchors: the middles of T' = (T + p0 + p1 - window) / stride + 1 windows.

    Raises UserError when that is no whole number above 0, or a middle lies outside of the clip.
    """
    left = frames + sum(padding) - window
    first = window // 2 - padding[0]
    if left < 0 or left % stride or first < 0 or first + left // stride * stride >= frames:
        raise UserError(
            f"{frames} frames cannot be cut into windows of {window} with stride {stride} and padding "
            f"{tuple(padding)}: (frames + padding - {window}) must be a multiple of the stride; use an even number "
            "of frames with stride 2, or stride 1"
        )
    return [first + stride * i for i in range(left // stride + 1)]


def take_clouds(point: Point, clouds: Tensor) -> Point:
    """The clouds of those numbers [r], in that order, with what ``extra`` says of each; a new cache."""
    counts = torch.tensor(point.counts, device=clouds.device)
    ends = counts.cumsum(0)
    length = counts[clouds]
    within = torch.arange(int(length.sum()), device=clouds.device)
    within = within - (length.cumsum(0) - length).repeat_interleave(length, output_size=len(within))
    rows = (ends - counts)[clouds].repeat_interleave(length, output_size=len(within)) + within
    cut = {name: getattr(point, name)[rows] for name in PER_POINT if getattr(point, name) is not None}
    number = point.num_clouds
    extra = {
        key: value[clouds] if isinstance(value, Tensor) and value.ndim and len(value) == number else value
        for key, value in point.extra.items()
    }
    return point.but(**cut, offset=length.cumsum(0).to(point.offset), extra=extra)


def tube(point: Point, center: Tensor, clouds: Tensor, size: int) -> Tensor:
    """[r, G, K, 3]: the K points of cloud ``clouds[i]`` nearest to the anchors center[i] [G, 3], relative to them."""
    counts = point.counts
    if len(set(counts)) > 1:
        split = point.coord.split(counts)
        parts = [around(c[None], split[row][None], size) for c, row in zip(center, clouds.tolist(), strict=True)]
    else:
        coord = point.coord.view(point.num_clouds, -1, 3)
        runs = zip(center.split(ROWS), clouds.split(ROWS), strict=True)
        parts = [around(c, coord[rows], size) for c, rows in runs]
    return torch.cat(parts)


def around(center: Tensor, coord: Tensor, size: int) -> Tensor:
    """[r, G, K, 3] points of coord [r, N, 3] nearest to center [r, G, 3], relative to it; of fewer, one again."""
    index = nearest(center, coord, min(size, coord.shape[1]))
    if index.shape[2] < size:  # of a frame without anchors: group() asks the others for enough
        index = index[..., torch.arange(size, device=index.device).clamp(max=index.shape[2] - 1)]
    return gather(coord, index) - center[:, :, None]


def tracks(tokens: Tokens, kernel: int, follow: bool = True) -> list[Tensor]:
    """Where a temporal kernel finds its inputs: per offset -k//2..k//2 an index [R G] into patch tokens [R G].

    follow  the anchor nearest in the other frame; else the token of the same place in the sequence
    Computed once for these centres in clips of this length. The first and last frame of a clip stand for those beyond.
    """
    center = tokens.center
    if center is None:
        raise UserError("tokens without centres have no tracks through time: use a backbone over groups of points")
    rows, groups, _ = center.shape
    frames = frames_in(tokens, rows)

    def make() -> list[Tensor]:
        same = torch.arange(groups, device=center.device).expand(rows, groups)
        found = []
        for offset in range(-(kernel // 2), kernel // 2 + 1):
            other = neighbour_rows(rows, frames, offset, center.device)
            near = nearest(center, center[other], 1)[..., 0] if follow and offset else same
            found.append((other[:, None] * groups + near).flatten())
        return found

    return tokens.remember_centers(("tracks", frames, kernel, follow), make)


def group_labels(
    point: Point, center: Tensor, size: int, label: Tensor, purity: float = PURITY, stride: int = 1
) -> Tensor:
    """[R, G] the label [N] most of the ``size`` points around each center [R, G, 3] have, in every ``stride``-th cloud;
    -1 where fewer than ``purity`` agree or half have none."""
    rows, found = zip(point.coord.split(point.counts), label.split(point.counts), strict=True), []
    seen = [pair for index, pair in enumerate(rows) if index % stride == 0]
    for here, (coord, own) in zip(center, seen, strict=True):
        near = own[nearest(here[None], coord[None], min(size, len(coord)))[0]]  # [G, K]
        few = near.shape[1]
        best = torch.where(near < 0, -2 - torch.arange(few, device=near.device), near).mode(1).values
        known, agree = (near >= 0).sum(1), (near == best[:, None]).sum(1)
        found.append(torch.where((2 * known >= few) & (agree >= purity * known) & (best >= 0), best, -1))
    return torch.stack(found)
