"""The contract of a backbone: what methods and tasks may rely on, whatever the architecture.

A backbone is a frozen network with ``forward(Point) -> Point``, or ``-> Tokens`` where it works on groups of
points, that
  * names the places where adapters go (``slots``: slot name -> regular expression over module names),
  * says how wide its output is (``out_channels``) and offers one feature per input point (``dense``),
  * calls every slot module explicitly, never by ``isinstance``, and lets state travel in ``Point.extra``,
  * keeps frozen BatchNorm still in ``train()``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pointadapt.errors import UserError
from pointadapt.ops.batchnorm import keep_still
from pointadapt.ops.levels import Levels
from pointadapt.point import Point
from pointadapt.tokens import Tokens


class Backbone(nn.Module):
    """Base class of all backbones.

    slots           slot name -> regular expression matched against the END of a dotted module name
                    (branches ``cpe mix ffn``, blocks ``block``, inner ``attn qkv proj mlp fc1 fc2``)
    config          the dataclass that decides its architecture
    in_channels     channels of ``Point.feat`` it wants
    out_channels    channels of ``forward(point).feat``
    dense_channels  channels of ``dense(point)``, one row per input point: what a segmentation head reads; 0: no such
    kind            "points": features of single points flow through blocks of attention along curves (Point);
                    "voxels": through sparse convolutions alone (Point); "tokens": of groups of points (Tokens)
    reads           what a classification head reads of ``forward(point)`` (tasks/classification.readout)
    part_reads      what a part segmentation's head reads of a whole cloud (tasks/parts.py)
    checkpointing   in training, blocks keep their input alone and compute the rest again in the backward pass: less
                    memory, more time, the same numbers bit by bit
    depth           number of blocks whose outputs ``taps`` gives; 0: it has no taps
    fresh           names of children that no checkpoint filled (a new decoder): ``pa.adapt`` trains them
    """

    slots: ClassVar[dict[str, str]] = {}
    kind: ClassVar[str] = "points"
    reads: ClassVar[tuple[str, ...]] = ("max", "mean")
    part_reads: ClassVar[tuple[str, ...]] = ("max", "mean")
    depth: int = 0
    checkpointing: bool = False
    config: Any
    in_channels: int
    out_channels: int
    dense_channels: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.name_or_path: str = "random"
        self.fresh: list[str] = []

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, point: Point) -> Point | Tokens:
        raise NotImplementedError

    def dense(self, point: Point) -> Tensor:
        """[N, dense_channels]: features of the input points, one by one. Raises UserError where there are none."""
        self.need_dense()
        raise NotImplementedError

    def need_dense(self) -> None:
        """Raises UserError where there are no features of single points."""
        if self.dense_channels:
            return
        raise UserError(
            f"backbone {self.name_or_path!r} gives features of groups of points, not of points: use it for objects "
            "(pa.Classification, pa.PartSegmentation), and nano, sonata, concerto or utonia for scenes"
        )

    def levels(self, point: Point) -> Levels:
        """What :meth:`dense` gives, kept apart by resolution where the backbone has several."""
        return Levels([self.dense(point)], [])

    def taps(self, point: Point, layers: Sequence[int]) -> list[Tokens]:
        """Normed outputs of the blocks ``layers`` (counted from 0); for networks over groups of points."""
        raise UserError(f"{self.name_or_path} has no groups of points to segment parts by: use pa.Segmentation with it")

    def through(self, block: nn.Module, value: Any) -> Any:
        """``block(value)``; every backbone calls its blocks by this. See ``checkpointing``.

        A block whose BatchNorm is trained is never computed twice: its running statistics would move twice.
        """
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return block(value)
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in block.modules()):
            return block(value)
        return checkpoint(block, value, use_reentrant=False)  # restores the state of the random generators

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but BatchNorm with frozen weights stays in eval mode."""
        super().train(mode)
        keep_still(self)
        return self


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
