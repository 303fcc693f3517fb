"""The command line: ``pointadapt init | adapt | evaluate | predict | compare | distance | prepare | info | ...``.

Flags are made from dataclass fields: the run's from ``Run``, a method's from its config, under ``--method.``:

    pointadapt adapt scans/ --method gem --method.rank 16 --steps 500

What the user can mend becomes one line on stderr and exit code 2; anything else keeps its traceback. Nothing heavy is
imported before a command runs.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from pointadapt.cli_adapt import adapt_command, changed
from pointadapt.cli_init import Init, look
from pointadapt.cli_tools import DistanceOf, Prepare, number, split_list, with_hints
from pointadapt.errors import UserError
from pointadapt.run import option

#: What of the system's errors a user can mend, and how.
CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room and retry"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "see who may read and write it"),
    errno.ENAMETOOLONG: "choose a shorter name",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        parse(list(sys.argv[1:] if arguments is None else arguments)).run()
    except UserError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno not in CURES:
            raise
        return fail(f"{error.filename or 'the output'}: {os.strerror(error.errno)}; {CURES[error.errno]}")
    except KeyboardInterrupt:
        print("pointadapt: stopped", file=sys.stderr)
        return 130
    return 0


def fail(text: str) -> int:
    print("pointadapt:", " ".join(text.split()), file=sys.stderr)
    return 2


def parse(arguments: list[str]) -> Any:
    """The command asked for, as one of the classes below. Exits by itself for --help and for wrong flags."""
    arguments = [a.removeprefix("--data=") for a in arguments if a != "--data"]  # --data DATA is DATA
    commands: dict[str, Any] = {
        "init": Init,
        "adapt": adapt_command(arguments),
        "evaluate": Evaluate,
        "pool": Pool,
        "predict": Predict,
        "info": Info,
        "methods": Methods,
        "backbones": Backbones,
        "compare": Compare,
        "distance": DistanceOf,
        "prepare": Prepare,
        "demo": Demo,
    }
    return tyro.extras.subcommand_cli_from_dict(
        {name: with_hints(command) for name, command in commands.items()},
        prog="pointadapt",
        description="Adapt pretrained point-cloud models to your own scans, shapes and videos by training under 2 % of "
        "the parameters.",
        args=arguments,
        config=(
            tyro.conf.PositionalRequiredArgs,
            tyro.conf.PositionalMetavarFromFieldName,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.DisallowNone,
        ),
    )


VIEWS = "Test-time views: 0 = one pass; scans 1..13 = fragments and views, shapes 10 = published. Default: the run's."


@dataclass
class Evaluate:
    """Score a trained run on a split (scans on their original points); writes evaluation.json and report.html."""

    run_folder: Path = field(metadata={"help": "Folder that pointadapt adapt wrote."})
    split: str | None = option(
        None, "train, val, test, or a name under tests. Default: test if there is one, else val."
    )
    checkpoint: Literal["best", "last"] = option("best", "Which adapter.")
    tta: int | None = option(None, VIEWS)
    absent: Literal["exclude", "zero"] = option("exclude", "A class neither labelled nor predicted: left out, or 0.")
    corruption: str | None = option(None, "Corrupt every shape first: jitter, rotate, dropout_local and others.")
    severity: int = option(3, "How much it is corrupted: 1 to 5.")

    def run(self) -> None:
        from pointadapt.analysis.describe import scores_table, show
        from pointadapt.evaluate import evaluate

        result = evaluate(self.run_folder, **{k: v for k, v in vars(self).items() if k != "run_folder"})
        show(scores_table(result))
        print(f"wrote evaluation.json and report.html into {self.run_folder}")


@dataclass
class Pool:
    """Scores of several runs as one, from the sum of their evaluations' confusions: the 6-fold figures of S3DIS."""

    run_folders: tyro.conf.Positional[tuple[Path, ...]] = field(
        metadata={"help": "Folders of runs, each scored with pointadapt evaluate on scans of its own."}
    )
    out: Path | None = option(None, "Also write the result to this JSON file.")

    def run(self) -> None:
        from pointadapt.analysis.describe import scores_table, show
        from pointadapt.evaluate import pool
        from pointadapt.files import write_text

        result = pool(self.run_folders)
        show(scores_table(result))
        if self.out is not None:
            write_text(self.out, json.dumps(result, indent=2) + "\n")
            print(f"wrote {self.out}")


@dataclass
class Predict:
    """Label a scan, or a folder of scans, of any size; the input is never written to.

    A classifier of shapes writes one table, predictions.csv: file, class, confidence. Each video gets a table of its
    clips or frames and a picture of its timeline.
    """

    run_folder: Path = field(metadata={"help": "Folder that pointadapt adapt wrote."})
    source: Path = field(metadata={"help": "Scan, shape, video (a folder of frames or a file), or folder of them."})
    out: Path | None = option(
        None,
        "File, or folder for a folder, not in SOURCE; for shapes' classes a .csv or a folder. Default: SOURCE with "
        "_labelled behind its name.",
    )
    checkpoint: Literal["best", "last"] = option("best", "Which adapter.")
    tta: int | None = option(None, VIEWS)
    overwrite: bool = option(False, "Replace outputs that are there.")
    probabilities: bool = option(False, "Shapes, actions: a column with the probability of every class, too.")
    gaps: bool = option(False, "Videos: frames may be missing or empty; the frames before them stand in.")
    category: str | None = option(None, "Parts: what the shapes are, where they lie in no folder of a category.")

    def run(self) -> None:
        from pointadapt.predict import predict

        told = {k: v for k, v in changed(self).items() if k in ("probabilities", "gaps", "category")}
        for file in predict(self.run_folder, self.source, self.out, self.checkpoint, self.overwrite, self.tta, **told):
            print(f"wrote {file}")


