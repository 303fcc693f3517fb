"""The maximum along a dimension, with a backward pass that a CPU computes in vectors.

torch's own compares into booleans and converts those number by number: in bfloat16 that took half of the training step
of methods that look at every group of points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Amax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feat: Tensor, dim: int) -> Tensor:  # type: ignore[override]
        out = feat.amax(dim, keepdim=True)
        ctx.save_for_backward(feat, out)
        ctx.dim = dim
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        feat, out = ctx.saved_tensors
        share = (feat - out).sign_().add_(1)  # 1 at the maximum, else 0
        return share.mul_(grad / share.sum(ctx.dim, keepdim=True)), None


def amax(feat: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """``feat.amax(dim, keepdim)``; equal maxima share the gradient, as in torch's."""
    if feat.device.type == "cpu" and feat.requires_grad and torch.is_grad_enabled():
        out = Amax.apply(feat, dim)
        return out if keepdim else out.squeeze(dim)
    return feat.amax(dim, keepdim)
