"""grid.json: what the results of a grid belong to, so that none is ever taken for another's.

    grid   settings of all runs with every default filled in, factors, trial_share
    arms   name -> method, options and weights, as text
    files  file that a setting or share names, or bundled backbone -> hash of its content
    data   how the data is read, and the names, sizes and content of each split's files; not where the folder lies
    made   when and with what it was begun

Arms, shares and seeds may join, nothing else may change. What the file of an earlier version lacks is added.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pointadapt.backbones.weights import ASSETS, BACKBONES
from pointadapt.compare.arms import slug
from pointadapt.compare.claim import claimed
from pointadapt.data.io import files_of
from pointadapt.data.scans import SPLITS
from pointadapt.errors import UserError
from pointadapt.files import read_json, write_text
from pointadapt.run import made

#: Part of grid.json -> what it is called where it differs, and what mends that beside another folder.
PARTS = {
    "grid": ("with other settings", "the same settings"),
    "data": ("on other data", "the data it was begun with"),
    "files": ("with other files", "those it was begun with"),
    "arms": ("of other methods under one name", "other names"),
}


def join(out: Path, asked: dict[str, Any], to_run: bool = True) -> None:
    """Write what is asked for into the grid's folder, or check it against what is there and add what joins.

    Processes that come at once do so in turn; without ``to_run`` nothing is written. Raises UserError for what the
    folder's results do not belong to.
    """
    while True:
        with claimed(out / "grid.claim") as mine:
            if mine is not None:
                return joined(out / "grid.json", asked, to_run)
        time.sleep(0.1)


def joined(file: Path, asked: dict[str, Any], to_run: bool) -> None:
    cure = "put back the file that was there, or give --out another folder"
    before = read_json(file, cure) if file.is_file() else {}
    if not isinstance(before, dict) or not all(isinstance(before.get(part, {}), dict) for part in PARTS):
        raise UserError(f"{file}: it does not describe a comparison; {cure}")
    now = json.loads(json.dumps(asked))  # as the file gives it back
    for part, (what, cure) in PARTS.items():
        if found := changes(before.get(part, {}), now[part]):
            raise UserError(f"{file.parent} holds a comparison {what} ({found}): give --out another folder, or {cure}")
        now[part] = {**before.get(part, {}), **now[part]}
    refuse_one_slug(now["arms"])
    refuse_one_slug(now["files"])
    now["made"] = before.get("made") or made()
    if to_run and now != before:
        write_text(file, json.dumps(now, indent=2) + "\n")


def known_arms(out: Path) -> list[str]:
    """Names of all arms that the grid's folder was asked to run."""
    file = out / "grid.json"
    return list(read_json(file).get("arms", {})) if file.is_file() else []


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, the values that differ; a key that one of the two lacks says nothing."""
    found = []
    for key, value in before.items():
        if key == "settings":
            found.append(changes(value, now[key]))
        elif now.get(key, value) != value:
            told = f"{key} {value} -> {now[key]}"
            found.append(told if len(told) < 120 else key)
    return ", ".join(filter(None, found))


def refuse_one_slug(names: Iterable[str]) -> None:
    """Raises UserError for two names whose results would be the same files."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(slug(name), name)
        if other != name:
            raise UserError(f"{other!r} and {name!r} would share the files {slug(name)}--*: rename one of them")


def fingerprint(dataset: Any, known: Path) -> dict[str, Any]:
    """What results depend on of a data set, wherever it lies: how it is read, and the files of each split.

    known   file that keeps the hash of each file's content, with its size and time: what is unchanged is read once
    """
    content = dataset.as_dict()
    listed = content.pop("splits")
    content.pop("tests", None)
    cure = "delete it: the data is then read anew"
    before = read_json(known, cure) if known.is_file() else {}
    if not isinstance(before, dict):
        raise UserError(f"{known}: it holds no hashes; {cure}")
    now: dict[str, Any] = {}
    for split in SPLITS:
        paths = dataset.paths(split)
        sizes = [(os.path.relpath(path, dataset.folder), size(path)) for path in paths]
        total = sum(count for _, count in sizes)
        content[split] = f"{len(sizes)} files, {total} bytes, {short_hash([listed.get(split), sizes])}"
        apart = getattr(dataset, "label_files", {})
        files = [file for path in paths for file in (*read_from(path), *([apart[path]] if path in apart else []))]
        content[f"content of {split}"] = short_hash([file_hash(file, before, now) for file in files])
    if now != before:
        write_text(known, json.dumps(now))
    return content


def files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder: a scan or video may be one."""
    return sum(file.stat().st_size for file in (files_in(path) if path.is_dir() else [path]))


def read_from(path: Path) -> list[Path]:
    """All files of a scan, shape or video: those of its folder, or its own and that of labels beside it."""
    return files_in(path) if path.is_dir() else files_of(path)


def short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def file_hash(file: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    """Hash of a file's content, from ``before`` where its size and time are the same; remembered in ``now``."""
    status, name = file.stat(), str(file.resolve())
    state, known = [status.st_size, status.st_mtime_ns], before.get(name, [])
    if known[:-1] == state:
        found = known[-1]
    else:
        with open(file, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    now[name] = [*state, found]
    return found


def file_hashes(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        file = file_of(name)
        if file.is_file():
            with open(file, "rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    return found


def file_of(name: str) -> Path:
    """The weights of a bundled backbone, which another version may bring anew; of other names the file itself."""
    source = BACKBONES.get(name)
    return ASSETS / source.file if source and source.file and source.repo is None else Path(name)
