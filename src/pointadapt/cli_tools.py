"""Commands beside the training path: ``pointadapt distance | prepare``, and what commands read lists with."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from pointadapt.cli_init import look
from pointadapt.data.prepare import PREPARE
from pointadapt.errors import UserError
from pointadapt.kinds import YAML, kind_of
from pointadapt.run import option


def split_list(text: str) -> list[str]:
    """At commas outside of brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{text!r} is no number: write --factors 0.3,1,3") from None


def copied(f: dataclasses.Field) -> Any:
    """A dataclass field for another class: fields belong to the class they were made for."""
    return field(default=f.default, default_factory=f.default_factory, metadata=f.metadata)  # type: ignore[call-overload]


def with_hints(command: type) -> type:
    """The dataclass with a help that never says "(default: None)": of what is unset by default, the sentence tells what
    that means."""
    types = get_type_hints(command, include_extras=True)
    unset: list[Any] = []
    for f in dataclasses.fields(command):
        if f.default is None or f.default == ():
            hint = "" if "default" in f.metadata["help"].lower() else "(unset by default)"
            unset.append((f.name, Annotated[types[f.name], tyro.conf.arg(help_behavior_hint=hint)], copied(f)))
    return make_dataclass(command.__name__, unset, bases=(command,), namespace={"__doc__": command.__doc__})


@dataclass
class DistanceOf:
    """How far a data set is from another as a frozen model sees them; of several models, which one is nearest to it.

    A sample is a shape, a clip (a frame, a token) or a voxel of a scene; features and classes of both folders enter
    (optimal-transport distance of data sets). Shapes and videos are seen by nano-mae and its kin, scenes by nano and
    its kin. The relative distance can be compared between models: at the floor the two cannot be told apart, at 1 they
    are as far as strangers within A.
    """

    a: Path = field(metadata={"help": "Folder of labelled data; procedural = the shapes of nano-mae's pretraining."})
    b: Path = field(metadata={"help": "Folder of your labelled data."})
    backbone: str | None = option(None, "Names or files, comma-separated. Default: nano-mae; nano for scenes.")
    limit: int = option(500, "Most samples of each side.")
    split: str = option("train", "Which split of both.")
    at: Literal["embedder", "output"] = option("embedder", "Tokens before any block, or behind the last.")
    seed: int = option(0, "Draws the samples.")
    picture: Path | None = option(None, "A PNG of the distances between classes; one a backbone.")

    def run(self) -> None:
        from pointadapt.analysis.describe import show, table
        from pointadapt.analysis.distance import distance

        if self.limit < 2:
            raise UserError(f"limit is {self.limit}; it must be at least 2")
        for side in (self.a, self.b):
            look(side, self.backbone or "nano")
        is_scene = any(kind_of(side) == "scenes" and side.exists() for side in (self.a, self.b))
        names = split_list(self.backbone or ("nano" if is_scene else "nano-mae"))
        found = []
        for name in names:
            file = self.picture
            if file is not None and len(names) > 1:
                file = file.with_name(f"{file.stem}-{Path(name).stem}{file.suffix or '.png'}")
            found.append(distance(self.a, self.b, name, self.limit, self.split, self.at, self.seed, picture=file))
            if file is not None:
                print(f"wrote {file}")
        columns = ("backbone", "relative distance", "chance floor", "squared distance", "5-NN accuracy", "samples")
        made = table(f"{self.b} as seen from {self.a}, nearest first", *columns)
        for row in sorted(found, key=lambda row: row.relative):
            sizes = "{} + {}".format(*row.sizes)
            shares = f"{row.relative:.3f}", f"{row.floor:.3f}", f"{row.squared:.4g}", f"{100 * row.neighbours:.1f} %"
            made.add_row(row.name, *shares, sizes)
        made.caption_justify = "left"
        made.caption = (
            "relative: 0 equal, 1 as far as two samples of A; at the floor B cannot be told from A\n"
            "5-NN accuracy: B's classes in these features; a small distance is of no use where it is low"
        )
        show(made)


@dataclass
class Prepare:
    """Convert the raw download of a benchmark; a call that was stopped goes on where it was."""

    kind: str = field(metadata={"help": "What it is: " + "; ".join(f"{k} = {p.text}" for k, p in PREPARE.items())})
    raw: Path = field(metadata={"help": "Folder of the raw download; it is only read."})
    out: Path = field(metadata={"help": "Folder for what becomes of it; then: pointadapt init OUT"})
    overwrite: bool = option(False, "Convert again what is there already.")
    workers: int = option(1, "Processes that share the work.")

    def run(self) -> None:
        from pointadapt.data.prepare import prepare

        with counting(self.kind) as show:
            done = prepare(self.kind, self.raw, self.out, self.overwrite, self.workers, show)
        what = PREPARE[self.kind].outputs
        there = f", {done.skipped} were there already" if done.skipped else ""
        print(f"wrote {done.written} {what} into {self.out}{there}")
        for note in done.notes:
            print(f"note: {note}", file=sys.stderr)
        if done.failed:
            raise UserError(f"{len(done.failed)} {what} were not written: {'; '.join(done.failed)}")
        ready = (self.out / YAML).is_file()  # then init has nothing left to write
        print(f"look at them with: pointadapt {'info' if ready else 'init'} {self.out}")


@contextmanager
def counting(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yields ``show(done, in all)``, a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(name)
        yield lambda done, total: bar.update(task, completed=done, total=total)
