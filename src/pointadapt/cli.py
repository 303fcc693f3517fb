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
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from pointadapt.cli_tools import DistanceOf, Prepare, copied, number, split_list, with_hints
from pointadapt.errors import UserError
from pointadapt.kinds import KINDS, YAML, kind_of
from pointadapt.run import Run, option

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Fields of Run that are flags: a method's options have flags of their own, the kind of data is in dataset.yaml.
RUN_FLAGS = [f.name for f in dataclasses.fields(Run) if f.name not in ("options", "kind")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        parse(list(sys.argv[1:] if arguments is None else arguments)).run()
    except UserError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno not in DISK:
            raise
        return fail(f"cannot write {error.filename or 'the output'}: {os.strerror(error.errno)}; make room and retry")
    except KeyboardInterrupt:
        print("pointadapt: stopped", file=sys.stderr)
        return 130
    return 0


def fail(text: str) -> int:
    print("pointadapt:", " ".join(text.split()), file=sys.stderr)
    return 2


def parse(arguments: list[str]) -> Any:
    """The command asked for, as one of the classes below. Exits by itself for --help and for wrong flags."""
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


@dataclass
class Init:
    """Look at a folder of scans, shapes or videos and write its dataset.yaml: classes, splits, sizes."""

    scans: Path = field(
        metadata={"help": "Folder with labelled scans, class folders of shapes or of videos, or a benchmark."}
    )
    task: Literal["scenes", "classification", "parts", "action", "action_segmentation", "video_segmentation"] | None = (
        option(None, "What it is for. Default: from the files.")
    )
    classes: tuple[int, ...] = option((), "Raw label ids to learn; all others are ignored. Default: all but noise.")
    label_field: str | None = option(None, "Field of the files with the labels. Default: the first known name.")
    grid_size: float | None = option(None, "Edge of a voxel in metres. Default: from the spacing of the points.")
    scale: float | None = option(None, "Factor on coordinates. Default: makes a voxel 0.02, which backbones know.")
    val: float | None = option(
        None,
        "Share to hold out for validation: of the points, in whole files; of the shapes or videos of each class. "
        "Default: 0.2; nothing of shapes and videos that have a test split.",
    )
    layout: str | None = option(None, "Scenes: a benchmark (scannet200, s3dis, ...). Default: seen from the folder.")
    variant: str | None = option(None, "Which of several data sets in the folder: OBJ_BG; of S3DIS, Area_6 or 6fold.")
    points: int | None = option(
        None, "Points of a shape, or of a video's frame, that the model sees. Default: 1024 or fewer, or as published."
    )
    up: Literal["x", "y", "z", "-y", "-z"] | None = option(
        None, "Shapes, videos: their upward axis. Default: z, or as published."
    )
    frames: int | None = option(None, "Videos: frames of a clip. Default: 24 or fewer, or as published.")
    backbone: str = option("nano", "Rooms get voxels no finer than this backbone was trained on.")
    overwrite: bool = option(False, "Replace a dataset.yaml that is there.")

    def run(self) -> None:
        from pointadapt.data.benchmarks import find_benchmark
        from pointadapt.data.object_folders import find_objects
        from pointadapt.data.survey import init_dataset, survey
        from pointadapt.data.video_folders import find_videos

        layout = None
        chosen = self.label_field is not None or bool(self.classes)
        if self.layout is not None or (self.scans.is_dir() and not chosen and self.task in (None, "scenes")):
            benchmark = find_benchmark(self.scans, self.layout, self.variant)
            if benchmark is not None:
                self.refuse("a benchmark", "classes", "label_field", "val", "points", "up")
                return self.init_scenes(benchmark)
        if self.label_field is None or self.task is not None:  # labels of points make it scenes
            told = (self.task, self.variant, self.points, self.up, self.val, self.label_field, self.frames)
            videos = find_videos(self.scans, *told)
            if videos is not None:
                self.refuse("videos", "classes", "grid_size", "scale", "layout")
                file = init_video_set(self.scans, videos, self.overwrite)
                print(file.read_text(), end="")
                print(f"\nwrote {file}: check it, then run: pointadapt adapt {self.scans}")
                return
            layout = find_objects(self.scans, self.task, self.variant, self.points, self.up, self.val, self.label_field)
        if layout is not None:
            self.refuse("shapes", "classes", "grid_size", "scale", "frames")
            file = init_shapes(self.scans, layout, self.overwrite)
            print(file.read_text(), end="")
            print(f"\nwrote {file}: check it, then run: pointadapt adapt {self.scans}")
            return
        files = survey(self.scans, self.label_field)
        self.refuse("scenes", "variant", "points", "up", "frames")
        file = init_dataset(
            self.scans,
            files,
            classes=self.classes or None,
            label_field=self.label_field,
            grid_size=self.grid_size,
            scale=self.scale,
            val=0.2 if self.val is None else self.val,
            overwrite=self.overwrite,
            indoor_grid=indoor_grid(self.backbone),
        )
        print(file.read_text(), end="")
        note_warnings(self.scans, files)
        print(f"\nwrote {file}: check it, then run: pointadapt adapt {self.scans}")

    def init_scenes(self, benchmark: Any) -> None:
        from pointadapt.data.benchmark_init import init_benchmark

        files = init_benchmark(self.scans, benchmark, self.grid_size, self.scale, self.overwrite)
        print(files[0].read_text(), end="")
        for note in benchmark.notes:
            print(f"note: {note}", file=sys.stderr)
        known, grid = indoor_grid(self.backbone), next(iter(benchmark.datasets.values())).grid_size
        if self.grid_size is None and known > grid:
            print(
                f"note: the published voxels of {grid:g} m; --grid-size {known:g} suits {self.backbone}",
                file=sys.stderr,
            )
        print(f"\nfound {benchmark.title}; wrote {', '.join(map(str, files))}")

    def refuse(self, holds: str, *flags: str) -> None:
        """Raises UserError for flags that say nothing about what the folder holds."""
        for name in flags:
            if getattr(self, name):
                raise UserError(f"--{name.replace('_', '-')} says nothing about {holds}, which {self.scans} holds")


def init_shapes(folder: Path, layout: Any, overwrite: bool = False) -> Path:
    """Write the dataset.yaml of a folder of shapes; what was found wanting goes to stderr."""
    from pointadapt.data.object_survey import init_objects, warnings

    file = init_objects(folder, layout, overwrite)
    for warning in warnings(layout):
        print(f"note: {warning}", file=sys.stderr)
    return file


def init_video_set(folder: Path, layout: Any, overwrite: bool = False) -> Path:
    """Write the dataset.yaml of a folder of videos; what was found wanting goes to stderr."""
    from pointadapt.data.video_survey import init_videos, video_warnings

    file = init_videos(folder, layout, overwrite)
    for warning in video_warnings(layout):
        print(f"note: {warning}", file=sys.stderr)
    return file


def note_warnings(scans: Path, files: list[Any]) -> None:
    """Say on stderr what a look at the ``files`` of a new data set found wanting."""
    from pointadapt.data.scans import DataSet
    from pointadapt.data.survey import report

    for warning in report(DataSet.open(scans), files)["warnings"]:
        print(f"note: {warning}", file=sys.stderr)


def indoor_grid(backbone: str) -> float:
    """The voxel a named backbone was trained on in rooms; the common one for a checkpoint file."""
    from pointadapt.backbones.weights import BACKBONES, Source

    return BACKBONES[backbone].indoor_grid if backbone in BACKBONES else Source.indoor_grid


@dataclass
class Adapt:
    """Train an adapter and a head on a folder of labelled scans, shapes or videos.

    Options of a method are flags too: pointadapt adapt --method gem --help shows them as --method.rank and so on.
    """

    def run(self) -> None:
        from pointadapt.analysis.describe import result_table, show
        from pointadapt.data.benchmark_init import init_benchmark
        from pointadapt.data.benchmarks import find_benchmark
        from pointadapt.data.object_folders import find_objects
        from pointadapt.data.survey import init_dataset, survey
        from pointadapt.data.video_folders import find_videos
        from pointadapt.train import train

        run, flags = self.settings(), vars(self)
        if run.data.is_dir() and not (run.data / YAML).is_file():
            benchmark = find_benchmark(run.data)
            videos = None if benchmark else find_videos(run.data)
            layout = None if benchmark or videos else find_objects(run.data)
            if benchmark is not None:
                (file,) = init_benchmark(run.data, benchmark)
            elif videos is not None:
                file = init_video_set(run.data, videos)
            elif layout is not None:
                file = init_shapes(run.data, layout)
            else:
                files = survey(run.data)
                file = init_dataset(run.data, files, indoor_grid=indoor_grid(run.backbone))
                note_warnings(run.data, files)
            print(f"{run.data} has no {YAML}: wrote {file} after looking at its files")
            run = self.settings()  # the kind of data is known now
        try:
            result = train(run, resume=flags["resume"], overwrite=flags["overwrite"])
        except KeyboardInterrupt:
            if (run.folder / "state").is_dir():
                print(f"go on with: pointadapt adapt {run.data} --out {run.folder} --resume", file=sys.stderr)
            raise
        if os.environ.get("RANK", "0") == "0":  # one of several processes
            show(result_table(result))
            print(f"score it with: pointadapt evaluate {run.folder}")
            print(f"label a file with: pointadapt predict {run.folder} FILE")

    def settings(self) -> Run:
        """The Run that the flags say; with --resume, the run's own settings with the flags given on top."""
        given = {k: v for k, v in changed(self).items() if k in RUN_FLAGS}
        method_options = getattr(self, "method_options", None)
        if method_options is not None:
            default = KINDS[kind_of(given["data"])].recipe["method"]
            used = type(method_options).__name__
            if "method" not in given and used != default:  # the kind of data was not known yet
                raise UserError(
                    f"{given['data']} is for method {default} unless you name another: its options need --method NAME"
                )
            given |= {"method": used, "options": changed(method_options)}
        run = Run(**given)
        if not vars(self)["resume"]:
            return run
        return dataclasses.replace(Run.load(run.folder), **{k: v for k, v in given.items() if k != "out"})


def changed(values: Any) -> dict[str, Any]:
    """The fields of a dataclass instance that differ from their defaults."""

    def default(f: dataclasses.Field) -> Any:
        return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()

    return {
        f.name: getattr(values, f.name) for f in dataclasses.fields(values) if getattr(values, f.name) != default(f)
    }


def adapt_command(arguments: list[str]) -> type:
    """Adapt with a flag per field of Run, and one per option of the method named on the command line.

    Only then are the methods (and peft, which is slow to import) loaded.
    """
    hints = get_type_hints(Run)
    flags: list[Any] = [
        (f.name, hints[f.name] | None if f.default is None else hints[f.name], copied(f))
        for f in dataclasses.fields(Run)
        if f.name in RUN_FLAGS
    ]
    flags.append(("resume", bool, option(False, "Go on with the run in --out from its last saved state.")))
    flags.append(("overwrite", bool, option(False, "Start afresh in a folder that holds a run.")))
    name = method_asked(arguments)
    if name is not None:
        from pointadapt.methods import METHODS, options

        if name not in METHODS:
            raise UserError(f"unknown method {name!r}: use one of {', '.join(METHODS)}")
        known, types = options(METHODS[name]), get_type_hints(METHODS[name])
        if not methods_named(arguments):
            check_options(name, {f.name for f in known}, arguments)
        fields = [(f.name, types[f.name], copied(f)) for f in known]
        config = with_hints(make_dataclass(name, fields, namespace={"__doc__": f"Options of {name}."}))
        kind = Annotated[config, tyro.conf.arg(name="method")]  # type: ignore[valid-type]
        flags.append(("method_options", kind, field(default_factory=config)))
    return make_dataclass("Adapt", flags, bases=(Adapt,), namespace={"__doc__": Adapt.__doc__})


def methods_named(arguments: list[str]) -> list[str]:
    """What ``--method`` says."""
    named = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--method"]
    return named + [a.removeprefix("--method=") for a in arguments if a.startswith("--method=")]


def method_asked(arguments: list[str]) -> str | None:
    """The method whose options must be known to read these arguments, or None."""
    if arguments[:1] != ["adapt"]:
        return None
    named = methods_named(arguments)
    has_options = any(a.startswith("--method.") for a in arguments)
    if has_options or (named and {"-h", "--help"} & set(arguments)):
        data = next((a for a in arguments[1:2] if not a.startswith("-")), "")
        return named[-1] if named else KINDS[kind_of(data)].recipe["method"]
    return None


def check_options(method: str, known: set[str], arguments: list[str]) -> None:
    """Raises UserError for an option that a method which nobody named does not have."""
    for flag in (a.partition("=")[0] for a in arguments if a.startswith("--method.")):
        name = flag.removeprefix("--method.").replace("-", "_")
        if not {name, name.removeprefix("no_")} & known:
            raise UserError(
                f"{flag} is no option of {method}, the method unless you name another: give --method NAME as well "
                "(pointadapt methods NAME lists its options)"
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
    category: str | None = option(None, "Parts: what the shapes are, where they lie in no folder of a category.")

    def run(self) -> None:
        from pointadapt.predict import predict

        told = {k: v for k, v in changed(self).items() if k in ("probabilities", "category")}
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

    data: Path = field(metadata={"help": "Folder with a dataset.yaml that lists train, val and test."})
    out: Path = option(Path("compare"), "Folder of the grid; the same command goes on with it, or helps it along.")
    backbone: str | None = option(None, "Name or checkpoint file. Default: the kind of data's own.")
    methods: str = option("all", "Comma-separated: names, name[option=value,...], random:name, or all.")
    seeds: int = option(3, "Runs of each method and share of labels.")
    labels: str = option("100%", "Comma-separated shares of the training items (10%) or labels per scan (200pts).")
    factors: str = option("0.3,1,3", "Learning rates to try on validation data, as factors on the recipe's.")
    trial_share: float = option(0.25, "Steps of such a trial, as a share of a run's.")
    steps: int | None = option(None, "Optimiser steps of a run. Default: the kind of data's own.")
    batch_size: int | None = option(None, "Crops or shapes per step. Default: the kind of data's own.")
    points: int | None = option(None, "Most voxels of a crop, or points of a shape. Default: the kind of data's own.")
    head: Literal["mlp3", "mlp2", "mlp", "linear"] | None = option(None, "Head of a classifier; of videos mlp, linear.")
    transform: str = option("auto", "Training transforms, the same for all.")
    select: Literal["last", "val"] = option("last", "Which step counts: the last, or the best on validation data.")
    threads: int = option(0, "CPU threads of torch; 0 = leave them.")
    report_only: bool = option(False, "Train nothing; write the report of what is finished.")

    def run(self) -> None:
        from pointadapt.compare.compare import compare

        own = ("backbone", "steps", "batch_size", "points", "head", "transform", "select", "threads")
        settings = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        result = compare(
            self.data, self.out, split_list(self.methods), self.seeds, split_list(self.labels),
            [number(text) for text in split_list(self.factors)], self.trial_share, self.report_only, **settings,
        )  # fmt: skip
        print(f"{result['finished']} of {result['runs']} runs are finished; wrote compare.html into {self.out}")


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
