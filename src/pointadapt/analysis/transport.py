"""Optimal-transport distance between two labelled sets of features, whose label sets need not be the same (OTDD).

    d((z, y), (z', y'))^2 = lam_x |z - z'|^2 + lam_y W2^2(features of class y, features of class y')

is the cost of moving a sample of A onto one of B; the distance is the cost of moving all of A onto B, a SQUARED
quantity. Source: Alvarez-Melis and Fusi 2020. That PointATA aligns with this distance is
known; the label distance, eps and standardisation are not published, so each is a field of :class:`Transport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pointadapt.errors import UserError
from pointadapt.ops.bures import gaussian_distances
from pointadapt.ops.sinkhorn import Coupling, entropic, entropic_self, exact

Inner = Literal["gaussian", "diag", "means", "exact"]


@dataclass(frozen=True)
class Transport:
    """How a distance is measured. Of PointATA's paper only the family (OTDD) is known; every default is inferred.

    lam_x, lam_y  weights of features and of labels in the cost (inferred: 1, the reference package's)
    inner         distance of labels (inferred: "gaussian"): Gaussians by means and covariances; "diag": covariances'
                  diagonals alone; "means": no covariances; "exact": optimal transport between the classes, slow
    eps           entropy in units of cost (blur^2); None: ``relative_eps`` times the median cost within the sets
                  (inferred). 0: exact transport, without entropy; some hundred samples, thousands if n = m
    debiased      subtract half of each set's distance to itself, so that equal sets are at 0
    half          costs |.|^2 / 2, as geomloss and the reference package have them: half the value, eps alike
    min_count     classes with fewer samples are left out (the reference package and Stage 1: 2)
    steps         most rounds of the solver; it stops at convergence
    dtype         of all computing; float32 takes half the memory and keeps about 4 digits
    """

    lam_x: float = 1.0
    lam_y: float = 1.0
    inner: Inner = "gaussian"
    eps: float | None = None
    relative_eps: float = 0.05
    debiased: bool = True
    half: bool = False
    min_count: int = 1
    steps: int = 50
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.inner not in ("gaussian", "diag", "means", "exact"):
            raise UserError(f'Transport.inner must be "gaussian", "diag", "means" or "exact", got {self.inner!r}')
        if min(self.lam_x, self.lam_y, self.relative_eps, 0 if self.eps is None else self.eps) < 0:
            raise UserError("Transport.lam_x, lam_y, eps and relative_eps must not be negative")


DEFAULT = Transport()


def dataset_distance(
    features_a: Any, labels_a: Any, features_b: Any, labels_b: Any, how: Transport = DEFAULT
) -> Tensor:
    """The squared distance of two labelled sets, a scalar; its gradient flows to features that require one.

    features  [n, D] and [m, D] tensors or arrays, taken as they are (standardised: :class:`Source`)
    labels    n and m integers or strings; the sets may share all classes or none, for names play no role

    The value is S_eps, the gradient that of the costs under fixed plans (envelope theorem). Raises UserError when a
    set is empty or not finite, or shapes do not fit.
    """
    a, b = labelled(features_a, labels_a, how, "a"), labelled(features_b, labels_b, how, "b")
    return between(a, b, how).to(torch.promote_types(_dtype(features_a), _dtype(features_b)))


@dataclass(frozen=True)
class Labelled:
    """Features [n, D] of one set in the dtype of the computation; ``index`` [n] points into its label ``names``."""

    features: Tensor
    index: Tensor
    names: list[Any]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def classes(self) -> list[Tensor]:
        """The features of each class, [n_y, D]."""
        return [self.features[self.index == y] for y in range(len(self.names))]

    def rows(self, rows: Tensor) -> Labelled:
        """The samples ``rows`` (indices or a mask) and the classes they have."""
        kept, index = self.index[rows].unique(return_inverse=True)
        return Labelled(self.features[rows], index, [self.names[y] for y in kept.tolist()])


def labelled(features: Any, labels: Any, how: Transport = DEFAULT, name: str = "") -> Labelled:
    """Checked and sorted into classes; those of fewer than ``how.min_count`` samples left out. Raises UserError."""
    feats, names = f"features{'_' * bool(name)}{name}", f"labels{'_' * bool(name)}{name}"
    features = torch.as_tensor(features).to(how.dtype)
    labels = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels).reshape(-1)
    if features.ndim != 2 or len(features) != len(labels):
        raise UserError(
            f"{feats} must be [n, D] and {names} [n], got {list(features.shape)} and {len(labels)} labels: "
            "give one row and one label for each sample"
        )
    if not bool(features.detach().isfinite().all()):
        raise UserError(f"{feats} hold values that are not finite: leave those samples out")
    found, index, count = np.unique(labels, return_inverse=True, return_counts=True)
    keep = count[index] >= how.min_count
    if not keep.any():
        raise UserError(f"{feats} have no class of at least {how.min_count} samples: give more, or a lower min_count")
    everything = Labelled(features, torch.from_numpy(index).to(features.device), found.tolist())
    return everything if keep.all() else everything.rows(torch.from_numpy(keep).to(features.device))


def label_distances(a: Labelled, b: Labelled | None = None, inner: Inner = "gaussian") -> Tensor:
    """[L, M] squared distances between the classes of A and of B (of A alone: symmetric, with a zero diagonal)."""
    ours, theirs = a.classes, a.classes if b is None else b.classes
    if inner == "gaussian":
        return gaussian_distances(ours, None if b is None else theirs)
    if inner == "exact":
        return torch.stack([torch.stack([_exact(x, y) for y in theirs]) for x in ours])
    table = _squares(torch.stack([x.mean(0) for x in ours]), torch.stack([y.mean(0) for y in theirs]))
    if inner == "diag":  # 1e-12: a root has no gradient at a class of one sample
        roots = [torch.stack([(x.var(0, correction=0) + 1e-12).sqrt() for x in side]) for side in (ours, theirs)]
        table = table + _squares(*roots)
    return table


def costs(a: Labelled, b: Labelled | None = None, how: Transport = DEFAULT) -> Tensor:
    """[n, m] cost of every pair of samples; of A with itself when there is no B."""
    other = a if b is None else b
    cost = how.lam_x * _squares(a.features, other.features)
    if how.lam_y:
        cost = cost + how.lam_y * label_distances(a, b, how.inner)[a.index][:, other.index]
    return cost / 2 if how.half else cost


def between(a: Labelled, b: Labelled, how: Transport = DEFAULT, within: Within | None = None) -> Tensor:
    """As :func:`dataset_distance`, of sets already sorted, in ``how.dtype``; ``within``: what is known of A."""
    if a.features.shape[1] != b.features.shape[1]:
        raise UserError(
            f"features_a have {a.features.shape[1]} dimensions, features_b {b.features.shape[1]}: "
            "take both from the same model"
        )
    cost, selves = costs(a, b, how), []
    if how.eps != 0 and (how.debiased or how.eps is None):
        selves = [within or Within(costs(a, None, how)), Within(costs(b, None, how))]
    eps = _eps([own.cost for own in selves], cost, how) if how.eps is None else how.eps
    found = entropic(cost.detach(), eps, how.steps) if eps else exact(cost.detach())
    value, share = found.value, (found.plan * cost).sum()
    for own in selves if how.debiased else ():
        solved = own.solved(eps, how.steps)
        value = value - solved.value / 2
        share = share - (solved.plan * own.cost).sum() / 2
    if how.debiased:
        value = value.clamp(min=0)  # rounding leaves equal sets a hair below
    return value + (share - share.detach())


@dataclass(frozen=True)
class Within:
    """The costs [n, n] within one set, and their plan once it was asked for: a fixed source is solved once."""

    cost: Tensor
    plans: dict[float, Coupling] = field(default_factory=dict)

    def solved(self, eps: float, steps: int) -> Coupling:
        if eps not in self.plans:
            self.plans[eps] = entropic_self(self.cost.detach(), eps, steps)
        return self.plans[eps]


@dataclass(frozen=True)
class Source:
    """A fixed labelled set that others are measured against, or aligned to: made by :meth:`of`.

    Holds what depends on the source alone: the mean and scale that standardise every set's features, the costs within,
    and eps, so that a falling distance means nearer sets and not another unit.
    """

    data: Labelled
    mean: Tensor
    scale: Tensor
    how: Transport
    within: Within

    @classmethod
    def of(cls, features: Any, labels: Any, how: Transport = DEFAULT, standardise: bool = True) -> Source:
        """standardise: subtract the source's mean, divide by the root mean square of its std (inferred)."""
        raw = labelled(features, labels, how)
        feats = raw.features.detach()
        mean, scale = torch.zeros_like(feats[0]), feats.new_ones(())
        if standardise:
            mean, scale = feats.mean(0), feats.var(0, correction=0).mean().sqrt()
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        data = replace(raw, features=(feats - mean) / scale)
        within = Within(costs(data, None, how))
        eps = _eps([within.cost], within.cost, how) if how.eps is None else how.eps
        return cls(data, mean, scale, replace(how, eps=eps), within)

    def standard(self, features: Any, labels: Any) -> Labelled:
        """Another set in the source's units."""
        raw = labelled(features, labels, self.how)
        return replace(raw, features=(raw.features - self.mean) / self.scale)

    def distance(self, features: Any, labels: Any) -> Tensor:
        """The full objective: S_eps(source, set), with a gradient to the features."""
        return between(self.data, self.standard(features, labels), self.how, self.within)

    def classwise(self, features: Any, labels: Any) -> Tensor:
        """ORCA's objective: the mean over the set's samples of S_eps(source, the sample's class).

        It does not vanish where the set equals the source, since every class is asked to cover the whole of it.
        """
        data = self.standard(features, labels)
        parts = [data.rows(data.index == y) for y in range(len(data.names))]
        terms = [len(part) / len(data) * between(self.data, part, self.how, self.within) for part in parts]
        return torch.stack(terms).sum()

    def batch(self, count: int, seed: int) -> Source:
        """A class-balanced part of the source, in the same units and with the same eps."""
        rows = torch.from_numpy(balanced(self.data.index.cpu().numpy(), count, seed)).to(self.mean.device)
        data = self.data.rows(rows)
        return replace(self, data=data, within=Within(costs(data, None, self.how)))


def balanced(labels: Any, count: int, seed: int) -> NDArray[np.int64]:
    """Sorted rows of ``count`` samples (or all), as evenly over the classes as they allow, drawn by ``seed``."""
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # the how-manieth of its class each sample comes
    for name in np.unique(labels):
        rows = order[labels[order] == name]
        turn[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:count])


