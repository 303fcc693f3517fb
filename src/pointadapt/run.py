"""Run: everything about an experiment in one dataclass, and the JSON file it becomes."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pointadapt.errors import UserError
from pointadapt.files import read_text, write_text
from pointadapt.kinds import KINDS, SCENES, Kind, defaults_in_words, kind_of

RATES = ("lr", "head_lr", "backbone_lr", "weight_decay", "clip", "dropout", "mix3d", "smoothing", "warmup", "val_share")
VERSIONS_OF = ("pointadapt", "torch", "peft", "accelerate", "numpy", "safetensors")


def option(default: Any, text: str) -> Any:
    """A dataclass field with a default and the sentence that ``--help`` shows."""
    return field(default=default, metadata={"help": text})


def by_kind(name: str, text: str) -> Any:
    """A field whose default is the kind of data's own: None until the Run is made, and never afterwards."""
    return field(default=None, metadata={"help": f"{text} [default: {defaults_in_words(name)}]"})


@dataclass
class Run:
    """One adaptation: data, backbone, method, recipe. ``pointadapt adapt --help`` lists the fields as flags.

    Fields with ``by_kind`` may be left out (or given as None): they become the default of the kind of data that
    dataset.yaml names, at once, and run.json holds what they became.
    """

    data: Path = field(
        metadata={"help": "Folder of scans, shapes or videos with a dataset.yaml (see pointadapt init)."}
    )
    out: Path | None = option(None, "Run folder. [default: runs/DATA-BACKBONE-METHOD]")

    backbone: str = by_kind("backbone", "Name (pointadapt backbones lists them) or checkpoint file; nano* are bundled.")
    weights: Literal["default", "random"] = option("default", "random = no pretraining, as a control.")
    compat: Literal["clean", "official"] = option("clean", "official = with the known defects of the official code.")
    architecture: str | None = option(None, "Backbone name whose architecture a bare checkpoint file has.")
    groups: int | None = option(
        None, "Groups a shape or frame is cut into (published: 64; ScanObjectNN, parts 128; dense frames: points / 32)."
    )
    decoder: bool = option(False, "Put the PTv3 decoder on an encoder-only backbone and train it with the head.")
    method: str = by_kind("method", "Adaptation method (pointadapt methods lists them and their options).")
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "Options of the method, by name."})
    head: Literal["mlp3", "mlp2", "mlp", "linear", "pyramid", "slim"] = by_kind(
        "head",
        "Point-MAE's head (mlp3), Point-BERT's (mlp2), that of videos (mlp), one Linear; points of videos: "
        "convolutions around the transformer (pyramid, slim), for frames of thousands of points.",
    )

    steps: int = by_kind("steps", "Optimiser steps.")
    epochs: int | None = option(None, "Passes over the training items; decides steps in their place.")
    batch_size: int = by_kind("batch_size", "Crops, shapes or clips per optimiser step, over all processes and parts.")
    grad_accum: int = option(1, "Parts a step's crops are computed in, one after the other (less memory).")
    points: int = by_kind("points", "Most voxels of a crop; points of a shape or frame (0 = as dataset.yaml says).")
    lr: float = by_kind("lr", "Peak learning rate of the adapters.")
    head_lr: float = by_kind("head_lr", "Peak learning rate of the head, and of a new decoder.")
    backbone_lr: float = by_kind("backbone_lr", "Peak rate of pretrained weights, where the method trains them.")
    weight_decay: float = by_kind("weight_decay", "AdamW's, not on biases, norms, tokens and latents.")
    clip: float = by_kind("clip", "Largest norm of the gradient.")
    schedule: Literal["onecycle", "cosine"] = by_kind("schedule", "Course of the rates; cosine: 1e-6 to 1e-6.")
    warmup: float = by_kind("warmup", "Share of the steps in which the rates rise.")
    dropout: float = option(None, "Dropout before a linear head, or inside an MLP. [default: linear 0, MLP 0.5]")
    smoothing: float = by_kind("smoothing", "Label smoothing of a classifier's loss.")
    drop_path: bool = option(False, "Keep stochastic depth on in the frozen backbone while training.")
    transform: str = option("auto", "Training transforms, or auto = those in dataset.yaml; run.json names them.")
    mix3d: float = option(0.0, "Probability of merging the crops of a batch in pairs (Mix3D); scenes only.")
    labels: str = option("100%", "Train on a share of the items (10%), labels of each scan (200pts), or a list file.")
    seed: int = option(0, "Seed of weights, data order, transforms and dropout.")
    precision: Literal["auto", "no", "bf16", "fp16"] = option("auto", "Mixed precision. auto = bf16 on a GPU, else no.")
    checkpointing: bool = option(False, "Compute blocks again in the backward pass: less memory, same numbers.")
    cache_features: int = option(
        0, "Method linear: keep the frozen features of this many augmented views of each item, not compute them anew."
    )
    num_workers: int = option(0, "Processes that load data.")
    cache: Path | None = option(None, "Folder that keeps prepared data on disk; without it they stay in memory.")
    threads: int = option(0, "CPU threads of torch; 0 = leave them. Resuming is bitwise exact with equal threads.")

    eval_every: int = option(100, "Steps between validations. Each also saves the state that --resume continues.")
    select: Literal["val", "last", "test"] = option(
        "val",
        "What chooses adapter/best: validation, nothing (the last step), or the test split, as published.",
    )
    val_share: float = option(0.1, "Share of training shapes or videos to validate on, where none are held out.")
    holdout: bool = option(False, "Validate on val_share of the training items, scans too, even where val is listed.")
    tta: int = option(0, "Test-time views of evaluate and predict: 0 = one pass; scenes 1..13, shapes 10 as published.")
    tile: int = option(60_000, "Largest number of voxels a scan is computed in at once; larger scans go in tiles.")
    kind: str = field(default=None, metadata={"help": "The task that dataset.yaml names; scenes without one."})  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.data = Path(self.data)
        self.kind = self.kind or kind_of(self.data)
        if self.kind not in KINDS:
            raise UserError(f"kind {self.kind!r} is unknown: use one of {', '.join(KINDS)}")
        for name, value in self.of_kind.recipe.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.dropout is None:
            self.dropout = 0.0 if self.head == "linear" else 0.5
        if not isinstance(self.method, str):
            self.method, self.options = named_method(self.method)
        self.out = Path(self.out) if self.out else Path("runs") / self.name
        self.cache = Path(self.cache) if self.cache else None
        self.check()

    @property
    def of_kind(self) -> Kind:
        return KINDS[self.kind]

    @property
    def name(self) -> str:
        data = self.data.resolve()  # a folder, or one of several yaml files in it
        name = f"{data.parent.name}-{data.stem}" if data.suffix in (".yaml", ".yml") else data.name
        return f"{name}-{Path(self.backbone).stem}-{self.method}"

    def check(self) -> None:
        """Raises UserError naming the first field that makes no sense."""
        counts = ("steps", "epochs", "groups", "batch_size", "grad_accum", "eval_every", "tile")
        least: dict[str, int] = {
            **dict.fromkeys(counts, 1),
            **dict.fromkeys(("num_workers", "cache_features", "threads", "tta", "seed"), 0),
        }
        least["points"] = 1 if self.kind == SCENES.name else 0
        for name, low in least.items():
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        for name in (*RATES, "num_workers", "threads", "tta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}; it must be a number that is not negative")
        for name in ("dropout", "mix3d", "smoothing", "warmup", "val_share"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a probability or a share, at most 1")
        for name in ("head", "schedule", "select", "weights", "compat", "precision"):
            allowed = get_args(get_type_hints(Run)[name])
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.tta > self.of_kind.views:
            raise UserError(f"tta is {self.tta}; there are {self.of_kind.views} test-time views")
        if self.batch_size % self.grad_accum:
            raise UserError(
                f"batch_size {self.batch_size} cannot be split into grad_accum = {self.grad_accum} equal parts"
            )

    @property
    def folder(self) -> Path:
        assert self.out is not None
        return self.out

    def as_dict(self) -> dict[str, Any]:
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    def save(self, dataset: Any) -> None:
        """Write ``run.json``: the settings, how the data is read, versions and git commit."""
        content = {"run": self.as_dict(), "dataset": dataset.as_dict(), "made": made()}
        write_text(self.folder / "run.json", json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Run:
        """The Run that made ``folder``; its ``out`` is the folder as given, wherever it was moved."""
        file = Path(folder) / "run.json"
        content = read_settings(file)
        values = {"kind": content["dataset"].get("task", SCENES.name), **content["run"]}  # version 0.1 had scenes only
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise UserError(f"{file} has settings that this pointadapt does not know: {', '.join(sorted(unknown))}")
        try:
            return cls(**{**values, "out": Path(folder)})
        except TypeError as error:
            raise UserError(f"{file} cannot be read as a run: {error}") from error


def read_settings(file: Path) -> dict[str, Any]:
    """The content of a run.json. Raises UserError when there is none, or another kind of file."""
    if not file.is_file():
        raise UserError(f"{file.parent} is no run folder: it has no {file.name}")
    try:
        content = json.loads(read_text(file))
        if not (isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("run", "dataset"))):
            raise ValueError("it lacks the objects run and dataset")
    except ValueError as error:
        raise UserError(f"{file} cannot be read as a run: {error}") from error
    return content


def method_config(name: str, options: dict[str, Any]) -> Any:
    """The config object of a method. Raises UserError for a name, an option or a value that does not exist."""
    from pointadapt.methods import METHODS

    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: use one of {', '.join(METHODS)}")
    known = {f.name for f in dataclasses.fields(METHODS[name]) if f.init}
    if unknown := sorted(set(options) - known):
        raise UserError(f"method {name!r} has no option {unknown[0]!r}: pointadapt methods {name} lists them")
    hints = get_type_hints(METHODS[name])
    for option_name, value in options.items():
        if not fits(value, hints[option_name]):
            raise UserError(f"{option_name} of method {name!r} is {value!r}; it must be {in_words(hints[option_name])}")
    try:
        return METHODS[name](**options)
    except UserError:
        raise
    except ValueError as error:  # peft's way to say it
        raise UserError(f"method {name!r}: {error}") from error


#: Types of options in words; of a list by its entries.
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", type(None): "none"}
LISTS = {int: "a list such as [0, 2]", str: 'a list such as ["attn", "ffn"]'}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; types other than those of WORDS, which are peft's, take anything."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, one) for one in inside)
    if kind is Literal:
        return value in inside or any("[" in str(one) for one in inside)  # peft: pissa_niter_[number of iters]
    if kind is list:
        return isinstance(value, list | tuple) and all(fits(one, inside[0]) for one in value)
    if hint in (int, float):
        numbers = (int,) if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) if hint in WORDS else True


