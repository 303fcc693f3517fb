"""Layers over many rows in blocks that fit a processor's cache: gather and weigh, residual bottleneck, pooling.

A batch of patches has rows by the hundred thousand; step by step over all of them, a layer waits for memory and for
fresh pages, not for arithmetic. These functions take all steps on one block of rows before the next, keep only what the
backward pass cannot make again cheaply, and give what the plain modules in their names would (tests/ops). BatchNorm
needs its statistics first, so each has one sweep more in training. Rows travel as lists of blocks.
Legend: S patches of K rows, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Numbers in a block: 1 MB, so that a handful of blocks stays in the cache of one core.
BLOCK = 1 << 18


def cuts(near: Tensor, channels: int) -> list[slice]:
    """The patches [S, K] of rows of ``channels`` numbers, cut into blocks; a GPU takes all at once."""
    patches, size = near.shape
    step = patches if near.device.type != "cpu" else max(1, BLOCK // (size * channels))
    return [slice(start, min(start + step, patches)) for start in range(0, patches, step)]


class Sums:
    """Sum and sum of squares of rows, both about the first block's mean, which keeps them exact."""

    def __init__(self) -> None:
        self.rows = 0
        self.shift: Any = None
        self.total: Any = 0.0
        self.square: Any = 0.0

    def add(self, block: Tensor) -> None:
        if self.shift is None:
            self.shift = block.mean(0)
        block = block - self.shift
        self.rows += len(block)
        self.total = self.total + block.sum(0)
        self.square = self.square + block.square_().sum(0)

    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.rows
        return self.shift + mean, (self.square / self.rows - mean * mean).clamp_min(0)


def running(norm: nn.BatchNorm1d, what: str) -> Tensor:
    return norm.get_buffer(f"running_{what}")


class Scaling:
    """What BatchNorm does to rows: x * scale + shift. In training the statistics are the batch's."""

    def __init__(self, norm: nn.BatchNorm1d, sums: Sums | None) -> None:
        weight, bias = norm.weight.detach(), norm.bias.detach()
        if sums is None:
            # running statistics move on; what backward needs must not
            self.mean, variance, self.rows = running(norm, "mean").clone(), running(norm, "var"), 0
        else:
            self.mean, variance = sums.moments()
            self.rows, pace = sums.rows, norm.momentum or 0.0
            norm.get_buffer("num_batches_tracked").add_(1)
            running(norm, "mean").lerp_(self.mean, pace)
            running(norm, "var").lerp_(variance * (self.rows / max(self.rows - 1, 1)), pace)
        self.inverse = (variance + norm.eps).rsqrt()
        self.scale = weight * self.inverse
        self.shift = bias - self.mean * self.scale

    def __call__(self, block: Tensor) -> Tensor:
        return torch.addcmul(self.shift, block, self.scale)


class Back:
    """The backward pass through a :class:`Scaling`: sums over all rows first, then each block's gradient."""

    def __init__(self, scaling: Scaling) -> None:
        self.scaling = scaling
        self.total: Any = 0.0
        self.product: Any = 0.0

    def add(self, grad: Tensor, block: Tensor) -> None:
        self.total = self.total + grad.sum(0)
        self.product = self.product + (block - self.scaling.mean).mul_(grad).sum(0)

    def ready(self) -> Back:
        s = self.scaling
        if s.rows:
            self.slope = -s.scale * s.inverse.square() * self.product / s.rows
            self.offset = -s.scale * self.total / s.rows - self.slope * s.mean
        return self

    def __call__(self, grad: Tensor, block: Tensor) -> Tensor:
        if not self.scaling.rows:
            return grad * self.scaling.scale
        out = torch.addcmul(self.offset, grad, self.scaling.scale)
        return out.addcmul_(block, self.slope)

    @property
    def weight(self) -> Tensor:
        return self.product * self.scaling.inverse


def relu_back(grad: Tensor, out: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, out, 0)


