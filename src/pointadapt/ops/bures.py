"""Squared Wasserstein distances between classes of features, each class a Gaussian, without D x D covariances.

W2^2 = |m - m'|^2 + tr S + tr S' - 2 tr (S^1/2 S' S^1/2)^1/2. With centred samples A = (X - m) / sqrt(n) the last trace
is the nuclear norm of A A'^T, an n x n' matrix: exact for singular covariances, finite gradients without a ridge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def gaussian_distances(classes_a: Sequence[Tensor], classes_b: Sequence[Tensor] | None = None) -> Tensor:
    """[L, M] W2^2 between classes, each a tensor [n_y, D] of features with n_y >= 1; of classes_a alone if b is None.

    Covariances are divided by n_y, so that of a single sample is zero. A distance of a class to itself is exactly zero.
    """
    mean_a, spread_a = _moments(classes_a)
    mean_b, spread_b = (mean_a, spread_a) if classes_b is None else _moments(classes_b)
    padded = pad_sequence(spread_b, batch_first=True)  # [M, r, D]; rows of zeros add nothing to a nuclear norm
    traces_b = padded.square().sum((1, 2))
    rows = []
    for y, spread in enumerate(spread_a):
        first = y + 1 if classes_b is None else 0  # the upper triangle is enough
        between = (mean_a[y] - mean_b[first:]).square().sum(1)
        overlap = nuclear_norm(spread @ padded[first:].mT)
        row = between + (spread.square().sum() + traces_b[first:] - 2 * overlap).clamp(min=0)
        rows.append(torch.cat([row.new_zeros(first), row]))
    table = torch.stack(rows)
    return table if classes_b is not None else table + table.T


def nuclear_norm(matrix: Tensor) -> Tensor:
    """[...] sums of the singular values of [..., n, m].

    The gradient is the polar factor over the directions that have a singular value, which is finite for any matrix.
    """
    if not matrix.requires_grad or matrix.numel() == 0:
        return torch.linalg.svdvals(matrix).sum(-1)
    u, s, vh = torch.linalg.svd(matrix.detach(), full_matrices=False)
    floor = s[..., :1] * (max(matrix.shape[-2:]) * torch.finfo(s.dtype).eps)
    return (((u * (s > floor)[..., None, :]) @ vh) * matrix).sum((-2, -1))


def _moments(classes: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Means [L, D], and per class a matrix of at most D rows with A^T A = the class's covariance."""
    means = torch.stack([x.mean(0) for x in classes])
    spreads = [(x - mean) / len(x) ** 0.5 for x, mean in zip(classes, means, strict=True)]
    # More samples than dimensions: rotate them into D rows. The rotation may be held fixed for gradients, because
    # neither trace nor nuclear norm depends on it.
    return means, [a if len(a) <= a.shape[1] else torch.linalg.qr(a.detach())[0].T @ a for a in spreads]
