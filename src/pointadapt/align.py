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

from pointadapt.analysis.distance import Features, shape_features
from pointadapt.analysis.transport import Source, Transport, balanced, neighbour_accuracy
from pointadapt.backbones.frame_pyramid import NEIGHBORS, anchors
from pointadapt.data.object_set import UP
from pointadapt.data.synthetic_shapes import SHAPE_CLASSES, shapes
from pointadapt.errors import UserError
from pointadapt.methods.core import AdapterLayer
from pointadapt.methods.pointata import ClipTokens, new_pae
from pointadapt.ops.frames import frames_in, take_clouds
from pointadapt.ops.neighbors import nearest
from pointadapt.point import Point, collate

Unit = Literal["clip", "frame", "token"]


@dataclass(frozen=True)
class Align:
    """How Stage 1 trains (all inferred; the objective's family, OTDD, is known).

    objective     "full": the distance itself, on class-balanced mini-batches; "classwise": ORCA's surrogate, which asks
                  every class of the target to cover the whole source and does not vanish for equal sets
    epochs, steps AdamW for at most so many epochs of so many steps, a cosine from ``lr`` to ``last_lr``
    clip          largest norm of a step's gradient
    per_class     samples of each target class in a step
    tokens        tokens of each sample that a step looks at, drawn at random; None: all. Reports always look at all
    source_batch  source samples in a step; a mini-batch's distance lies above the sets' own, the more the smaller it is
    subset        samples of source and target in the fixed subset that progress is reported on
    tolerance     stop once the subset's distance changes by less than this share over ``patience`` epochs
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
    tokens: int | None = None
    source_batch: int = 256
    subset: int = 400
    tolerance: float = 0.01
    patience: int = 5
    seed: int = 0
    transport: Transport = field(default_factory=lambda: Transport(min_count=2))

    def __post_init__(self) -> None:
        if self.objective not in ("full", "classwise"):
            raise UserError(f'Align.objective must be "full" or "classwise", not {self.objective!r}')
        small = [name for name in ("epochs", "steps", "per_class", "patience") if getattr(self, name) < 1]
        if self.tokens is not None and self.tokens < 1:
            small.append("tokens")
        if small or self.source_batch < 2 or self.subset < 2:
            raise UserError(f"Align.{(small or ['source_batch and subset'])[0]} is too small: see its docstring")


@dataclass(frozen=True)
class Alignment:
    """What Stage 1 did.

    state       weights of the embedder
    distance    squared distance of the fixed subset, before and after each epoch
    neighbours  share of target samples whose five nearest have their class, before and after
    stopped     whether it stopped before its last epoch
    """

    state: dict[str, Tensor]
    distance: list[float]
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
            "neighbours": list(self.neighbours),
            "epochs": len(self.distance) - 1,
            "stopped": self.stopped,
            "scrambled": self.scrambled,
            "seconds": self.seconds,
        }


class Observed:
    """Samples [S, m, ...] that :func:`observe` gave, whose features are the means over a PAE's m tokens.

    tokens  of each sample that a step looks at, drawn at random; None: all
    """

    def __init__(self, seen: Tensor, tokens: int | None = None) -> None:
        self.seen, self.tokens = seen, tokens

    def __len__(self) -> int:
        return len(self.seen)

    def draw(self, names: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Rows of a step's samples, class-balanced."""
        return balanced(names, count, seed)

    def features(self, pae: nn.Module, rows: Tensor, seed: int | None = None) -> Tensor:
        """[r, D] of the samples ``rows``; with a ``seed``, of some of their tokens."""
        if seed is not None and self.tokens is not None and self.tokens < self.seen.shape[1]:
            drawn = np.random.default_rng(seed).permutation(self.seen.shape[1])[: self.tokens]
            picked = self.seen[rows[:, None], torch.from_numpy(drawn)]
        else:
            picked = self.seen[rows]
        return pae(picked.to(next(pae.parameters()).device, torch.float32)).mean(1)