def in_words(hint: Any) -> str:
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inside)))
    if kind is Literal:
        return f"one of {', '.join(map(str, inside))}"
    return LISTS.get(inside[0], "a list") if kind is list else WORDS.get(hint, str(hint))


def named_method(config: Any) -> tuple[str, dict[str, Any]]:
    """(name, options that differ from the defaults) of a method's config object such as ``GEMConfig(rank=16)``."""
    from pointadapt.methods import METHODS

    name = next((name for name, known in METHODS.items() if type(config) is known), None)
    if name is None:
        raise UserError(f"{type(config).__name__} is no method of pointadapt; there are {', '.join(METHODS)}")
    default = METHODS[name]()
    names = [f.name for f in dataclasses.fields(config) if f.init]
    changed = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(default, n)}
    return name, {n: sorted(v) if isinstance(v, set) else v for n, v in changed.items()}


def made() -> dict[str, Any]:
    """When and with what: date, versions, git commit of this package's checkout (None when installed from a wheel)."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": git_commit(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in VERSIONS_OF},
    }


def git_commit(folder: Path) -> str | None:
    """HEAD of the checkout the package runs from, "-dirty" behind it when files differ; None when installed."""
    if "site-packages" in folder.parts:
        return None  # else this would be the commit of whatever project keeps its virtual environment inside
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
