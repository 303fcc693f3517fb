"""What the tasks on point videos share: a backbone run over the frames of clips, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pointadapt.backbones.backbone import Backbone
from pointadapt.errors import UserError
from pointadapt.ops.devices import move
from pointadapt.ops.frames import frames_in, take_clouds, times
from pointadapt.point import Point
from pointadapt.tasks.auxiliary import WithAuxiliary
from pointadapt.tasks.classification import readout, width_of
from pointadapt.tasks.head import OfBackbone, backbone_fingerprint, check_untrained, class_names
from pointadapt.tokens import Tokens


class VideoTask(WithAuxiliary):
    """A frozen 3D backbone on the frames of clips, and a head.

    A clip is a run of T clouds of the packed Point, ``point.extra["frames"]`` is T, the same for all clips of a batch.

    chunk  evaluation takes this many frames at once; a longer clip is cut into windows. That is exact: frames see each
           other only through adapters, and every window has as many frames more on both sides as those reach
    weights  [C] weights of the classes in the loss, for example :func:`class_weights`
    """

    #: [C] weights of the classes in the loss, or None
    weights: Tensor | None

    def __init__(
        self, backbone: Backbone, classes: int | Sequence[str], chunk: int = 256, weights: Tensor | None = None
    ) -> None:
        import pointadapt.methods  # noqa: F401  else PeftModel.from_pretrained does not know them in a fresh process

        super().__init__()
        if backbone.kind != "tokens":
            raise UserError(
                f"{backbone.name_or_path} works on single points: videos need a backbone over groups of points, such "
                "as point-mae"
            )
        self.classes = class_names(classes)
        self.backbone = backbone
        self.name_or_path = backbone.name_or_path
        self.chunk = chunk
        self.reach, self.own_reach, self.stride = 0, 0, 1  # frames that adapters, and the tokens themselves, see
        self.read: tuple[str, ...] = ()
        if weights is not None and len(weights) != len(self.classes):
            raise UserError(f"weights has {len(weights)} entries for {len(self.classes)} classes")
        self.register_buffer("weights", weights, persistent=False)

    def widen(self, reach: int, stride: int) -> None:
        """Told by a method when it is put in place: frames it looks to each side, frames per frame with tokens."""
        self.reach, self.stride = max(self.reach, reach), math.lcm(self.stride, stride)

    def new_head(self, parts: Sequence[str], make: Callable[[int, str], VideoHead]) -> None:
        """Put ``make(channels of a frame, hash of the backbone)`` in place, which reads these parts.

        Raises UserError when an adapter has trained another head already.
        """
        head = self._modules.get("head")
        check_untrained(head, VideoHead, parts, self.read)
        self.read = tuple(parts)
        channels = sum(width_of(part, self.backbone) for part in self.read)
        head = make(channels, backbone_fingerprint(self.backbone))
        self.head = move(head, self.backbone.device)

    def frames(self, point: Point) -> Tensor:
        """[B, T', C]: what the head reads of every frame that has tokens."""
        clips = point.num_clouds // frames_in(point, point.num_clouds)
        parts = [self.frames_at_once(part)[:, kept].flatten(0, 1) for part, kept in self.windows(point)]
        return torch.cat(parts).unflatten(0, (clips, -1))

    def frames_at_once(self, point: Point) -> Tensor:
        out: Tokens = self.backbone(point)  # type: ignore[assignment]
        return self.keep_losses(out, readout(out, self.read).unflatten(0, (-1, frames_in(out, len(out)))))

    def windows(self, point: Point) -> Iterator[tuple[Point, slice]]:
        """Parts of the clips in order, and which of their frames with tokens are wanted; all at once for gradients."""
        frames = frames_in(point, point.num_clouds)
        clips = point.num_clouds // frames
        if torch.is_grad_enabled() or point.num_clouds <= self.chunk:
            yield point, slice(None)
            return
        if "time" not in point.extra:
            point = point.but(extra={**point.extra, "time": times(point)})
        together = self.chunk // frames
        if together:
            for first in range(0, clips, together):
                yield self.cut(point, first, min(first + together, clips), 0, frames), slice(None)
            return
        margin = math.ceil((self.reach + self.own_reach) / self.stride) * self.stride
        size = max(self.chunk // self.stride, 1) * self.stride
        for clip in range(clips):
            for first in range(0, frames, size):
                last = min(first + size, frames)
                begin, end = max(first - margin, 0), min(last + margin, frames)
                kept = slice((first - begin) // self.stride, (last - begin) // self.stride)
                yield self.cut(point, clip, clip + 1, begin, end), kept

    def cut(self, point: Point, first: int, last: int, begin: int, end: int) -> Point:
        """Frames ``begin`` to ``end`` of the clips ``first`` to ``last``."""
        frames = frames_in(point, point.num_clouds)
        clip = torch.arange(first, last, device=point.coord.device)[:, None] * frames
        clouds = clip + torch.arange(begin, end, device=point.coord.device)
        part = take_clouds(point, clouds.flatten())
        return part.but(extra={**part.extra, "frames": end - begin})


class VideoHead(OfBackbone):
    """Mixin of all heads on videos."""


def class_weights(counts: Tensor) -> Tensor:
    """[C] weights 1 / ln(1.2 + share) of counts [C], the smallest 1: the published rule for Synthia4D."""
    weight = 1 / (1.2 + counts.double() / counts.sum().clamp(min=1)).log()
    return (weight / weight.min()).float()
