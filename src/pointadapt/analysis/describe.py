"""Tables for the terminal: what a scan, data set, run, adapter or checkpoint holds, and how a run went."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pointadapt.errors import UserError, few
from pointadapt.files import read_json
from pointadapt.kinds import KINDS, SCENES, YAML

CHECKPOINTS = (".pth", ".pt", ".bin", ".safetensors")


def show(*tables: Table) -> None:
    """Print to stdout, as wide as the terminal or 100 columns into a file."""
    console = Console(width=None if os.isatty(1) else 100)
    for table in tables:
        console.print(table)


def table(title: str, *columns: str) -> Table:
    """Text columns left, figures right."""
    made = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 or column in ("value", "help", "note") else "right")
    return made


def facts(title: str, values: dict[str, Any]) -> Table:
    made = table(title, "", "value")
    made.show_header = False
    for name, value in values.items():
        made.add_row(name, str(value))
    return made


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


# --- how it went -----------------------------------------------------------------------------------------------------


def scores_table(result: dict[str, Any]) -> Table:
    """A class a row with its score and size, then the means, of what ``evaluate`` returned."""
    kind = KINDS[result.get("kind", SCENES.name)]
    title = f"{result['run']}: {result['split']}, {result[kind.counted]:,} {kind.counted}, tta {result['tta']}"
    if result.get("corruption"):
        title += ", {name} at severity {severity}".format(**result["corruption"])
    made = table(title, "class", *kind.per_class.values(), kind.counted)
    absent = 0
    for index, name in enumerate(result["classes"]):
        values = [result[key][index] for key in kind.per_class]
        if any(value is not None for value in values):
            made.add_row(name, *map(percent, values), f"{sum(result['confusion'][index]):,}")
        else:
            absent += 1
    if absent:
        made.add_row(f"{absent} more, which do not occur")
    made.add_section()
    for name, value in result.get("categories", {}).items():
        if value is not None:
            made.add_row(f"shapes: {name}", percent(value))
    for key, heading in kind.scores.items():
        made.add_row(heading, percent(result[key]))
    for heading, value in result.get("further", {}).items():
        made.add_row(heading, percent(value))
    if dropped := result.get("dropped"):
        if "video_accuracy_all" in result:
            made.add_row("video acc., those left out as wrong", percent(result["video_accuracy_all"]))
        made.caption = f"left out, shorter than a clip (`short_video`): {few(dropped)}"
        made.caption += ", see evaluation.json" if len(dropped) > 5 else ""
        made.caption_justify = "left"
    return made


def result_table(result: dict[str, Any]) -> Table:
    """Scores, time, memory and parameters of what ``train`` returned."""
    counts = result["parameters"]
    values = {
        "trained weights": f"{counts['trained']:,} of {counts['total']:,} ({counts['trained'] / counts['total']:.2%}), "
        f"{counts['trained_without_head']:,} without the head",
        "steps": f"{result['steps']} in {result['seconds']:.0f} s on {result['device']}",
        "peak memory": f"{result['peak_memory'] / 2**30:.2f} GiB",
        "loss": f"{result['loss']:.3f}",
    }
    if aligned := result.get("align"):
        distance, near = aligned["distance"], [percent(value) for value in aligned["neighbours"]]
        values["stage 1"] = (
            f"distance {distance[0]:.4g} -> {distance[-1]:.4g}, 5-NN accuracy {near[0]} -> {near[1]} in "
            f"{aligned['seconds']:.0f} s" + ("; CLASSES SCRAMBLED" if aligned["scrambled"] else "")
        )
    if result["val"]:
        kind = KINDS[result.get("kind", SCENES.name)]
        on = "test split, which chose the step" if result.get("select") == "test" else "validation"
        values[on] = f"{kind.heading} {percent(result['val'][kind.headline])} at step {result['best_step']}"
    return facts(result["out"], values)


# --- what there is ---------------------------------------------------------------------------------------------------


IN_WORDS = (
    "points: features of single points and attention, for scenes and objects; voxels: convolutions, for scenes; "
    "tokens: groups of points, for objects and videos"
)


def methods_table() -> Table:
    from pointadapt.methods import METHODS

    made = table("methods (pointadapt methods NAME lists the options)", "name", "works on", "note")
    made.caption, made.caption_justify = IN_WORDS, "left"
    for name, config in METHODS.items():
        made.add_row(name, works_on(config), method_in_words(name))
    return made


def works_on(config: Any) -> str:
    """Kinds of backbones a method works on; a method that does not say (peft's own) asks nothing of the backbone."""
    return ", ".join(getattr(config, "works_on", ("points", "tokens")))


def method_in_words(name: str) -> str:
    """First sentence on a method: of its file, or of its config class where a file holds several."""
    from pointadapt.methods import METHODS

    config = METHODS[name]
    alone = sum(other.__module__ == config.__module__ for other in METHODS.values()) == 1
    return first_sentence(sys.modules[config.__module__] if alone and "core" not in config.__module__ else config)


def method_table(name: str) -> Table:
    from pointadapt.methods import METHODS, options

    if name not in METHODS:
        raise UserError(f"unknown method {name!r}: use one of {', '.join(METHODS)}")
    made = table(f"{name}: {method_in_words(name)}", "flag", "default", "help")
    for option in options(METHODS[name]):
        made_by = option.default_factory
        default = option.default if made_by is dataclasses.MISSING else made_by()
        made.add_row(f"--method.{option.name.replace('_', '-')}", str(default), option.metadata["help"])
    return made


def backbones_table() -> Table:
    from pointadapt.backbones.foundations import FOUNDATIONS
    from pointadapt.backbones.weights import BACKBONES

    made = table("backbones (or give a checkpoint file)", "name", "kind", "from", "note")
    made.caption, made.caption_justify = IN_WORDS, "left"
    for name, source in BACKBONES.items():
        origin = source.repo or ("bundled" if source.file else "-")
        note = f"{source.note}; {source.licence}" if source.licence else source.note
        made.add_row(name, backbone_kind(source.config), origin, note)
    for name, model in FOUNDATIONS.items():
        made.add_row(name, "tokens", model.repo or "-", f"{model.note}; {model.licence}; with method appt")
    return made


def backbone_kind(config: Any) -> str:
    """The ``kind`` of the network that a config describes."""
    from pointadapt.backbones.ptv3 import PTv3, PTv3Config
    from pointadapt.backbones.sparse_unet import SparseUNet, SparseUNetConfig

    known = {PTv3Config: PTv3.kind, SparseUNetConfig: SparseUNet.kind}
    return known.get(type(config), "tokens")


def first_sentence(thing: Any) -> str:
    text = " ".join((thing.__doc__ or "").split())
    return text.split(". ")[0].rstrip(".")


def describe(path: Path) -> list[Table]:
    """Tables on any file or folder this package reads. Raises UserError when it is none of them."""
    from pointadapt.data.io import is_scan
    from pointadapt.data.object_files import is_shape

    if not path.exists():
        raise UserError(f"there is no file or folder {path}: check the path")
    if path.is_dir():
        if (path / "run.json").is_file():
            return describe_run(path)
        if (path / "adapter_config.json").is_file():
            return [describe_adapter(path)]
        if (path / YAML).is_file():
            return describe_dataset(path)
    if path.suffix in (".yaml", ".yml"):
        return describe_dataset(path)
    if path.suffix in CHECKPOINTS and not is_scan(path):
        return [describe_checkpoint(path)]
    if is_scan(path) or is_shape(path):
        return describe_scan(path)
    raise UserError(
        f"{path} is no scan, checkpoint, run or adapter, and has no {YAML}; write one with: pointadapt init {path}"
    )


def describe_scan(path: Path) -> list[Table]:
    from pointadapt.data.geometry import spacing
    from pointadapt.data.io import is_scan, read_scan
    from pointadapt.data.object_files import read_shape

    scan = read_scan(path) if is_scan(path) else read_shape(path)
    low, high = scan.coord.min(0), scan.coord.max(0)
    made = facts(
        str(path),
        {
            "points": f"{len(scan):,}",
            "from": "  ".join(f"{v:.2f}" for v in low),
            "size": " x ".join(f"{v:.2f}" for v in high - low),
            "spacing": f"{spacing(scan.coord):.3g} between neighbours",
            "colour": "yes" if scan.color is not None else "no",
            "normals": "yes" if scan.normal is not None else "no",
            "other fields": ", ".join(scan.extras) or "none",
            "labels": scan.label_field or "no field known by name",
        },
    )
    if scan.label is None:
        return [made]
    labels = table(f"labels in {scan.label_field!r}", "raw id", "points", "%")
    for raw, count in zip(*np.unique(scan.label, return_counts=True), strict=True):
        labels.add_row(str(raw), f"{count:,}", percent(count / len(scan)))
    return [made, labels]


def describe_dataset(path: Path) -> list[Table]:
    from pointadapt.data.open import open_dataset

    dataset: Any = open_dataset(path)
    values = {k: v for k, v in dataset.as_dict().items() if k not in ("classes", "splits")}
    named = dataset.classes.items() if isinstance(dataset.classes, dict) else enumerate(dataset.classes)
    made = facts(str(dataset.file), {**values, "classes": ", ".join(f"{k} {v}" for k, v in named)})
    scans = table("splits", "split", "sources", "note")
    for split, names in dataset.splits.items():
        scans.add_row(split, str(len(names)), ", ".join(names[:8]) + (" ..." if len(names) > 8 else ""))
    return [made, scans]


def describe_run(path: Path) -> list[Table]:
    from pointadapt.run import Run, read_settings

    run, content = Run.load(path), read_settings(path / "run.json")
    settings = {k: v for k, v in run.as_dict().items() if k != "out"}
    tables = [facts(str(path), {**settings, **{f"made: {k}": v for k, v in content.get("made", {}).items()}})]
    if (path / "result.json").is_file():
        tables.append(result_table({**read_json(path / "result.json"), "out": "training"}))
    if (file := path / "evaluation.json").is_file():
        try:
            tables.append(scores_table(read_json(file)))
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is no evaluation of this run ({error!r}): run `pointadapt evaluate {path}`"
            ) from error
    return tables


