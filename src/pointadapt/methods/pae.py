"""PointATA's Point Align Embedder: tokens of a clip from the frozen tokenizer, motion and a correction added.

Its layers are not published. Form and counts are inferred. Legend: R rows (anchor
frames of all clips), G anchors, K neighbours, D channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapt.ops.frames import neighbour_rows, tube
from pointadapt.point import Point

#: Frames of a tube: that of the anchors, the one before, the one behind.
OFFSETS = (0, -1, 1)


class PAE(nn.Module):
    """f = f0 + m, f + U GELU(V LN(f)), with m = W2 GELU(W1 [f_-1 - f0 ; f_+1 - f0]); 149,152 parameters at D = 384.

    f_o is what the frozen 3D embedder makes of the same anchor's neighbours in frame t + o. W2 and U start at zero, so
    that the tokens are at first exactly those of the frozen tokenizer, frame by frame. Where nothing moves, m is zero
    at the start, and after training one vector for all tokens: both layers have biases.
    """

    def __init__(self, channels: int, motion: int = 64, hidden: int = 96) -> None:
        super().__init__()
        self.look, self.move = nn.Linear(2 * channels, motion), nn.Linear(motion, channels)
        self.norm = nn.LayerNorm(channels)
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        for last in (self.move, self.up):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @property
    def is_idle(self) -> bool:
        """Whether its tokens are the frozen tokenizer's: all that starts at zero is there still."""
        zeros = [value.any() for last in (self.move, self.up) for value in (last.weight, last.bias)]
        return not bool(torch.stack(zeros).any())  # asked in every pass: waits for the device once, not four times

    @staticmethod
    def observe(tokenizer: Any, groups: Sequence[Tensor], here: Tensor | None = None) -> Tensor:
        """[R, G, 3, D]: what the frozen embedder makes of the tube's groups (f0 first), each [R, G, K, 3].

        here  f0 [R, G, D] where it is known already
        """
        known = [] if here is None else [here]
        return torch.stack([*known, *(tokenizer.reduce(tokenizer.embed(g)) for g in groups[len(known) :])], 2)

    def forward(self, seen: Tensor) -> Tensor:
        """[..., 3, D] observations -> [..., D] tokens."""
        here, before, after = seen.unbind(-2)
        motion = self.move(F.gelu(self.look(torch.cat([before - here, after - here], -1))))
        feat = here + motion
        return feat + self.up(F.gelu(self.down(self.norm(feat))))


class NewEmbed(nn.Module):
    """Variant "replace": a trained copy of the tokenizer's small network with time as a fourth channel, whose weights
    start at zero; the maximum over the three frames' groups. 494,592 parameters on Point-MAE.

    Closer to ORCA's fresh embedder; not the frozen tokenizer at the start, unless nothing moves. Its BatchNorm keeps
    the pretrained statistics.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.embed = copy.deepcopy(tokenizer.embed).requires_grad_(True)
        self.reduce = copy.deepcopy(tokenizer.reduce).requires_grad_(True)
        old = self.embed.first[0]
        first = nn.Linear(4, old.out_features)
        if not (old.weight.is_meta or first.weight.is_meta):
            first.weight.data = torch.cat([old.weight.data, old.weight.new_zeros(old.out_features, 1)], 1)
            first.bias.data = old.bias.data.clone()
        self.embed.first[0] = first

    @property
    def is_idle(self) -> bool:
        return False

    def train(self, mode: bool = True) -> NewEmbed:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    @staticmethod
    def observe(tokenizer: Any, groups: Sequence[Tensor], here: Tensor | None = None) -> Tensor:
        """[R, G, 3, K, 4]: the tube's groups with the offset of their frame."""
        return torch.stack([F.pad(g, (0, 1), value=float(o)) for g, o in zip(groups, OFFSETS, strict=True)], 2)

    def forward(self, seen: Tensor) -> Tensor:
        """[..., 3, K, 4] -> [..., D] tokens."""
        return self.reduce(self.embed(seen.flatten(0, -4)).amax(-2)).unflatten(0, seen.shape[:-3])


def tube_of(point: Point, center: Tensor, clouds: Tensor, frames: int, size: int) -> list[Tensor]:
    """Per entry of OFFSETS the neighbours [R, G, K, 3] of the anchors center [R, G, 3] of frames ``clouds``."""
    found = []
    for offset in OFFSETS:
        other = neighbour_rows(point.num_clouds, frames, offset, center.device)[clouds]
        found.append(tube(point, center, other, size))
    return found


def sincos(time: Tensor, width: int) -> Tensor:
    """[..., width] sines and cosines of time 0..1 at half a turn to 32 turns over the clip (inferred)."""
    turns = torch.logspace(-1, 5, width // 2, base=2, device=time.device, dtype=time.dtype)
    angle = time[..., None] * turns * (2 * math.pi)
    return torch.cat([angle.sin(), angle.cos()], -1)
