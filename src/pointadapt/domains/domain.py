"""The contract of a kind of data: all that training, evaluation and prediction ask of it.

A kind is one file with one subclass of :class:`Domain`, and its entry in :mod:`pointadapt.kinds`. A Domain joins one
Run to one data set; what depends on neither (loop, checkpoints, resume, logs, files) is in train.py, evaluate.py and
predict.py, which know no kind by name.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from pointadapt.data.labels import fewer_items, hold_out, listed_scans, parse_labels
from pointadapt.data.open import open_dataset
from pointadapt.data.transforms import Sample
from pointadapt.errors import UserError
from pointadapt.kinds import KINDS, YAML, Kind
from pointadapt.run import Run, read_settings

#: From y up, which models of shapes and videos know, to z up, which the report's view shows.
TO_VIEW = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
#: Told while a source is worked on: (share done, its name or None).
Show = Callable[[float, str | None], None]


@dataclass(frozen=True)
class Asked:
    """How to evaluate: what ``pa.evaluate`` and the command line were told.

    views       test-time views that are averaged; 0 = one pass
    absent      what a class counts that is neither labelled nor predicted (scenes; see metrics.scores)
    corruption  (name, severity 1-5) of data/corruptions.py, applied to every shape first
    """

    views: int = 0
    absent: Any = "exclude"
    corruption: tuple[str, int] | None = None


@dataclass
class Found:
    """What an evaluation found: ``scores`` go into metrics.jsonl, with ``details`` into evaluation.json; ``scenes`` are
    keyword arguments of analysis.scene.scene_html, ``pictures`` titles with inline SVG, ``notes`` sentences at the foot
    of the report."""

    scores: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    scenes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)


class Domain(ABC):
    """A run on a data set of one kind.

    run       with everything settled that depends on the data: steps (from epochs), the transform's name
    dataset   what ``data.open.open_dataset`` gives; has ``names`` (the model's outputs), ``as_dict``, ``paths(split)``
    target    key of a batch's labels, the second argument of the task's ``loss``
    options   what prediction may be told, with defaults; ``told`` is what it was told
    aligns    whether it knows a method's first stage
    """

    target: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    aligns: ClassVar[bool] = False

    def __init__(self, run: Run, dataset: Any) -> None:
        self.dataset = dataset
        self.run = self.settled(run)
        self.told = dict(self.options)

    def tell(self, told: dict[str, Any]) -> None:
        """Set options of prediction. Raises UserError for one that this kind does not know."""
        for name in told:
            if name not in self.options:
                raise UserError(f"{name} is not for {self.kind.name}: leave it out")
        self.told.update(told)

    @property
    def kind(self) -> Kind:
        return self.run.of_kind

    @property
    def names(self) -> list[str]:
        return self.dataset.names

    def settled(self, run: Run) -> Run:
        """``run`` with "auto" and epochs replaced by what they mean for this data set. Raises UserError for settings
        that do not suit it."""
        if run.options.get("align", "none") != "none" and not self.aligns:
            raise UserError(f"align is for videos: leave it out for {run.kind}")
        if (
            run.options.get("align", "none") not in ("none", "procedural")
            and not (Path(run.options["align"]) / YAML).is_file()
        ):
            raise UserError(
                f"align is {run.options['align']}, which is no folder with a {YAML}: give procedural, none, or a "
                "folder of labelled shapes after pointadapt init"
            )
        preset = self.dataset.transform if run.transform == "auto" else run.transform
        if preset not in self.transforms():
            raise UserError(f"transform {preset!r} is unknown: use auto or one of {', '.join(self.transforms())}")
        if run.epochs is not None:
            run = replace(run, steps=max(1, -(-run.epochs * self.train_size() // run.batch_size)))
        return replace(run, transform=preset)

    def train_size(self) -> int:
        """Items of an epoch."""
        return len(self.dataset.splits.get("train", ()))

    def held_out(self) -> str | None:
        """The split that chooses the best step, as ``run.select`` says; None: there is none.

        Raises UserError for select "test" without a test split.
        """
        split = "test" if self.run.select == "test" else "val"
        if self.dataset.paths(split):
            return split
        if split == "test":
            raise UserError(f"select is test, but {self.dataset.file} lists no test split: use val or last")
        return None

    def first_stage(self, model: Any, resume: bool, is_main: bool) -> dict[str, Any] | None:
        """Called before training with the model in place: what the method does first; returns what result.json says of
        it, under "align". With ``resume`` it takes from the run folder what is there; ``is_main`` writes there."""
        return None

    # ------------------------------------------------------------------ what a kind brings

    @classmethod
    @abstractmethod
    def remembered(cls, content: Any, run: Run, file: Path) -> Any:
        """The data set from what ``as_dict`` gave, out of run.json; the data themselves may be gone."""

    @abstractmethod
    def transforms(self) -> Sequence[str] | dict[str, Any]:
        """Names of training transforms."""

    @abstractmethod
    def task(self, backbone: Any) -> nn.Module:
        """The unadapted task model: ``model(point) -> logits``, ``.backbone``, ``.head``, ``.loss(logits, target)``."""

    @abstractmethod
    def items(self, split: str, train: bool = False) -> Any:
        """A split, read and checked: ``len`` and ``[i]`` are asked of it. Raises UserError for what cannot be used."""

    @abstractmethod
    def draw(self, items: Any, index: int, rng: np.random.Generator) -> Sample:
        """Training sample ``index`` under the transform; all randomness comes from ``rng``."""

    @abstractmethod
    def collate(self, samples: list[Sample], rng: np.random.Generator) -> dict[str, Any]:
        """A training batch with "point" and the target."""

    @abstractmethod
    def evaluate(self, model: nn.Module, items: Any, device: torch.device, asked: Asked, shown: int = 0) -> Found:
        """Score a model in eval mode on the items of a split, shared out over processes; up to ``shown`` scenes."""

    @abstractmethod
    def jobs(self, source: Path, out: Path | None, overwrite: bool) -> list[tuple[Path, Path]]:
        """(file to label, file to write) pairs. Raises UserError when there is nothing to read, or a target must not
        be written."""

    @abstractmethod
    def label(self, model: nn.Module, source: Path, target: Path, device: torch.device, show: Show) -> Any:
        """Label one file: write ``target``, or return what :meth:`conclude` writes. Raises UserError for a bad file."""

    def conclude(self, target: Path, answers: list[tuple[Path, Any]]) -> None:  # noqa: B027
        """Write one file for several sources: ``answers`` are (source, what label returned) of all with this target."""

    def about_all(self, answers: dict[Path, list[tuple[Path, Any]]]) -> list[Path]:
        """Called last, with the answers of all targets; returns what was written beside the targets."""
        return []


def domain_class(kind: str) -> type[Domain]:
    module, _, name = KINDS[kind].domain.partition(":")
    return getattr(importlib.import_module(module), name)


def open_domain(run: Run) -> Domain:
    """The run on its data set as it is on disk. Raises UserError when that is missing, or of another kind."""
    dataset = open_dataset(run.data)
    kind = getattr(dataset, "task", "scenes")
    if kind != run.kind:
        raise UserError(f"{dataset.file} holds {kind}, this run is for {run.kind}: make a new Run for it")
    share, _ = parse_labels(run.labels)
    dataset = fewer_items(listed_scans(dataset, run.labels), share, run.seed)
    return domain_class(kind)(run, hold_out(dataset, run.val_share, run.seed) if run.holdout else dataset)


def remembered_domain(run: Run) -> Domain:
    """The run on its data set as run.json remembers it."""
    file = run.folder / "run.json"
    kind = domain_class(run.kind)
    return kind(replace(run, epochs=None), kind.remembered(read_settings(file)["dataset"], run, file))


# --- what several kinds need ----------------------------------------------------------------------------------------


def autocast(run: Run, device: torch.device) -> AbstractContextManager:
    """The precision of training also outside of it: adapters are float32 whatever the backbone is."""
    precision = ("bf16" if device.type == "cuda" else "no") if run.precision == "auto" else run.precision
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def give_back_memory() -> None:
    """Hand freed memory to the system: glibc's heap grows with tensors of ever new sizes, by GiBs in 200 tiles."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def gathered(value: Any) -> list[Any]:
    """The value of every process, this one's first; it alone where there is one process."""
    import torch.distributed as dist

    rank, processes = process()
    found = [value] * processes
    if processes > 1:
        dist.all_gather_object(found, value)
    return [value, *(other for number, other in enumerate(found) if number != rank)]


def from_first(value: Any) -> Any:
    """What the first process has; called by all of them."""
    import torch.distributed as dist

    found = [value]
    if process()[1] > 1:
        dist.broadcast_object_list(found, 0)
    return found[0]


def process() -> tuple[int, int]:
    """(rank, number of processes)."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