class PyramidTokens:
    """Tokens of clips that a :class:`~pointadapt.backbones.frame_pyramid.FramePyramid` makes anew at every step.

    clips   Points of one clip each;  place [S, 2]: each sample's clip and its place among that clip's tokens
    at_once clips of a step, drawn at random (inferred): its samples come from these alone
    """

    def __init__(self, clips: list[Point], place: Tensor, at_once: int = 8) -> None:
        self.clips, self.place, self.at_once = clips, place, at_once

    def __len__(self) -> int:
        return len(self.place)

    def draw(self, names: np.ndarray, count: int, seed: int) -> np.ndarray:
        chosen = np.random.default_rng(seed).permutation(np.unique(self.place[:, 0]))[: self.at_once]
        rows = np.flatnonzero(np.isin(self.place[:, 0], chosen))
        return rows[balanced(names[rows], count, seed)]

    def features(self, pae: nn.Module, rows: Tensor, seed: int | None = None) -> Tensor:
        clip, token = self.place[rows].unbind(1)
        device, found = next(pae.parameters()).device, []
        for run in clip.unique().split(self.at_once):
            parts = [self.clips[c].to(device) for c in run.tolist()]
            center = torch.cat([part.extra["anchors"] for part in parts])
            whole = collate(parts).but(extra={"frames": parts[0].extra["frames"], "anchors": center})
            made = pae(whole).extra["patches"].feat.unflatten(0, (len(run), -1)).flatten(1, 2)  # [clips, tokens, D]
            here = torch.isin(clip, run)
            found.append(made[torch.searchsorted(run, clip[here]).to(device), token[here].to(device)])
        order = torch.cat([torch.isin(clip, run).nonzero()[:, 0] for run in clip.unique().split(self.at_once)])
        return torch.cat(found)[order.argsort().to(device)]


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
    log      called after each epoch with epoch, distance and lr
    Depends on its arguments alone: batches are drawn by ``how.seed``. Raises UserError for sets without classes.
    """
    how = how or Align()
    begin = time.perf_counter()
    device = next(pae.parameters()).device
    names = _array(labels)
    if isinstance(samples, Tensor):
        samples = Observed(samples, how.tokens)
    if len(names) != len(samples):
        raise UserError(f"labels has {len(names)} entries for {len(samples)} samples")
    classes = len(np.unique(names))
    features = torch.as_tensor(source_features).detach().to(device)
    whole = Source.of(features, source_labels, how.transport)
    fixed = whole.batch(how.subset, how.seed)
    shown = torch.from_numpy(balanced(names, how.subset, how.seed))

    @torch.no_grad()
    def seen() -> Tensor:
        pae.eval()
        return torch.cat([samples.features(pae, rows) for rows in shown.split(64)])

    first = seen()
    chosen = names[shown.numpy()]
    distance = [float(fixed.distance(first, chosen))]
    optimizer = torch.optim.AdamW(_groups(pae, how.weight_decay), lr=how.lr)
    total = how.epochs * how.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step / total, how.last_lr / how.lr))
    stopped = False
    for epoch in range(how.epochs):
        pae.train()
        for step in range(how.steps):
            draw = int(np.random.SeedSequence([how.seed, epoch, step]).generate_state(1)[0])
            rows = samples.draw(names, how.per_class * classes, draw)
            batch = whole.batch(how.source_batch, draw)
            measure = batch.distance if how.objective == "full" else batch.classwise
            optimizer.zero_grad(set_to_none=True)
            measure(samples.features(pae, torch.from_numpy(rows), draw), names[rows]).backward()
            nn.utils.clip_grad_norm_(pae.parameters(), how.clip)
            optimizer.step()
            schedule.step()
        distance.append(float(fixed.distance(seen(), chosen)))
        if log is not None:
            log({"epoch": epoch + 1, "distance": distance[-1], "lr": schedule.get_last_lr()[0]})
        earlier = distance[-1 - how.patience] if len(distance) > how.patience else math.inf
        stopped = epoch + 1 < how.epochs and abs(distance[-1] - earlier) < how.tolerance * earlier < math.inf
        if stopped:
            break
    near = (neighbour_accuracy(first, chosen), neighbour_accuracy(seen(), chosen))
    state = {name: value.detach().cpu().clone() for name, value in pae.state_dict().items()}
    return Alignment(state, distance, near, stopped, time.perf_counter() - begin)


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
        found = align(pyramid, *observe_pyramid(model, clips), source_features, source_labels, how, log)
        pyramid.train(kept)
        return found
    samples, labels = observe(model, clips, unit)
    adapter, _, config = clip_tokens(model)
    tokenizer = adapter.tokenizer[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        pae = new_pae(tokenizer, config).to(next(tokenizer.parameters()).device)
    found = align(pae, samples, labels, source_features, source_labels, how, log)
    place(model, found.state)
    return found


def place(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put aligned weights into the active PointATA adapter, held or trained alike, or into the task's pyramid."""
    pyramid = pyramid_of(model)
    if pyramid is not None:
        pyramid.load_state_dict(state)
        return
    adapter, _, _ = clip_tokens(model)
    assert adapter.pae is not None
    adapter.pae.load_state_dict(state)