class GatherWeigh(torch.autograd.Function):
    """v = (relu(norm(neighbor[near] + center)) + code) * code, patch by patch."""

    @staticmethod
    def forward(ctx, neighbor, center, weight, bias, near, codes, norm, is_batch) -> Any:  # type: ignore[override]
        ctx.near, ctx.codes, ctx.parts = near, codes, cuts(near, neighbor.shape[1])
        ctx.save_for_backward(neighbor, center)
        sums = None
        if is_batch:
            sums = Sums()
            for part in ctx.parts:
                sums.add(gathered(neighbor, center, near, part))
        ctx.scaling = Scaling(norm, sums)
        return tuple(
            ctx.scaling(gathered(neighbor, center, near, part)).relu_().add_(code).mul_(code)
            for part, code in zip(ctx.parts, codes, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads) -> Any:
        neighbor, center = ctx.saved_tensors
        back, kept = Back(ctx.scaling), []
        for part, code, grad in zip(ctx.parts, ctx.codes, grads, strict=True):
            values = gathered(neighbor, center, ctx.near, part)
            grad = relu_back(grad * code, ctx.scaling(values))
            back.add(grad, values)
            kept.append(grad)
        back.ready()
        to_neighbor, to_center = torch.zeros_like(neighbor), torch.empty_like(center)
        for part, grad in zip(ctx.parts, kept, strict=True):
            grad = back(grad, gathered(neighbor, center, ctx.near, part))
            to_neighbor.index_add_(0, ctx.near[part].flatten(), grad)
            to_center[part] = grad.unflatten(0, (-1, ctx.near.shape[1])).sum(1)
        return to_neighbor, to_center, back.weight, back.total, None, None, None, None


def gathered(neighbor: Tensor, center: Tensor, near: Tensor, part: slice) -> Tensor:
    """[s K, C] rows of the patches in ``part``: their neighbours' values plus their centres'."""
    rows = near[part]
    values = neighbor.index_select(0, rows.flatten())
    values.view(*rows.shape, -1).add_(center[part, None])
    return values


class Bottleneck(torch.autograd.Function):
    """relu(x + norm2(up(relu(norm1(down(x)))))) for blocks of rows x."""

    @staticmethod
    def forward(ctx, w1, b1, g1, c1, w2, b2, g2, c2, norm1, norm2, is_batch, *blocks) -> Any:  # type: ignore[override]
        inner, sums = [], Sums() if is_batch else None
        for block in blocks:
            inner.append(torch.addmm(b1, block, w1.t()))
            if sums is not None:
                sums.add(inner[-1])
        ctx.first = first = Scaling(norm1, sums)
        outer, sums = [], Sums() if is_batch else None
        for block in inner:
            outer.append(torch.addmm(b2, first(block).relu_(), w2.t()))
            if sums is not None:
                sums.add(outer[-1])
        ctx.second = second = Scaling(norm2, sums)
        out = tuple(second(o).add_(block).relu_() for o, block in zip(outer, blocks, strict=True))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(w1, w2, *blocks, *inner, *outer, *out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads) -> Any:
        w1, w2, *saved = ctx.saved_tensors
        n = len(grads)
        blocks, inner, outer, out = saved[:n], saved[n : 2 * n], saved[2 * n : 3 * n], saved[3 * n :]
        second, kept = Back(ctx.second), []
        for grad, o, result in zip(grads, outer, out, strict=True):
            kept.append(relu_back(grad, result))
            second.add(kept[-1], o)
        second.ready()
        first, middle = Back(ctx.first), []
        to_w2, to_b2 = torch.zeros_like(w2), torch.zeros_like(w2[:, 0])
        for grad, i, o in zip(kept, inner, outer, strict=True):
            hidden = ctx.first(i).relu_()
            grad = second(grad, o)
            to_w2.addmm_(grad.t(), hidden)
            to_b2 += grad.sum(0)
            middle.append(relu_back(grad @ w2, hidden))
            first.add(middle[-1], i)
        first.ready()
        to_w1, to_b1, to_blocks = torch.zeros_like(w1), torch.zeros_like(w1[:, 0]), []
        for residual, grad, i, block in zip(kept, middle, inner, blocks, strict=True):
            grad = first(grad, i)
            to_w1.addmm_(grad.t(), block)
            to_b1 += grad.sum(0)
            to_blocks.append(residual.addmm_(grad, w1))
        weights = (to_w1, to_b1, first.weight, first.total, to_w2, to_b2, second.weight, second.total)
        return *weights, None, None, None, *to_blocks


class MaxMean(torch.autograd.Function):
    """[S, C]: maximum plus mean over the K rows of each patch; equal maxima share the gradient."""

    @staticmethod
    def forward(ctx, size, *blocks) -> Tensor:  # type: ignore[override]
        ctx.size = size
        patches = [block.unflatten(0, (-1, size)) for block in blocks]
        largest = torch.cat([p.amax(1) for p in patches])
        ctx.save_for_backward(largest, *blocks)
        return largest + torch.cat([p.mean(1) for p in patches])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad) -> Any:
        largest, *blocks = ctx.saved_tensors
        out, start = [], 0
        for block in blocks:
            patch = block.unflatten(0, (-1, ctx.size))
            own = slice(start, start + len(patch))
            start = own.stop
            share = (patch - largest[own, None]).sign_().add_(1)  # 1 at the maximum, else 0
            share.mul_((grad[own] / share.sum(1))[:, None]).add_((grad[own] / ctx.size)[:, None])
            out.append(share.flatten(0, 1))
        return None, *out


def gather_weigh(
    neighbor: Tensor, center: Tensor, near: Tensor, codes: Sequence[Tensor], norm: nn.BatchNorm1d
) -> tuple[Tensor, ...]:
    """Blocks of (relu(norm(neighbor[near] + center)) + code) * code.

    neighbor [n, C], center [S, C], near [S, K] rows of neighbor, codes one for each of :func:`cuts`, without gradient.
    """
    return GatherWeigh.apply(neighbor, center, norm.weight, norm.bias, near, codes, norm, norm.training)


def bottleneck(
    blocks: Sequence[Tensor], down: nn.Linear, norm1: nn.BatchNorm1d, up: nn.Linear, norm2: nn.BatchNorm1d
) -> tuple[Tensor, ...]:
    """relu(x + norm2(up(relu(norm1(down(x)))))) for blocks of rows."""
    weights = (down.weight, down.bias, norm1.weight, norm1.bias, up.weight, up.bias, norm2.weight, norm2.bias)
    return Bottleneck.apply(*weights, norm1, norm2, norm1.training, *blocks)


def max_mean(blocks: Sequence[Tensor], size: int) -> Tensor:
    """[S, C]: maximum plus mean over each patch's ``size`` rows."""
    return MaxMean.apply(size, *blocks)
