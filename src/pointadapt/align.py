"""Stage 1 of PointATA: train the Point Align Embedder so that clips look like the shapes a frozen model was trained on.

The distance of data sets (analysis/transport.py) between the target's training split and a labelled set of shapes
falls; no transformer block runs. That there is such a stage and such a distance is published, everything else inferred.
Never give it clips of a validation or test split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pointadapt.align_samples import (
    Observed,
    PyramidTokens,
    Unit,
    clip_tokens,
    observe,
    observe_pyramid,
    place,
    pyramid_of,
)
from pointadapt.analysis.distance import Features
from pointadapt.analysis.folder_features import PROCEDURAL, folder_features
from pointadapt.analysis.transport import Source, Transport, balanced, neighbour_accuracy
from pointadapt.errors import UserError
from pointadapt.methods.pointata import new_pae
from pointadapt.ops.frames import PURITY
from pointadapt.point import Point


@dataclass(frozen=True)
class Align:
    """How Stage 1 trains (all inferred; the objective's family, OTDD, is known).

    objective     "full": the distance itself, on class-balanced mini-batches; "classwise": ORCA's surrogate, which asks
                  every class of the target to cover the whole source and does not vanish for equal sets
    epochs, steps AdamW for at most so many epochs of so many steps, a cosine from ``lr`` to ``last_lr``
    clip          largest norm of a step's gradient
    per_class     samples of each target class in a step, but ``least`` in all: a small batch's distance is mostly noise
    clusters      labels of the target: None, its own; a number: so many clusters of its features as they are at first,
                  for dense tasks (ORCA's choice: 10)
    tokens        tokens of each sample that a step looks at, drawn at random; None: all. Reports always look at all
    source_batch  source samples in a step; a mini-batch's distance lies above the sets' own, the more the smaller it is
    subset        samples of source and target in the fixed subset that progress is reported on
    tolerance     stop once the subset's distance changes by less than this share over ``patience`` epochs
    standardise   measure in units of the source: its mean taken off, divided by its spread
    purity        share of a group's labelled points that must agree where a sample is a token
    transport     how distances are measured; classes of fewer than two samples play no part
    """

    objective: Literal["full", "classwise"] = "full"
    epochs: int = 50
    steps: int = 40
    lr: float = 1e-3
    last_lr: float = 1e-5
    weight_decay: float = 0.05
    clip: float = 1.0
    per_class: int = 4
    least: int = 64
    clusters: int | None = None
    tokens: int | None = None
    source_batch: int = 256
    subset: int = 400
    tolerance: float = 0.01
    patience: int = 5
    standardise: bool = True
    purity: float = PURITY
    seed: int = 0
    transport: Transport = field(default_factory=lambda: Transport(min_count=2))

    def __post_init__(self) -> None:
        if self.objective not in ("full", "classwise"):
            raise UserError(f'Align.objective must be "full" or "classwise", not {self.objective!r}')
        small = [name for name in ("epochs", "steps", "per_class", "patience") if getattr(self, name) < 1]
        if self.tokens is not None and self.tokens < 1:
            small.append("tokens")
        if self.clusters is not None and self.clusters < 2:
            small.append("clusters")
        if small or self.source_batch < 2 or self.subset < 2:
            raise UserError(f"Align.{(small or ['source_batch and subset'])[0]} is too small: see its docstring")


@dataclass(frozen=True)
class Alignment:
    """What Stage 1 did.

    state       weights of the embedder
    distance    squared distance of the fixed subset, before and after each epoch
    batches     mean of the mini-batches' objective in each epoch: above the subset's by what small batches add
    neighbours  share of target samples whose five nearest have their class, before and after
    stopped     whether it stopped before its last epoch
    """

    state: dict[str, Tensor]
    distance: list[float]
    batches: list[float]
    neighbours: tuple[float, float]
    stopped: bool
    seconds: float

    @property
    def scrambled(self) -> bool:
        """Whether the classes lost more than 2 points of neighbour accuracy: the alignment is then of no use."""
        return self.neighbours[1] < self.neighbours[0] - 0.02

    def as_dict(self) -> dict[str, Any]:
        """Everything but the weights, for a log."""
        return {
            "distance": self.distance,
            "batches": self.batches,
            "neighbours": list(self.neighbours),
            "epochs": len(self.distance) - 1,
            "stopped": self.stopped,
            "scrambled": self.scrambled,
            "seconds": self.seconds,
        }


def align(
    pae: nn.Module,
    samples: Tensor | Observed | PyramidTokens,
    labels: Any,
    source_features: Any,
    source_labels: Any,
    how: Align | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Alignment:
    """Train ``pae`` in place until its mean tokens of the samples lie as the source's features do.

    pae      a trainable :class:`~pointadapt.methods.pae.PAE` or NewEmbed (``new_pae``), or a FramePyramid
    samples  what :func:`observe` gives, [S, m, ...]; a sample's feature is the mean over its m tokens. For a pyramid
             what :func:`observe_pyramid` gives
    labels   S labels; source_features [n, D] with n labels. The two sets may share no class
    log      called after each epoch with epoch, distance, batches and lr
    Depends on its arguments alone: batches are drawn by ``how.seed``. Raises UserError for sets without classes.
    """
    how = how or Align()
    begin = time.perf_counter()
    device = next(pae.parameters()).device
    true = _array(labels)
    if isinstance(samples, Tensor):
        samples = Observed(samples, how.tokens)
    if len(true) != len(samples):
        raise UserError(f"labels has {len(true)} entries for {len(samples)} samples")

    @torch.no_grad()
    def seen(rows: Tensor) -> Tensor:
        pae.eval()
        return torch.cat([samples.features(pae, part) for part in rows.split(64)])

    names = true
    if how.clusters is not None:
        names = clustered(seen(torch.arange(len(samples))), how.clusters, how.seed)
    classes = len(np.unique(names))
    features = torch.as_tensor(source_features).detach().to(device)
    whole = Source.of(features, source_labels, how.transport, how.standardise)
    fixed = whole.batch(how.subset, how.seed)
    shown = torch.from_numpy(balanced(names, how.subset, how.seed))

    first = seen(shown)
    chosen = names[shown.numpy()]
    distance, batches = [float(fixed.distance(first, chosen))], []
    optimizer = torch.optim.AdamW(_groups(pae, how.weight_decay), lr=how.lr)
    total = how.epochs * how.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step / total, how.last_lr / how.lr))
    stopped = False
    for epoch in range(how.epochs):
        pae.train()
        values = []
        for step in range(how.steps):
            draw = int(np.random.SeedSequence([how.seed, epoch, step]).generate_state(1)[0])
            rows = samples.draw(names, max(how.per_class * classes, how.least), draw)
            batch = whole.batch(how.source_batch, draw)
            measure = batch.distance if how.objective == "full" else batch.classwise
            optimizer.zero_grad(set_to_none=True)
            value = measure(samples.features(pae, torch.from_numpy(rows), draw), names[rows])
            value.backward()
            values.append(float(value.detach()))
            nn.utils.clip_grad_norm_(pae.parameters(), how.clip)
            optimizer.step()
            schedule.step()
        distance.append(float(fixed.distance(seen(shown), chosen)))
        batches.append(float(np.mean(values)))
        if log is not None:
            log({"epoch": epoch + 1, "distance": distance[-1], "batches": batches[-1], "lr": schedule.get_last_lr()[0]})
        earlier = distance[-1 - how.patience] if len(distance) > how.patience else math.inf
        stopped = epoch + 1 < how.epochs and abs(distance[-1] - earlier) < how.tolerance * earlier < math.inf
        if stopped:
            break
    optimizer.zero_grad(set_to_none=True)  # a pyramid is trained on: the first step must not add these to its own
    classes_shown = true[shown.numpy()]
    near = (neighbour_accuracy(first, classes_shown), neighbour_accuracy(seen(shown), classes_shown))
    state = {name: value.detach().cpu().clone() for name, value in pae.state_dict().items()}
    return Alignment(state, distance, batches, near, stopped, time.perf_counter() - begin)


def clustered(features: Tensor, count: int, seed: int, rounds: int = 50) -> np.ndarray:
    """[S] numbers of the clusters of features [S, D] by k-means, started at samples far from each other (k-means++)."""
    rng, x = np.random.default_rng(seed), features.double().cpu()
    middles = x[rng.integers(len(x))][None]
    while len(middles) < min(count, len(x)):
        share = torch.cdist(x, middles).amin(1).square().numpy()
        if not share.any():
            break
        middles = torch.cat([middles, x[rng.choice(len(x), p=share / share.sum())][None]])
    found = torch.cdist(x, middles).argmin(1)
    for _ in range(rounds):
        middles = torch.stack([x[found == c].mean(0) if (found == c).any() else m for c, m in enumerate(middles)])
        before, found = found, torch.cdist(x, middles).argmin(1)
        if torch.equal(found, before):
            break
    return found.numpy()


def align_model(
    model: nn.Module,
    clips: Iterable[tuple[Point, Tensor]],
    source_features: Any,
    source_labels: Any,
    unit: Unit = "clip",
    how: Align | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> Alignment:
    """The whole of Stage 1 on a model adapted with PointATA: observe the clips once, align, put the weights in place.

    clips            batches of the TRAINING split (Point, labels), without augmentation, see :func:`observe`
    source_features  mean patch tokens of shapes through the same frozen tokenizer (:func:`source_features`)
    The new embedder starts from ``how.seed``; a pyramid, where the task has one, from where it is. Raises UserError for
    a model without either.
    """
    how = how or Align()
    pyramid = pyramid_of(model)
    if pyramid is not None:
        kept = pyramid.training
        found = align(pyramid, *observe_pyramid(model, clips, how.purity), source_features, source_labels, how, log)
        pyramid.train(kept)
        return found
    samples, labels = observe(model, clips, unit, how.purity)
    adapter, _, config = clip_tokens(model)
    tokenizer = adapter.tokenizer[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        pae = new_pae(tokenizer, config).to(next(tokenizer.parameters()).device)
    found = align(pae, samples, labels, source_features, source_labels, how, log)
    place(model, found.state)
    return found


def source_features(model: nn.Module, source: Path | str = PROCEDURAL, limit: int = 1000, seed: int = 0) -> Features:
    """The source: mean patch tokens [n, D] of labelled shapes through a model's frozen tokenizer, and their classes.

    model   a task model, a backbone, or either adapted: adapters are switched off meanwhile
    source  "procedural": the shapes the bundled nano-mae was pretrained on; or a folder of shapes (or videos) with a
            dataset.yaml (inferred for PointATA: the pretraining set, ShapeNet), its training split
    limit   shapes, class-balanced
    """
    is_adapted = hasattr(model, "get_base_model")
    plain: Any = model.get_base_model() if is_adapted else model  # type: ignore[operator]
    with model.disable_adapter() if is_adapted else nullcontext():  # type: ignore[operator]
        return folder_features(getattr(plain, "backbone", plain), source, limit, seed=seed)


def _groups(pae: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices alone."""
    matrices = [p for p in pae.parameters() if p.ndim > 1]
    rest = [p for p in pae.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def _cosine(done: float, last: float) -> float:
    return last + (1 - last) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _array(labels: Any) -> np.ndarray:
    return np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels).reshape(-1)
