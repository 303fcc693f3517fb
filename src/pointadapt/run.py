"""Run: everything about an experiment in one dataclass, the JSON file it becomes, and the model it describes."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pointadapt.errors import UserError
from pointadapt.files import write_text

if TYPE_CHECKING:
    from pointadapt.data.scans import DataSet

RATES = ("lr", "head_lr", "backbone_lr", "weight_decay", "clip", "dropout", "mix3d")
VERSIONS_OF = ("pointadapt", "torch", "peft", "accelerate", "numpy", "safetensors")


def option(default: Any, text: str) -> Any:
    """A dataclass field with a default and the sentence that ``--help`` shows."""
    return field(default=default, metadata={"help": text})


@dataclass
class Run:
    """One adaptation: data, backbone, method, recipe. ``pointadapt adapt --help`` lists the fields as flags."""

    data: Path = field(metadata={"help": "Folder of scans with a dataset.yaml (pointadapt init writes it)."})
    out: Path | None = option(None, "Run folder. [default: runs/DATA-BACKBONE-METHOD]")

    backbone: str = option("nano", "Name (pointadapt backbones lists them) or checkpoint file. nano comes bundled.")
    weights: Literal["default", "random"] = option("default", "random = no pretraining, as a control.")
    compat: Literal["clean", "official"] = option("clean", "official = with the known defects of the official code.")
    architecture: str | None = option(None, "Backbone name whose architecture a bare checkpoint file has.")
    decoder: bool = option(False, "Put the PTv3 decoder on an encoder-only backbone and train it with the head.")
    method: str = option("gem", "Adaptation method (pointadapt methods lists them and their options).")
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "Options of the method, by name."})

    steps: int = option(300, "Optimiser steps.")
    batch_size: int = option(2, "Crops per optimiser step, over all processes and accumulated parts together.")
    grad_accum: int = option(1, "Parts a step's crops are computed in, one after the other (less memory).")
    points: int = option(16_000, "Largest number of voxels in a training crop.")
    lr: float = option(2e-3, "Peak learning rate of the adapters.")
    head_lr: float = option(2e-3, "Peak learning rate of the head, and of a new decoder.")
    backbone_lr: float = option(2e-4, "Peak learning rate of pretrained weights, where the method trains them.")
    weight_decay: float = option(0.02, "AdamW's, not on biases, norms and latent tokens.")
    clip: float = option(3.0, "Largest norm of the gradient.")
    dropout: float = option(0.0, "Dropout before the head.")
    drop_path: bool = option(False, "Keep stochastic depth on in the frozen backbone while training.")
    transform: str = option("auto", "Training transforms: indoor, outdoor, aerial, or auto = what dataset.yaml says.")
    mix3d: float = option(0.0, "Probability of merging the crops of a batch in pairs (Mix3D).")
    seed: int = option(0, "Seed of weights, data order, transforms and dropout.")
    precision: Literal["auto", "no", "bf16", "fp16"] = option("auto", "Mixed precision. auto = bf16 on a GPU, else no.")
    num_workers: int = option(0, "Processes that load data.")
    cache: Path | None = option(None, "Folder that keeps prepared scans on disk; without it they stay in memory.")
    threads: int = option(0, "CPU threads of torch; 0 = leave them. Resuming is bitwise exact with equal threads.")

    eval_every: int = option(100, "Steps between validations. Each also saves the state that --resume continues.")
    tta: int = option(0, "Test-time views of pointadapt evaluate and predict: 0 = one pass, 1..13 = fragments, views.")
    tile: int = option(60_000, "Largest number of voxels a scan is computed in at once; larger scans go in tiles.")

    def __post_init__(self) -> None:
        self.data = Path(self.data)
        if not isinstance(self.method, str):
            self.method, self.options = named_method(self.method)
        self.out = Path(self.out) if self.out else Path("runs") / self.name
        self.cache = Path(self.cache) if self.cache else None
        self.check()

    @property
    def name(self) -> str:
        return f"{self.data.resolve().name}-{Path(self.backbone).stem}-{self.method}"

    def check(self) -> None:
        """Raises UserError naming the first field that makes no sense."""
        least = dict(
            steps=1, batch_size=1, grad_accum=1, points=1, num_workers=0, threads=0, eval_every=1, tta=0, tile=1
        )
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        for name in (*RATES, "num_workers", "threads", "tta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}; it must be a number that is not negative")
        for name in ("dropout", "mix3d"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a probability, at most 1")
        if self.tta > 13:
            raise UserError(f"tta is {self.tta}; there are 13 test-time views")
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

    def save(self, dataset: DataSet) -> None:
        """Write ``run.json``: the settings, how the data is read, versions and git commit."""
        content = {"run": self.as_dict(), "dataset": dataset.as_dict(), "made": made()}
        write_text(self.folder / "run.json", json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Run:
        """The Run that made ``folder``; its ``out`` is the folder as given, wherever it was moved."""
        file = Path(folder) / "run.json"
        values = read_json(file)["run"]
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise UserError(f"{file} has settings that this pointadapt does not know: {', '.join(sorted(unknown))}")
        try:
            return cls(**{**values, "out": Path(folder)})
        except TypeError as error:
            raise UserError(f"{file} cannot be read as a run: {error}") from error


def dataset_of(run: Run) -> DataSet:
    """How the scans that ``run`` was trained on were read; the scans themselves may be gone."""
    from pointadapt.data.scans import DataSet

    file = run.folder / "run.json"
    return DataSet.from_dict(read_json(file)["dataset"], run.data, file)


def read_json(file: Path) -> dict[str, Any]:
    """The content of a run.json. Raises UserError when there is none, or another kind of file."""
    if not file.is_file():
        raise UserError(f"{file.parent} is no run folder: it has no {file.name}")
    try:
        content = json.loads(file.read_text())
        if not (isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("run", "dataset"))):
            raise ValueError("it lacks the objects run and dataset")
    except ValueError as error:
        raise UserError(f"{file} cannot be read as a run: {error}") from error
    return content


def build_task(run: Run, classes: list[str]) -> Any:
    """The unadapted Segmentation model. A random backbone is the same one for the same seed."""
    import torch

    from pointadapt.backbones.weights import load_backbone
    from pointadapt.tasks.segmentation import Segmentation

    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        backbone = load_backbone(
            run.backbone,
            weights=None if run.weights == "random" else "default",
            compat=run.compat,
            decoder=run.decoder or None,
            config=run.architecture,
        )
        if not run.drop_path:
            for module in backbone.modules():
                if hasattr(module, "rate"):  # PTv3's DropPath
                    setattr(module, "rate", 0.0)  # noqa: B010
        return Segmentation(backbone, classes, dropout=run.dropout)


def build_model(run: Run, classes: list[str]) -> Any:
    """The PeftModel that training starts from; all that is new in it depends on the seed alone."""
    import torch

    from pointadapt.methods.core import adapt

    config = method_config(run.method, run.options)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        return adapt(build_task(run, classes), config)


def load_model(run: Run, classes: list[str], checkpoint: str = "best") -> Any:
    """The PeftModel with the trained adapter ``adapter/best`` or ``adapter/last`` of a run folder, in eval mode."""
    from safetensors import SafetensorError

    from pointadapt.methods.core import load_adapted

    folder = run.folder / "adapter" / checkpoint
    if not folder.is_dir():
        raise UserError(f"{run.folder} has no trained adapter yet ({folder} is missing): finish pointadapt adapt first")
    try:
        return load_adapted(build_task(run, classes), folder).eval()
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{folder} is damaged ({error}): use the other checkpoint, or train again") from error


def method_config(name: str, options: dict[str, Any]) -> Any:
    """The config object of a method. Raises UserError for a name or an option that does not exist."""
    from pointadapt.methods import METHODS

    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: use one of {', '.join(METHODS)}")
    known = {f.name for f in dataclasses.fields(METHODS[name]) if f.init}
    if unknown := sorted(set(options) - known):
        raise UserError(f"method {name!r} has no option {unknown[0]!r}: pointadapt methods {name} lists them")
    return METHODS[name](**options)


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