def describe_adapter(path: Path) -> Table:
    from safetensors import SafetensorError, safe_open

    try:
        config = read_json(path / "adapter_config.json")
        method = config["peft_type"].lower().removeprefix("pointadapt_")
        with safe_open(path / "adapter_model.safetensors", "np") as file:
            sizes = {k: int(np.prod(file.get_slice(k).get_shape())) for k in file.keys()}  # noqa: SIM118
            prints = [bytes(file.get_tensor(k)).hex() for k in sizes if k.endswith("head.fingerprint")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{path} is no readable adapter: {' '.join(str(error).split())}") from error
    hidden = ("auto_mapping", "peft_version", "revision", "inference_mode", "task_type", "peft_type")
    settings = {k: v for k, v in config.items() if k not in hidden and v not in (None, [], {}, "")}
    weights = {
        "method": method,
        "weights": f"{sum(sizes.values()):,} numbers in {len(sizes)} tensors",
        "made for": f"backbone weights of sha256 {prints[0]}" if prints else "unknown backbone weights",
    }
    return facts(str(path), {**weights, **settings})


def describe_checkpoint(path: Path) -> Table:
    from pointadapt.backbones.weights import load_backbone

    backbone = load_backbone(path)
    parameters = sum(p.numel() for p in backbone.parameters())
    values: dict[str, Any] = {"parameters": f"{parameters:,}"}
    if backbone.kind != "tokens":
        values["features per point"] = backbone.dense_channels
    else:
        values["features per token"] = backbone.out_channels
    return facts(str(path), {**values, **dataclasses.asdict(backbone.config)})
