"""What stands under ``splits`` in a dataset.yaml of scenes: scans, folders of scans, and lists of scans in files.

    train: [rooms/a.ply, Area_1, train.json, nuscenes_train.txt]

A list is a .json (an array of paths, as Pointcept has it) or a .txt (a path a line; behind a tab, the file with the
scan's labels where it lies apart). Paths in lists are relative to the data set's folder, as all others are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pointadapt.data.io import is_scan, walk_scans
from pointadapt.errors import UserError
from pointadapt.files import read_json, read_text

LISTS = (".json", ".txt")
#: Between a scan and its file of labels.
APART = "\t"


def expand(folder: Path, entry: str, file: Any) -> list[str]:
    """The scans of an entry: "PATH" or "PATH<tab>LABELS" each, relative to ``folder`` where it lies in it.

    file   the dataset.yaml, for messages
    Raises UserError for a list that cannot be read, and for a folder or list without scans.
    """
    path = folder / entry.partition(APART)[0]
    if path.suffix.lower() in LISTS:
        return read_list(path, file)
    if not path.is_dir() or is_scan(path):
        return [entry]
    scans = walk_scans(path)  # an absolute entry may lie outside of the data set's folder
    found = [(scan.relative_to(folder) if scan.is_relative_to(folder) else scan).as_posix() for scan in scans]
    if not found:
        raise UserError(f"{file}: `splits` lists the folder {path}, which holds no scans")
    return found


def read_list(path: Path, file: Any) -> list[str]:
    if not path.is_file():
        raise UserError(f"{file}: `splits` lists {path}, which does not exist")
    names = read_json(path) if path.suffix.lower() == ".json" else read_text(path).splitlines()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path}: it must hold an array of paths, such as ["train/scene0000_00"]')
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UserError(f"{path}: this list of scans is empty; write a path on each line, or make it again")
    return names


def scan_of(entry: str) -> str:
    return entry.partition(APART)[0]


def labels_of(entry: str) -> str | None:
    return entry.partition(APART)[2] or None