def clip_tokens(model: nn.Module) -> tuple[ClipTokens, nn.Module, Any]:
    """The active adapter of a model's tokenizer, the frozen tokenizer and the method's config.

    Raises UserError where there is no PointATA adapter with a PAE.
    """
    configs = getattr(model, "peft_config", {})
    for layer in model.modules():
        if isinstance(layer, AdapterLayer):
            for name in layer.active_adapters:
                adapter = layer.adapters._modules.get(name)
                if isinstance(adapter, ClipTokens) and adapter.pae is not None:
                    return adapter, layer.base_layer, configs[name]
    raise UserError("there is nothing to align: adapt the model with PointATAConfig and a pae other than none")


def pyramid_of(model: nn.Module) -> nn.Module | None:
    """The trained pyramid that makes a model's tokens; None where its own tokenizer does."""
    for module in model.modules():
        found = module._modules.get("pyramid")
        if found is not None:
            copies = found._modules.get("modules_to_save")
            return found if copies is None else copies[found.active_adapters[0]]  # type: ignore[index]
    return None


@torch.no_grad()
def observe_pyramid(
    model: nn.Module, clips: Iterable[tuple[Point, Tensor]], purity: float = 0.6
) -> tuple[PyramidTokens, Tensor]:
    """Clips, whose points have labels [N], as tokens with a label each: that of most points around its anchor, as for
    unit "token" of :func:`observe`."""
    pyramid: Any = pyramid_of(model)
    assert pyramid is not None
    kept: list[Point] = []
    places, names = [], []
    for point, label in clips:
        count, size = frames_in(point, point.num_clouds), pyramid.sizes[-1]
        center = anchors(point, pyramid.sizes[0])
        found = majority(point, center[:, :size], NEIGHBORS, label.to(point.coord.device), purity)
        for first in range(0, point.num_clouds, count):
            own = found[first : first + count].flatten().cpu()
            known = (own >= 0).nonzero()[:, 0]
            places.append(torch.stack([torch.full_like(known, len(kept)), known], 1))
            names.append(own[known])
            rows = torch.arange(first, first + count, device=point.coord.device)
            clip = take_clouds(point, rows).but(extra={"frames": count, "anchors": center[rows]})
            kept.append(clip.to("cpu"))
    if not sum(map(len, names)):
        raise UserError("there are no labelled clips to align: check the training split")
    return PyramidTokens(kept, torch.cat(places)), torch.cat(names)