def minibatch_distance(
    source: Source, features: Any, labels: Any, batches: int = 8, sizes: tuple[int, int] = (256, 80), seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of the distance over class-balanced batches of ``sizes`` (source, set).

    It lies above the distance of the whole sets, the more the smaller the batches: two batches of the SAME set have a
    positive distance. Compare only figures of the same sizes, and report progress on one fixed part.
    """
    names = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    values = []
    for turn in range(batches):
        rows = balanced(names, sizes[1], seed + turn)
        part = source.batch(sizes[0], seed + turn)
        values.append(float(part.distance(torch.as_tensor(features).detach()[rows], names[rows])))
    return float(np.mean(values)), float(np.std(values))


def neighbour_accuracy(features: Any, labels: Any, neighbours: int = 5) -> float:
    """Share of samples whose nearest others vote for their class: alignment must not scramble the classes.

    Of classes with equally many votes the one with the nearer neighbour wins.
    """
    data = labelled(features, labels)
    k = min(neighbours, len(data) - 1)
    if k < 1:
        raise UserError("features hold a single sample: a neighbour accuracy needs at least two")
    distance = _squares(data.features, data.features).detach().fill_diagonal_(torch.inf)
    near = data.index[distance.topk(k, largest=False, sorted=True).indices]  # [n, k]
    votes = torch.zeros(len(data), len(data.names), dtype=data.features.dtype, device=near.device)
    weight = 1 - torch.arange(k, device=near.device, dtype=votes.dtype) * 1e-3
    votes.scatter_add_(1, near, weight.expand_as(near).contiguous())
    return float((votes.argmax(1) == data.index).double().mean())


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """[n, m] squared distances; around the common mean, so that an offset costs no digits."""
    middle = x.detach().mean(0)
    a, b = x - middle, y - middle
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def _exact(x: Tensor, y: Tensor) -> Tensor:
    cost = _squares(x, y)
    return (exact(cost.detach()).plan * cost).sum()


def _eps(selves: Sequence[Tensor], cost: Tensor, how: Transport) -> float:
    """Symmetric in the sets; where both are single points, of the costs between them."""
    typical = sum(float(own.detach().median()) for own in selves) / len(selves)
    return how.relative_eps * (typical or float(cost.detach().mean())) or 1.0


def _dtype(features: Any) -> torch.dtype:
    found = torch.as_tensor(features).dtype
    return found if found.is_floating_point else torch.float64
