"""Windows along a space-filling curve, and attention inside them through scaled_dot_product_attention.

A window is ``size`` consecutive points of one cloud in curve order. The last window of a cloud is filled up
with the points just before it, so that as a set it is the cloud's last ``size`` points; every point's output
is read from the window it belongs to. So do the official networks with flash attention; without it their windows
shrink to the smallest cloud of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from pointadapt.ops.frozen import eager_cpu, no_graph
from pointadapt.ops.order import curve_order
from pointadapt.point import Point

#: Rows that are attended to at once where blocks help.
ROWS = 8192


@dataclass(frozen=True)
class Windows:
    """Where the points of a batch attend.

    members  one [P, W] int64 tensor of row numbers for each window length W that occurs
    own      [N] int64: the place of each row's output in the concatenation of all windows
    again    [E] int64: the places of rows that fill up a last window; each has its output in another one
    """

    members: list[Tensor]
    own: Tensor
    again: Tensor

    @cached_property
    def slots(self) -> Tensor:
        """[S] int64: the row in every place of the concatenation of all windows."""
        return torch.cat([members.flatten() for members in self.members])

    def fill(self, rows: Tensor) -> Tensor:
        """[S, C]: rows [N, C] in the places of all windows."""

        def back(grad: Tensor) -> Tensor:
            filling = grad.index_select(0, self.again)
            return grad.index_select(0, self.own).index_add_(0, self.slots[self.again], filling)

        return Gather.apply(rows, self.slots, back)

    def pick(self, slots: Tensor) -> Tensor:
        """[N, C]: each row's own place out of [S, C]."""

        def back(grad: Tensor) -> Tensor:
            return grad.index_select(0, self.slots).index_fill_(0, self.again, 0)

        return Gather.apply(slots, self.own, back)


def windows(point: Point, curve: str, size: int, shrink: bool = False) -> Windows:
    """The windows of every cloud; once per (coordinates, curve, size).

    A cloud of at most ``size`` points is one window (the layout of the official flash path, independent of
    the batch). ``shrink``: the official CPU path, where ``size`` becomes the smallest cloud of the batch.
    """
    if shrink:
        size = min([size, *(n for n in point.counts if n > 0)])
    return point.remember(("windows", curve, size), lambda: make_windows(point, curve, size))


def make_windows(point: Point, curve: str, size: int) -> Windows:
    order, inverse = curve_order(point, curve)
    device = order.device
    groups: dict[int, list[tuple[int, int]]] = {}  # window length -> (first position, points) of its clouds
    start = 0
    for count in point.counts:
        if count:
            groups.setdefault(min(count, size), []).append((start, count))
        start += count
    members, again, own = [], [order[:0]], torch.empty_like(order)
    filled = 0  # slots handed out so far
    for length, clouds in groups.items():
        slots = []
        for start, count in clouds:
            position = torch.arange(-(-count // length) * length, device=device)
            position[count:] -= length
            slots.append(start + position)
            own[start : start + count] = filled + torch.arange(count, device=device)
            again.append(torch.arange(filled + count, filled + len(position), device=device))
            filled += len(position)
        members.append(order[torch.cat(slots)].view(-1, length))
    return Windows(members, own[inverse], torch.cat(again))


class Gather(torch.autograd.Function):
    """[len(index), C]: ``rows[index]``, whose gradient is ``back(gradient)``.

    Where that gathers, too, it takes a fraction of adding up row by row, and a GPU finds the same each time.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        ctx.back = back
        return rows.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return ctx.back(grad), None, None


def gathered(qkv: Tensor, where: Windows) -> Iterable[tuple[Tensor, Tensor]]:
    """(members [P, W], their rows [P * W, 3C]) of all windows.

    Where nothing is kept for a gradient, in blocks that stay in a processor's cache.
    """
    if not no_graph(qkv):
        rows, sizes = where.fill(qkv), [members.numel() for members in where.members]
        return zip(where.members, [rows] if len(sizes) == 1 else rows.split(sizes), strict=True)
    parts = where.members
    if eager_cpu(qkv):
        parts = [part for members in parts for part in members.split(max(1, ROWS // members.shape[1]))]
    return ((members, qkv.index_select(0, members.reshape(-1))) for members in parts)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """scaled_dot_product_attention; in float32 where a gradient of bfloat16 is needed on a CPU, where the fused
    kernel's backward pass is four times slower."""
    kept = query.dtype
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    slow = query.device.type == "cpu" and kept == torch.bfloat16 and needs_grad
    if slow:
        query, key, value = query.float(), key.float(), value.float()
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    with torch.autocast("cpu", enabled=False) if slow else nullcontext():
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, dropout_p=dropout)
    return out.to(kept) if slow else out


def quick_attention(feat: Tensor) -> AbstractContextManager[Any]:
    """For modules that call scaled_dot_product_attention themselves, on short sequences: plain products instead of that
    slow backward pass."""
    slow = feat.device.type == "cpu" and feat.requires_grad and torch.is_grad_enabled()
    half = torch.is_autocast_enabled("cpu") or feat.dtype == torch.bfloat16
    return sdpa_kernel(SDPBackend.MATH) if slow and half else nullcontext()


def window_attention(
    qkv: Tensor,
    heads: int,
    where: Windows,
    scale: float | None = None,
    bias=None,
    prompt: tuple[Tensor, Tensor] | None = None,
    batch: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """[N, C]: softmax attention of every point over the points of its window.

    qkv [N, 3C], laid out (3, H, D); scale None = D ** -0.5;
    bias(members [P, W]) -> [P, H, W, W], added to the logits (relative positions);
    prompt (keys, values), both [T, C]: extra tokens that every window sees, e.g. prefix tuning; or both [B, T, C],
    those of its cloud, which ``batch`` [N] tells.
    """
    if not where.members:
        return qkv[:, : qkv.shape[1] // 3]
    outputs = []
    for members, rows in gathered(qkv, where):
        # [P, W, 3, H, D] -> q, k, v [P, H, W, D]
        query, key, value = rows.view(*members.shape, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        logits = None if bias is None else bias(members).to(query.dtype)
        if prompt is not None:
            tokens = []
            for extra in prompt:
                if extra.ndim == 3:
                    assert batch is not None
                    extra = extra[batch[members[:, 0]]]  # [P, T, C]
                split = extra.to(key.dtype).unflatten(-1, (heads, -1)).transpose(-3, -2)  # [(P,) H, T, D]
                tokens.append(split.expand(len(members), -1, -1, -1))
            key, value = torch.cat([tokens[0], key], 2), torch.cat([tokens[1], value], 2)
            if logits is not None:
                logits = F.pad(logits, (tokens[0].shape[2], 0))
        out = attend(query, key, value, mask=logits, scale=scale, dropout=dropout)
        outputs.append(out.transpose(1, 2).reshape(-1, qkv.shape[1] // 3))  # [P * W, C]
    return where.pick(outputs[0] if len(outputs) == 1 else torch.cat(outputs))
