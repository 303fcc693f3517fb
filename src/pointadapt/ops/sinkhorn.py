"""Optimal transport between two sets of equally weighted samples, given the cost of every pair.

The entropic problem, with weights a = 1/n and b = 1/m,

    OT_eps(C) = min_pi <pi, C> + eps KL(pi | a b^T)    has the value    mean f + mean g

at its optimal potentials f, g (Feydy et al. 2019). It is solved in the log domain while eps
falls to its final value, then on the plan itself. Nothing here records gradients: by the envelope theorem <plan, C>
with the plan held fixed has the value's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FALL = 0.5  #: from the largest cost down, eps is halved, one log-domain update beginning each level
SCALINGS = 10  #: Sinkhorn scalings of a plan before it is made anew from the potentials
WARM, WARM_STEPS = 1e-2, 3  #: marginal error and rounds at a level before the last
CG_STEPS = 200  #: conjugate-gradient steps in one Newton step
LINE_SEARCH = (1.0, 0.3, 0.1, 0.03, 0.01)  #: parts of a Newton step that are tried until one raises the dual value
DAMPING = 0.01  #: of a Newton step, times the marginal error: bounds the step where the plan falls apart into blocks


@dataclass(frozen=True)
class Coupling:
    """A transport plan and how well it is solved.

    plan    [n, m], sums to one
    value   scalar: OT_eps(C), or the exact cost; a lower bound of it while error > 0
    error   sum of absolute differences between the plan's marginals and 1/n, 1/m
    steps   rounds of updates at the final eps
    """

    plan: Tensor
    value: Tensor
    error: float
    steps: int


@torch.no_grad()
def entropic(cost: Tensor, eps: float, steps: int = 50, tolerance: float | None = None) -> Coupling:
    """The entropic plan of cost [n, m] at eps > 0, in units of cost.

    Stops when the marginal error is below ``tolerance`` (default: what the dtype can hold), or after ``steps`` rounds
    of ten scalings and a Newton step, as far as it gains. (Plain Sinkhorn needs updates in the order of max C / eps.)
    """
    tolerance = rounding(cost, eps) if tolerance is None else tolerance
    f, g = cost.new_zeros(len(cost)), cost.new_zeros(cost.shape[1])
    level = max(float(cost.max()), eps)
    while level > eps:
        f = softmin(cost - g, level)
        f, g, *_ = _solve(cost, f, g, level, WARM_STEPS, WARM)
        level *= FALL
    f = softmin(cost - g, eps)
    f, g, plan, error, step = _solve(cost, f, g, eps, steps, tolerance)
    return Coupling(plan, f.mean() + g.mean(), error, step)


@torch.no_grad()
def entropic_self(cost: Tensor, eps: float, steps: int = 50, tolerance: float | None = None) -> Coupling:
    """As :func:`entropic` for a symmetric cost [n, n], where f = g: the averaged update is quick without Newton."""
    tolerance = rounding(cost, eps) if tolerance is None else tolerance
    f = cost.new_zeros(len(cost))
    level = max(float(cost.max()), eps)
    while level > eps:
        f = (f + softmin(cost - f, level)) / 2
        level *= FALL
    f = (f + softmin(cost - f, eps)) / 2
    step = 0
    while True:
        plan = _plan(cost, f, f, eps)
        error = _error(plan)
        if error <= tolerance or step == steps:
            return Coupling(plan, 2 * f.mean() - eps * (plan.sum() - 1), error, step)
        step += 1
        u = torch.ones_like(f)
        for _ in range(SCALINGS):
            u = (u / (len(f) * (plan @ u))).sqrt()
        f = f + eps * u.log() if bool((u.isfinite() & (u > 0)).all()) else (f + softmin(cost - f, eps)) / 2


@torch.no_grad()
def exact(cost: Tensor) -> Coupling:
    """The plan without entropy, on the CPU: an assignment for n = m, else a linear program (some thousand pairs)."""
    from scipy import optimize, sparse

    n, m = cost.shape
    table = cost.double().cpu().numpy()
    if n == m:
        plan = np.zeros((n, n))
        plan[optimize.linear_sum_assignment(table)] = 1 / n
    else:
        rows = sparse.kron(sparse.eye(n), np.ones((1, m)))
        columns = sparse.kron(np.ones((1, n)), sparse.eye(m))
        weights = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
        found = optimize.linprog(table.ravel(), A_eq=sparse.vstack([rows, columns]).tocsr(), b_eq=weights)
        plan = found.x.reshape(n, m)
    solved = torch.from_numpy(plan).to(cost)
    return Coupling(solved, (solved * cost).sum(), _error(solved), 1)


def softmin(cost: Tensor, eps: float) -> Tensor:
    """[n]: smooth minimum of each row of [n, m], the mean weighed as 1/m; the row's minimum as eps goes to 0."""
    return -eps * ((cost / -eps).logsumexp(1) - np.log(cost.shape[1]))


