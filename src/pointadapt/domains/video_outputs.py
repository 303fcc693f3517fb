"""Which videos a prediction reads and what it writes of each: a table and, beside it, a picture of its timeline."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pointadapt.data.formats.ply import save
from pointadapt.data.io import LABELLED
from pointadapt.data.video_files import Video
from pointadapt.data.video_set import VideoSet
from pointadapt.data.videos import videos_at
from pointadapt.domains.files import as_folder, check_target
from pointadapt.errors import UserError
from pointadapt.files import write_text

TABLE, PICTURE = ".csv", ".png"


def video_jobs(
    dataset: VideoSet, source: Path, out: Path | None, overwrite: bool, ending: str = TABLE
) -> list[tuple[Path, Path, Video]]:
    """(name, target, video) of every video at ``source``; names are paths below it.

    One video becomes ``out``, or a file in it if that is no name with ``ending``; several go into a folder. By default
    they lie beside the source with ``_labelled`` behind its name. Without an ending, targets are folders.
    Raises UserError when there are no videos, or a target or its picture must not be written.
    """
    videos = videos_at(dataset, source)
    root = source.absolute()
    names = [name_below(video, root) for video in videos]
    is_one = len(videos) == 1 and videos[0].path == root
    if is_one:
        stem = source.absolute().name if source.is_dir() else source.stem
        beside = source.absolute().with_name(f"{stem}{LABELLED}{ending}")
        if out is None:
            target = beside
        elif not ending:
            target = as_folder(out)
        else:
            is_table = out.suffix.lower() == ending and not out.is_dir()
            target = out if is_table else as_folder(out, ending) / f"{stem}{ending}"
        targets = [target]
    else:
        if out is not None and out.suffix.lower() == ending and ending:
            raise UserError(f"{source} holds {len(videos)} videos: give --out a folder, each gets a file there")
        beside = source.absolute().with_name(f"{source.absolute().name}{LABELLED}")
        folder = beside if out is None else as_folder(out)
        targets = [folder / f"{name}{ending}" for name in names]
    for target in targets:
        for file in {target, target.with_name(f"{target.name.removesuffix(TABLE)}{PICTURE}")}:
            check_target(file, source, overwrite)
    return [(Path(name), target, video) for name, target, video in zip(names, targets, videos, strict=True)]


def name_below(video: Video, root: Path) -> str:
    """A video's path below ``root``, with its number where a file holds several."""
    name = video.path.name if video.path == root else video.path.relative_to(root).as_posix()
    return f"{name}-{video.row}" if video.name.endswith(f"#{video.row}") else name


def write_table(file: Path, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(heading)
    table.writerows(rows)
    write_text(file, text.getvalue())


def write_ply(file: Path, coord: np.ndarray, classes: np.ndarray, confidence: np.ndarray) -> None:
    """x y z (float32), class (int32) and confidence (float32) of [N] points."""
    columns = dict(zip("xyz", coord.astype(np.float32).T, strict=True))
    save(file, {**columns, "class": classes.astype(np.int32), "confidence": confidence.astype(np.float32)})


def picture_of(table: Path) -> Path:
    """Where the picture of a video lies whose table is ``table``."""
    return table.with_suffix(PICTURE)
