"""Which files a prediction reads and writes: one labelled file for one scan, a folder of them for a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pointadapt.data.io import LABELLED, ending, is_output, is_scan, kind
from pointadapt.data.survey import find_scans
from pointadapt.errors import UserError, few


def file_jobs(
    source: Path, out: Path | None, overwrite: bool, find: Callable[[Path], list[Path]] = find_scans
) -> list[tuple[Path, Path]]:
    """(scan, target) pairs, one target a scan, by default beside the source with ``_labelled`` behind its name.

    find  lists what is to be labelled in a folder
    Raises UserError when there is nothing to read, or a target must not be written.
    """
    if not source.exists():
        raise UserError(f"there is no scan {source}: check the path")
    if source.is_dir() and not is_scan(source):
        scans = find(source)
        files = {file for file in source.rglob("*") if file.is_file() and file.parent not in scans}
        files -= {file for file in files if is_output(file) or is_output(file.parent)}  # predict tells of them
        if others := sorted(str(file.relative_to(source)) for file in files - set(scans)):
            print(f"left alone, no scans: {few(others)}", file=sys.stderr)
        out = source.with_name(f"{source.name}{LABELLED}") if out is None else as_folder(out)
        jobs = [(scan, out / scan.relative_to(source).with_suffix(ending(scan))) for scan in scans]
    else:
        jobs = [(source, out or source.with_name(f"{source.stem}{LABELLED}{ending(source)}"))]
    for scan, target in jobs:
        check_target(target, source, overwrite=True)
        if kind(target) != kind(scan.with_suffix(ending(scan))) and not scan.is_dir():
            raise UserError(f"{target} has another format than {scan.name}: end its name with {ending(scan)}")
        if target.is_dir() and not scan.is_dir():
            raise UserError(f"{target} is a folder: give --out a file name")
        check_target(target, scan, overwrite)
    return jobs


def as_folder(out: Path, table: str = "") -> Path:
    """``out`` as a folder to write into. Raises UserError for a file, or a name with the ending of one.

    table  ending that a file may have here, for the sentence
    """
    if out.is_file() or (not out.is_dir() and out.suffix[1:2].isalpha()):  # but a folder may be called runs-1.5
        raise UserError(f"{out} is the name of a file: give --out a folder{f', or a name in {table}' if table else ''}")
    return out


def check_target(target: Path, source: Path, overwrite: bool) -> None:
    """Raises UserError for a file that is not to be written: the source, one in a source folder, where the next call
    would take it for an input, one below a file, and one that is there, unless it is to be overwritten."""
    if target.exists() and target.samefile(source):
        raise UserError(f"{target} is the input itself: give --out another name, the input is never written to")
    if source.resolve() in target.resolve().parents:
        raise UserError(f"{target} lies in the source: give --out another name, the input is never written to")
    there = next(parent for parent in target.absolute().parents if parent.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file, so {target} cannot be written: give --out another name")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already: --overwrite replaces it")