@dataclass
class Info:
    """Say what a file or folder holds: a scan or shape, a data set, a run, an adapter, a backbone checkpoint."""

    path: Path = field(metadata={"help": "Scan, folder with a dataset.yaml, run folder, adapter folder, checkpoint."})

    def run(self) -> None:
        from pointadapt.analysis.describe import describe, show

        show(*describe(self.path))


@dataclass
class Methods:
    """List the adaptation methods, or the options of one."""

    method: tyro.conf.Positional[str | None] = option(None, "Show this method's options.")

    def run(self) -> None:
        from pointadapt.analysis.describe import method_table, methods_table, show

        show(method_table(self.method) if self.method else methods_table())


@dataclass
class Backbones:
    """List the backbones that load by name."""

    def run(self) -> None:
        from pointadapt.analysis.describe import backbones_table, show

        show(backbones_table())


@dataclass
class Compare:
    """Compare methods under one protocol: a grid that can be stopped, resumed and shared out over processes."""

    data: Path = field(metadata={"help": "Folder of scans, shapes or videos; test is scored, val where there is none."})
    out: Path = option(Path("compare"), "Folder of the grid; the same command goes on with it, or helps it along.")
    backbone: str | None = option(None, "Name or checkpoint file. Default: the kind of data's own.")
    architecture: str | None = option(None, "Backbone name whose architecture a bare checkpoint file has.")
    methods: str = option(
        "all", "Comma-separated: names, name[option=value,...], label = name[...], random:name, or all."
    )
    seeds: int = option(3, "Runs of each method and share of labels.")
    labels: str = option("100%", "Comma-separated: shares of the items (10%), labels per scan (200pts), list files.")
    factors: str = option("0.3,1,3", "Learning rates to try on validation data, as factors on the recipe's.")
    trial_share: float = option(0.25, "Steps of such a trial, as a share of a run's; short ones favour high rates.")
    steps: int | None = option(None, "Optimiser steps of a run. Default: the kind of data's own.")
    batch_size: int | None = option(None, "Crops or shapes per step. Default: the kind of data's own.")
    points: int | None = option(None, "Most voxels of a crop, or points of a shape. Default: the kind of data's own.")
    head: Literal["mlp3", "mlp2", "mlp", "linear"] | None = option(None, "Head of a classifier; of videos mlp, linear.")
    decoder: bool = option(False, "Put the PTv3 decoder on an encoder-only backbone and train it with every head.")
    lr: float | None = option(None, "The recipe's learning rate of the adapter. Default: the kind of data's own.")
    head_lr: float | None = option(None, "That of the head.")
    backbone_lr: float | None = option(None, "That of pretrained weights where a method trains them.")
    precision: Literal["no", "bf16", "fp16"] | None = option(None, "Mixed precision. Default: bf16 on a GPU, else no.")
    grad_accum: int = option(1, "Parts a step's crops are computed in, one after the other (less memory).")
    transform: str = option("auto", "Training transforms, the same for all.")
    mix3d: float = option(0.0, "Probability of merging the crops of a batch in pairs (Mix3D); scenes only.")
    select: Literal["last", "val"] = option("last", "Which step counts: the last, or the best on validation data.")
    eval_every: int = option(100, "Steps between states that a stopped run goes on from.")
    threads: int = option(0, "CPU threads of torch; 0 = leave them.")
    num_workers: int = option(0, "Processes that load data.")
    cache: Path | None = option(None, "Folder that keeps prepared data on disk; without it they stay in memory.")
    report_only: bool = option(False, "Train nothing; write the report of what is finished.")

    def run(self) -> None:
        from pointadapt.compare.compare import compare

        own = ("backbone", "architecture", "steps", "batch_size", "points", "head", "decoder", "lr", "head_lr",
               "backbone_lr", "precision", "grad_accum", "transform", "mix3d", "select", "eval_every", "threads",
               "num_workers", "cache")  # fmt: skip
        settings = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        look(self.data, self.backbone or "nano")
        result = compare(
            self.data, self.out, split_list(self.methods), self.seeds, split_list(self.labels),
            [number(text) for text in split_list(self.factors)], self.trial_share, self.report_only, **settings,
        )  # fmt: skip
        wrote = f"wrote compare.html into {self.out}" if result["rows"] else "there is nothing to report yet"
        print(f"{result['finished']} of {result['runs']} runs are finished; {wrote}")


@dataclass
class Demo:
    """Adapt the bundled model to rooms of another style, with GEM and a linear probe, and compare: no download.

    With --video: the bundled model of objects learns motions forwards and backwards with PointATA, against a probe that
    sees one frame at a time.
    """

    out: Path = option(Path("demo"), "Folder for data, runs, report.html and what was predicted.")
    video: bool = option(False, "Point videos in place of rooms.")
    seeds: int = option(1, "Repeat with this many seeds; 3 gives the README's table.")
    steps: int = option(0, "Training steps of each run; 0 = as many as fit into five minutes on two cores.")
    random: bool = option(False, "Also a linear probe on random weights, as a control; videos: all on random weights.")
    clips: int = option(0, "Videos: clips to train on; 0 = 240, half as many to test.")
    pairs: int = option(3, "Videos: motions, each forwards and backwards; 6 are all.")

    def run(self) -> None:
        if self.video:
            from pointadapt.demo_video import Size, demo_video

            size = Size(self.pairs)
            clips = {"train": self.clips, "test": max(self.clips // 2, 1)} if self.clips else {}
            size = dataclasses.replace(size, steps=self.steps or size.steps, **clips)
            demo_video(self.out, self.seeds, size, self.random)
            return
        from pointadapt.demo import demo

        demo(self.out, self.seeds, self.steps, self.random)


if __name__ == "__main__":
    sys.exit(main())
