"""Fewer labels to learn from: a share of the training items, a number of labelled points per scan, or official lists.

The lists of ScanNet's data-efficient benchmark are files: names of scenes (``scenes/1.txt``), or the indices of the
labelled points of each scene (``points/points20``, a torch file; .json and .npz with the same content are read, too).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.episodes import subset
from pointadapt.data.object_set import ObjectSet, draw
from pointadapt.data.scans import DataSet
from pointadapt.data.split_lists import scan_of
from pointadapt.data.video_files import Video
from pointadapt.data.video_set import VideoSet
from pointadapt.errors import UserError
from pointadapt.files import read_text

ALL = "100%"


def parse_labels(text: str) -> tuple[float, int | None]:
    """(share of the training items in (0, 1], labelled points per scan or None) of "10%" or "200pts".

    A file with a list is neither: (1, None). Raises UserError for any other text.
    """
    if Path(text).is_file():
        return 1.0, None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|pts)\s*", text)
    if not found or not 0 < float(found[1]) <= (100 if found[2] == "%" else 1e9):
        raise UserError(
            f"labels is {text!r}; write a share of the training items such as 10%, points per scan such as 200pts, "
            f"or a file that lists scans or points"
        )
    return (float(found[1]) / 100, None) if found[2] == "%" else (1.0, int(float(found[1])))


def fewer_items(dataset: Any, share: float, seed: int) -> Any:
    """The data set with a share of its training items, at least one (of each class of objects); val and test stay.

    Which ones depends on the seed, so that runs with several seeds show what the choice does; a smaller share with
    the same seed is part of a larger one.
    """
    if share == 1:
        return dataset
    if isinstance(dataset, ObjectSet):
        return subset(dataset, share, seed)
    if isinstance(dataset, VideoSet):  # its splits need not list single videos: see fewer_videos
        return dataset
    assert isinstance(dataset, DataSet)
    scans = dataset.scans("train")
    order = np.random.default_rng([seed, 41]).permutation(len(scans))
    kept = sorted(order[: max(1, round(share * len(scans)))].tolist())
    return replace(dataset, splits={**dataset.splits, "train": tuple(scans[i] for i in kept)})


def hold_out(dataset: Any, share: float, seed: int) -> Any:
    """The data set with a share of its training items as val, where there are two; what it lists as val is left out.

    Of shapes and videos the share is taken of each class. Raises UserError for videos whose val is not listed but a
    share of train already.
    """
    if isinstance(dataset, DataSet):
        scans = dataset.scans("train")
        count = min(max(1, round(share * len(scans))), len(scans) - 1) if share else 0
        order = np.random.default_rng([seed, 47]).permutation(len(scans))
        held = {scans[i] for i in order[:count]}
        train, val = (tuple(scan for scan in scans if (scan in held) == is_val) for is_val in (False, True))
        return replace(dataset, splits={**dataset.splits, "train": train, "val": val})
    if dataset.holdout and not dataset.splits.get("val"):
        if isinstance(dataset, VideoSet):
            raise UserError(f"{dataset.file}: `holdout` makes val a part of train, of which no more can be held out: "
                            "list the videos of val under `splits`")  # fmt: skip
        dataset = subset(dataset, 1.0)  # which lists both
    return replace(dataset, splits={k: v for k, v in dataset.splits.items() if k != "val"}, holdout=share)


def fewer_videos(videos: list[Video], share: float, seed: int) -> list[Video]:
    """A share of each class's videos, at least one; a smaller share with the same seed is part of a larger one."""
    kept: set[str] = set()
    for target in {video.target for video in videos}:
        names = sorted((video.name for video in videos if video.target == target), key=lambda name: draw(name, seed))
        kept.update(names[: max(1, round(share * len(names)))])
    return [video for video in videos if video.name in kept]