def rounding(cost: Tensor, eps: float) -> float:
    """The marginal error that rounding leaves: potentials of the size of the cost are divided by eps."""
    return 64 * torch.finfo(cost.dtype).eps * (1 + float(cost.max()) / eps)


def _solve(
    cost: Tensor, f: Tensor, g: Tensor, eps: float, steps: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, float, int]:
    """Rounds of scalings and a Newton step: f, g, the plan, its error and the number of rounds."""
    step = 0
    while True:
        f, g, plan = _fit_columns(cost, f, g, eps)
        error = _error(plan)
        if error <= tolerance or step == steps:
            return f, g, plan, error, step
        step += 1
        u, v = _scaled(plan)
        if not bool((u.isfinite() & (u > 0)).all() and (v.isfinite() & (v > 0)).all()):
            f = softmin(cost - g, eps)  # a row of the plan has underflown
            continue
        f, g = f + eps * u.log(), g + eps * v.log()
        plan.mul_(v).mul_(u[:, None])
        error = _error(plan)
        if error > tolerance:
            df, dg = _newton(plan, error * DAMPING)
            best = float(f.mean() + g.mean())
            noise = 16 * torch.finfo(cost.dtype).eps * abs(best)
            for part in LINE_SEARCH:
                f2, g2, tried = _fit_columns(cost, f + eps * part * df, g + eps * part * dg, eps)
                gain = float(f2.mean() + g2.mean()) - best
                if gain > noise or (gain >= -noise and _error(tried) < error):
                    f, g = f2, g2
                    break


def _plan(cost: Tensor, f: Tensor, g: Tensor, eps: float) -> Tensor:
    return ((f[:, None] + g - cost) / eps).exp_().div_(cost.numel())


def _fit_columns(cost: Tensor, f: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """f, g and the plan, with g such that every column of the plan sums to 1/m."""
    plan = _plan(cost, f, g, eps)
    total = plan.sum(0)
    if bool((total.isfinite() & (total > 0)).all()):
        factor = 1 / (len(g) * total)
        return f, g + eps * factor.log(), plan.mul_(factor)
    g = softmin((cost - f[:, None]).T, eps)
    return f, g, _plan(cost, f, g, eps)


def _error(plan: Tensor) -> float:
    n, m = plan.shape
    return float((plan.sum(1) - 1 / n).abs().sum() + (plan.sum(0) - 1 / m).abs().sum())


def _scaled(plan: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of rows and columns after some Sinkhorn scalings of the plan."""
    n, m = plan.shape
    v = plan.new_ones(m)
    for _ in range(SCALINGS):
        u = 1 / (n * (plan @ v))
        v = 1 / (m * (plan.T @ u))
    return u, v


def _newton(plan: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """A Newton step of the dual in units of eps for a plan whose columns are right.

    The Hessian in f alone, diag(pi 1) - pi diag(1/b) pi^T, is singular along constants, which change nothing.
    """
    n, m = plan.shape
    row = plan.sum(1)
    want = 1 / n - row
    d = torch.zeros_like(row)
    left = want.clone()
    ahead = left / row
    along, first = ahead, float(left @ ahead)
    size = first
    for _ in range(CG_STEPS):
        if size <= 1e-6 * first:
            break
        image = (1 + damping) * row * along - plan @ (m * (plan.T @ along))
        curve = float(along @ image)
        if curve <= 0:  # a flat direction, to rounding
            break
        d = d + size / curve * along
        left = left - size / curve * image
        ahead = left / row
        size, before = float(left @ ahead), size
        along = ahead + size / before * along
    return d, -m * (plan.T @ d)