@torch.no_grad()
def observe(
    model: nn.Module, clips: Iterable[tuple[Point, Tensor]], unit: Unit = "clip", purity: float = 0.6
) -> tuple[Tensor, Tensor]:
    """What a PAE sees of clips, and the labels: [S, m, ...] float32 on the CPU, [S].

    unit  "clip": labels [B] of actions, a sample is a clip (m = T' G tokens);
          "frame": labels [B, T], a sample is a frame that has tokens (m = G);
          "token": labels [N] of points, a sample is a token (m = 1) whose group has one label in at least ``purity`` of
          its labelled points, and is labelled by half of them
    Labels below 0 are left out. A clip takes 12 T' G D bytes with the residual PAE: give a few thousand at most.
    """
    adapter, base, _ = clip_tokens(model)
    was_training = model.training
    model.eval()
    found, names = [], []
    try:
        for point, label in clips:
            out, seen, _ = adapter.observe(base, point)
            assert seen is not None
            frames = frames_in(out, len(out))
            label = label.to(seen.device)
            if unit == "clip":
                seen = seen.unflatten(0, (-1, frames)).flatten(1, 2)
            elif unit == "frame":
                label = label[:, :: adapter.stride].flatten()
            else:
                assert out.center is not None
                label = majority(
                    point, out.center, adapter.tokenizer[0].group_size, label, purity, adapter.stride
                ).flatten()
                seen = seen.flatten(0, 1)[:, None]
            if len(label) != len(seen):
                raise UserError(f"unit {unit!r} has {len(seen)} samples here, but there are {len(label)} labels")
            kept = label >= 0
            found.append(seen[kept].float().cpu())
            names.append(label[kept].cpu())
    finally:
        model.train(was_training)
    if not sum(len(part) for part in found):
        raise UserError("there are no labelled clips to align: check the training split")
    return torch.cat(found), torch.cat(names)


def majority(point: Point, center: Tensor, size: int, label: Tensor, purity: float, stride: int = 1) -> Tensor:
    """[R, G] the label [N] most of the ``size`` points around each center [R, G, 3] have, in every ``stride``-th cloud;
    -1 where fewer than ``purity`` agree or half have none."""
    rows, found = zip(point.coord.split(point.counts), label.split(point.counts), strict=True), []
    seen = [pair for index, pair in enumerate(rows) if index % stride == 0]
    for here, (coord, own) in zip(center, seen, strict=True):
        near = own[nearest(here[None], coord[None], min(size, len(coord)))[0]]  # [G, K]
        few = near.shape[1]
        best = torch.where(near < 0, -2 - torch.arange(few, device=near.device), near).mode(1).values
        known, agree = (near >= 0).sum(1), (near == best[:, None]).sum(1)
        found.append(torch.where((2 * known >= few) & (agree >= purity * known) & (best >= 0), best, -1))
    return torch.stack(found)


def source_features(
    model: nn.Module, source: Path | str = "procedural", limit: int = 1000, points: int = 1024, seed: int = 0
) -> Features:
    """The source: mean patch tokens [n, D] of labelled shapes through a model's frozen tokenizer, and their classes.

    model   a task model, a backbone, or either adapted: adapters are switched off meanwhile
    source  "procedural": the shapes the bundled nano-mae was pretrained on, of ``points`` points each; or a folder of
            shapes with a dataset.yaml (inferred for PointATA: the pretraining set, ShapeNet), its training split
    limit   shapes, class-balanced
    """
    is_adapted = hasattr(model, "get_base_model")
    plain: Any = model.get_base_model() if is_adapted else model  # type: ignore[operator]
    backbone = getattr(plain, "backbone", plain)
    with model.disable_adapter() if is_adapted else nullcontext():  # type: ignore[operator]
        if source != "procedural":
            return shape_features(backbone, source, limit, seed=seed)
        device, was_training = next(backbone.parameters()).device, backbone.training
        backbone.eval()
        coord, label = shapes(seed, limit, points)
        turned = torch.from_numpy(coord @ UP["z"].T.astype(np.float32))
        parts = []
        try:
            for run in turned.split(32):
                rows = run.flatten(0, 1).to(device)
                point = Point(rows, rows, torch.arange(1, len(run) + 1, device=device) * points)
                with torch.no_grad():
                    parts.append(backbone.tokenizer(point).part("patch").mean(1).float().cpu())
        finally:
            backbone.train(was_training)
    return Features(torch.cat(parts), [SHAPE_CLASSES[y] for y in label])


def _groups(pae: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices alone."""
    matrices = [p for p in pae.parameters() if p.ndim > 1]
    rest = [p for p in pae.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def _cosine(done: float, last: float) -> float:
    return last + (1 - last) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _array(labels: Any) -> np.ndarray:
    return np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels).reshape(-1)
