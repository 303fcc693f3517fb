"""Which files a prediction reads and writes: one labelled file for one scan, a folder of them for a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pointadapt.data.io import ending, is_scan, kind
from pointadapt.data.survey import find_scans
from pointadapt.errors import UserError


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
        if others := sorted(str(file.relative_to(source)) for file in files - set(scans)):
            print(f"left alone, no scans: {', '.join(others)}", file=sys.stderr)
        out = out or source.with_name(f"{source.name}_labelled")
        jobs = [(scan, out / scan.relative_to(source).with_suffix(ending(scan))) for scan in scans]
    else:
        jobs = [(source, out or source.with_name(f"{source.stem}_labelled{ending(source)}"))]
    for scan, target in jobs:
        if target.exists() and target.samefile(scan):
            raise UserError(f"{target} is the scan itself: give --out another name, the input is never written to")
        if kind(target) != kind(scan.with_suffix(ending(scan))) and not scan.is_dir():
            raise UserError(f"{target} has another format than {scan.name}: end its name with {ending(scan)}")
        if target.is_dir() and not scan.is_dir():
            raise UserError(f"{target} is a folder: give --out a file name")
        if target.exists() and not overwrite:
            raise UserError(f"{target} exists already: --overwrite replaces it")
    return jobs
