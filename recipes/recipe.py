"""What the recipes share: rows of a published table, each a Run with the paper's settings beside the paper's figures.

    pointadapt init data/scannet                               # once, where the preprocessed scans lie
    python recipes/scannet_gem.py data/scannet                 # trains and scores GEM; one GPU with 24 GB or more
    python recipes/scannet_gem.py data/scannet --method lora --grad-accum 6

A figure of ours goes into a row's ``here`` when somebody has run it in full; until then it says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pointadapt as pa
from pointadapt.checkpoint import check_resumable
from pointadapt.data.benchmarks import BENCHMARKS, facts
from pointadapt.domains.domain import open_domain

NOT_YET = "not yet reproduced here"
SCORES = ("miou", "macc", "allacc")
#: The published rule: a class that never occurs counts as 0 in the means.
ABSENT = "zero"
#: Left out of the rows of full fine-tuning on ScanNet++.
SCANNETPP_FULL = "the released full fine-tuning drops points, with probability 0.8, and crops 80 % before all else"


@dataclass(frozen=True)
class Row:
    """A line of a table: Run fields, the paper's scores in percent, ours (None: not yet reproduced here)."""

    settings: dict[str, Any]
    paper: dict[str, float]
    here: dict[str, float] | None = None


def row(paper: tuple[float, ...], **settings: Any) -> Row:
    """``paper``: mIoU, or mIoU, mAcc and allAcc."""
    return Row(settings, dict(zip(SCORES, paper, strict=False)))


@dataclass(frozen=True)
class Recipe:
    """A column of a published table.

    source   paper and table
    layout   the benchmark, as pointadapt init --layout names it
    common   Run fields that all rows share
    rows     name in the table -> Row; the first is the paper's own method
    guessed  settings that the paper does not give, as sentences
    """

    title: str
    source: str
    layout: str
    common: dict[str, Any]
    rows: dict[str, Row]
    guessed: tuple[str, ...] = ()

    def run(self, name: str, data: Path | str, **changes: Any) -> pa.Run:
        """The Run of a row; ``changes`` take the place of the paper's settings."""
        data = Path(data)
        cache = (data if data.suffix != ".yaml" else data.parent) / ".prepared"
        own = [Path(changes["labels"]).name] if "labels" in changes else []
        own += [f"seed{changes['seed']}"] if changes.get("seed") else []
        out = Path("runs") / "-".join([self.title, name, *own]).replace(" ", "-").replace("%", "pc")
        settings = {"data": data, "out": out, "cache": cache, **self.common, **self.rows[name].settings, **changes}
        return pa.Run(**settings)

    def score(self, run: pa.Run, resume: bool) -> dict[str, Any]:
        """Train, unless that is done, and evaluate as published.

        Raises UserError for data of another benchmark, and where what is to be resumed has other settings.
        """
        domain = open_domain(run)
        if domain.names != facts(self.layout)["names"]:
            raise pa.UserError(
                f"{domain.dataset.file} does not have the classes of {BENCHMARKS[self.layout].title}, which this "
                f"recipe is for: write it with pointadapt init --layout {self.layout}"
            )
        if resume and (run.folder / "result.json").is_file():
            check_resumable(domain.run, domain.settled(pa.Run.load(run.folder)), domain.dataset)
        else:
            pa.train(run, resume=resume and (run.folder / "state").is_dir())
        return pa.evaluate(run, absent=ABSENT)

    def told(self, name: str, result: dict[str, Any] | None = None) -> str:
        """The paper's figures, ours as published in this repository, and those of this run, in percent."""
        lines = [f"{self.title}, {name} ({self.source})"]
        here = self.rows[name].here
        for key, value in self.rows[name].paper.items():
            before = f"{here[key]:.1f}" if here else NOT_YET
            now = f"   this run {100 * result[key]:.1f}" if result else ""
            lines.append(f"  {key:7} paper {value:.1f}   repository: {before}{now}")
        return "\n".join(lines)


def arguments(recipe: Recipe, text: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the dataset.yaml that pointadapt init wrote")
    parser.add_argument("--method", default=next(iter(recipe.rows)), choices=list(recipe.rows), help="row of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", help="take the place of the row's: 10%%, 200pts, or a file with an official list")
    parser.add_argument("--grad-accum", type=int, default=1, help="parts of a batch computed in turn, for less memory")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], help="take the place of the recipe's")
    parser.add_argument("--out", type=Path, help="run folder")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """What the user can mend ends the program with a sentence and exit code 2, not with a traceback."""
    try:
        yield
    except pa.UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def begin(recipe: Recipe, text: str | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """(what the command line gave, the Run fields it changes); prints the row, and what the paper leaves open."""
    given = arguments(recipe, text)
    changes = {name: getattr(given, name) for name in ("seed", "grad_accum", "out", "labels", "precision")}
    print(recipe.told(given.method))
    for sentence in recipe.guessed:
        print(f"note: {sentence}")
    return given, {name: value for name, value in changes.items() if value is not None}


def main(recipe: Recipe, text: str | None) -> None:
    """The command line of a recipe."""
    given, changes = begin(recipe, text)
    with in_one_sentence():
        run = recipe.run(given.method, given.data, **changes)
        print(recipe.told(given.method, recipe.score(run, given.resume)))
