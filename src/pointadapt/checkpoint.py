"""The run folder: what is in it, who may write it, and the state that a killed run goes on from.

    run.json  metrics.jsonl  result.json  tensorboard/      what was done, and how it went
    adapter/best  adapter/last                              peft folders: adapter + head
    state/state.pt                                          weights in training, optimiser, schedule, step

Every file is written whole or not at all. Random number generators are no part of the state: all randomness is a
function of the seed and the step (train.py).
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from pointadapt.errors import UserError
from pointadapt.files import read_text, write_bytes, write_text
from pointadapt.run import Run, read_settings

ALIGNED = ("align.json", "align.safetensors")  # Stage 1 of PointATA, done (domains/alignment.py)
MADE_BY_TRAINING = (*ALIGNED, "run.json", "result.json", "metrics.jsonl", "adapter", "state", "tensorboard")
MADE_AFTERWARDS = ("evaluation.json", "report.html")


@dataclass
class Progress:
    """Where a run stands; the part of its state that is no tensor of the model."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    losses: list[Tensor] = field(default_factory=list)  # since the last line of the log
    scores: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    best_step: int = 0


def check_folder(run: Run, resume: bool, overwrite: bool) -> None:
    """Raises UserError where the folder's content does not suit a start, or a resume."""
    out = run.folder
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out a folder")
    if not resume:
        if (out / "run.json").exists() and not overwrite:
            raise UserError(f"{out} holds a run already: --resume goes on with it, --overwrite starts it afresh")
        return
    if not can_resume(out):
        raise UserError(f"{out} holds no saved state to resume: start it with --overwrite")


def has_state(out: Path) -> bool:
    return (out / "state" / "state.pt").is_file()


def can_resume(out: Path) -> bool:
    """Whether a killed run left anything to go on from: a state of training, or at least a finished Stage 1."""
    return has_state(out) or all((out / name).is_file() for name in ALIGNED)


#: Settings that a resumed run may change: where things lie, and what the machine at hand offers.
FREE = ("data", "out", "cache", "num_workers", "threads")


def check_resumable(run: Run, started: Run, dataset: Any) -> None:
    """Raises UserError where ``run`` has other settings, or its data set reads otherwise, than when it was started.

    The data may have moved since.
    """
    before, now = started.as_dict(), run.as_dict()
    changed = [k for k in now if now[k] != before[k] and k not in FREE]
    if changed:
        told = ", ".join(f"{k} {before[k]} -> {now[k]}" for k in changed)
        raise UserError(f"{run.folder} was started with other settings ({told}): a resumed run must keep them")
    file = run.folder / "run.json"
    content = read_settings(file)["dataset"]
    then = type(dataset).from_dict(content, dataset.folder, file)  # keys since then: their defaults
    if json.dumps(then.as_dict()) != json.dumps(dataset.as_dict()):
        raise UserError(
            f"{dataset.file} is another data set than {run.folder} was started on: give that one, or another --out"
        )


def clear_folder(out: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    for name in (*MADE_BY_TRAINING, *MADE_AFTERWARDS):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def save(out: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any, schedule: Any, now: Progress) -> None:
    """adapter/best if it is, adapter/last, then the state: killed in between, the step is merely done again."""
    if now.losses:  # of all processes: a resumed run starts each from the same state
        now.losses = list(accelerator.reduce(torch.stack(now.losses), "mean"))
    if accelerator.is_main_process:
        bare = accelerator.unwrap_model(model)
        for name in ("best", "last") if now.best_step == now.step else ("last",):
            save_adapter(bare, out / "adapter" / name)
        state = {
            "model": trained_state(bare),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            "progress": vars(now),
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_bytes(out / "state" / "state.pt", content.getvalue())
    accelerator.wait_for_everyone()


def load_state(out: Path, accelerator: Accelerator, model: nn.Module, optimizer: Any, schedule: Any) -> Progress:
    """Set model, optimiser and schedule to the saved state."""
    file = out / "state" / "state.pt"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has a dozen ways to say that a file is damaged
        raise UserError(f"{file} is damaged ({type(error).__name__}): start again with --overwrite") from error
    bare = accelerator.unwrap_model(model)
    expected = trained_state(bare)
    if expected.keys() != state["model"].keys():
        raise UserError(f"{file} holds other weights than this version of the method trains: start with --overwrite")
    bare.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if accelerator.scaler and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    now = Progress(**state["progress"])
    now.losses = [loss.to(accelerator.device) for loss in now.losses]
    return now


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters with gradients, and the buffers (BatchNorm statistics) of their modules."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    owners = {name.rpartition(".")[0] for name in trained}
    buffers = {name for name, _ in model.named_buffers() if name.rpartition(".")[0] in owners}
    return {k: v for k, v in model.state_dict().items() if k in trained | buffers}


def save_adapter(model: Any, folder: Path) -> None:
    """peft's ``save_pretrained``; each file of an existing folder is replaced in one go."""
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        model.save_pretrained(fresh, save_embedding_layers=False)  # "auto" would ask the hub about the backbone
        folder.mkdir(parents=True, exist_ok=True)
        readable = (fresh / "adapter_config.json").stat().st_mode  # safetensors writes for its owner alone
        for file in fresh.iterdir():
            file.chmod(readable)
            os.replace(file, folder / file.name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


class Log:
    """metrics.jsonl and TensorBoard. Opened again by a resumed run, it forgets what came after ``step``."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.file = out / "metrics.jsonl"
        lines = read_text(self.file).splitlines() if self.file.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_text(self.file, "".join(f"{line}\n" for line in kept))
        self.board = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    def write(self, **line: Any) -> None:
        with open(self.file, "a") as stream:
            stream.write(json.dumps(line) + "\n")
        where = line.get("split", "train")
        for key, value in line.items():
            if isinstance(value, float) and key != "seconds":
                self.board.add_scalar(f"{where}/{key}", value, line["step"])

    def close(self) -> None:
        self.board.close()