def listed_scans(dataset: Any, labels: str) -> Any:
    """The data set with the training scans that the .txt file ``labels`` names, a line each; itself for other labels.

    Raises UserError for a name that is no training scan.
    """
    file = Path(labels)
    if not file.is_file():
        return dataset
    if not isinstance(dataset, DataSet):
        raise UserError(f"labels is {labels}: lists in files are for scenes; give a share of the training items")
    if file.suffix != ".txt":  # a list of points: see listed_points
        return dataset
    scans = dict(zip(dataset.paths("train"), dataset.scans("train"), strict=True))
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    meant = named(names, scans, file)
    unknown = next((name for name in names if name not in meant), None)
    if unknown is not None or not names:
        what = f"lists {unknown!r}, which is no training scan of {dataset.file}" if names else "lists no scan"
        example = next(iter(scans.values()), "scene0000_00")
        raise UserError(f"{file} {what}: it needs one name a line, such as {Path(scan_of(example)).stem}")
    kept = tuple(dict.fromkeys(scans[meant[name]] for name in names))
    return replace(dataset, splits={**dataset.splits, "train": kept})


def named(names: Iterable[str], paths: Iterable[Path], file: Any) -> dict[str, Path]:
    """Name in the list ``file`` -> the one of ``paths`` that it is an end of, with or without the ending of a file.

    Names of none are left out. Raises UserError for a name of several: S3DIS has an office_1 in every area.
    """
    ends: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        whole = Path(os.path.abspath(path))
        for parts in {whole.parts, whole.with_suffix("").parts}:
            for start in range(len(parts)):
                ends.setdefault(parts[start:], []).append(path)
    found = {}
    for name in names:
        end = Path(scan_of(name))
        fits = ends.get(end.parts) or (ends.get(end.with_suffix("").parts, []) if end.name else [])
        if len(fits) > 1:
            one, other = (f"{path.parent.name}/{path.name}" for path in fits[:2])
            raise UserError(f"{file} lists {name!r}, which may be {one} or {other}: write more of its path")
        if fits:
            found[name] = fits[0]
    return found


def listed_points(labels: str) -> dict[str, np.ndarray] | None:
    """Scan name -> indices of its labelled points, where ``labels`` is a file of them; None for other labels.

    Raises UserError when the file holds anything else.
    """
    file = Path(labels)
    if file.suffix == ".txt" or not file.is_file():
        return None
    try:
        if file.suffix == ".json":
            content = json.loads(read_text(file))
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                content = dict(archive)
        else:
            content = load_torch(file)
        return {str(name): np.asarray(rows, np.int64).reshape(-1) for name, rows in content.items()}
    except Exception as error:  # each reader has its own ways to say so
        raise UserError(
            f"{file}: not readable as point indices under the name of each scan ({' '.join(str(error).split())[:200]})"
        ) from error


def load_torch(file: Path) -> Any:
    """A torch file of plain containers, numbers and arrays; foreign code in it is never run."""
    import torch

    core: Any = importlib.import_module("numpy._core.multiarray")
    allowed: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("i4", "i8", "u4", "u8"))]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2
        allowed += [(core._reconstruct, f"{module}._reconstruct"), (core.scalar, f"{module}.scalar")]
    with torch.serialization.safe_globals(allowed):
        return torch.load(file, map_location="cpu", weights_only=True)


def keep_points(segment: np.ndarray, rows: np.ndarray, source: Any) -> np.ndarray:
    """A copy of labels [N] in which those of the listed ``rows`` are left. Raises UserError for rows out of range."""
    if rows.size and not 0 <= rows.min() <= rows.max() < len(segment):
        raise UserError(f"{source}: the list of labelled points goes to {rows.max()}, but it has {len(segment)} points")
    fewer = np.full_like(segment, -1)
    fewer[rows] = segment[rows]
    return fewer


def keep_labels(segment: np.ndarray, count: int, seed: int, scan: str = "") -> np.ndarray:
    """A copy of labels [N] in which ``count`` random ones of those that are not -1 are left; others in each scan."""
    labelled = np.flatnonzero(segment >= 0)
    kept = np.random.default_rng([seed, 43, zlib.crc32(scan.encode())]).permutation(labelled)[:count]
    fewer = np.full_like(segment, -1)
    fewer[kept] = segment[kept]
    return fewer
