"""Reading scans of any supported format and writing them back with a class and a confidence per point."""

from __future__ import annotations

import errno
import importlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np

from pointadapt.data.formats.lidar import labels_beside
from pointadapt.data.formats.npy import label_file
from pointadapt.data.scan import Scan
from pointadapt.errors import NoPoints, UserError, few
from pointadapt.files import beside

#: File ending -> module of :mod:`pointadapt.data.formats`, imported when first needed.
FORMATS = {".ply": "ply", ".pcd": "pcd", ".las": "las", ".laz": "las", ".e57": "e57", ".npy": "npy", ".npz": "npy"}
#: Lidar frames without a header: only their name and place tell that they are any.
FRAMES = ".bin"
SUPPORTED = ", ".join(FORMATS)
#: What predict puts behind the name of what it labels, unless it is told another.
LABELLED = "_labelled"
#: Ending of an output -> endings of what it may have been made of, where that is not its own; "" is a folder.
ARRAYS = ("", ".npy", ".npz", ".h5", ".hdf5")
MADE_OF = {"": ARRAYS, ".csv": (*ARRAYS, *FORMATS, ".off", ".xyz", ".txt", ".csv", ".pts")}
#: Coordinates beyond this are what some programs write for "no value" (1e20, 3.4e38); voxels cannot be counted there.
NOWHERE = 1e15
#: A disk with fewer bytes left is why a file could not be written.
FULL = 1 << 14


def read_scan(path: Path | str, label_field: str | None = None) -> Scan:
    """Read one file, or one folder in Pointcept's layout.

    label_field  where its labels are; by default the first known name (:data:`pointadapt.data.scan.LABELS`)

    Raises UserError when the file is missing, empty, damaged or of another kind, has no points, or has NaN, infinite
    or senselessly large coordinates.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    module = format_of(path)
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    try:
        scan = module.read(path, label_field)
    except (UserError, MemoryError):
        raise
    except PermissionError as error:
        raise UserError(f"{path}: you have no permission to read it; make it readable or copy it") from error
    except Exception as error:  # each library has its own dozen ways to say that a file is damaged
        ending = path.suffix.lower().removeprefix(".").upper() or "a folder of arrays"
        raise UserError(
            f"{path}: not readable as {ending}, so damaged or truncated ({reason(error)}); copy or export it again"
        ) from error
    if len(scan) == 0:
        raise NoPoints(f"{path}: the file has no points")
    bad = len(scan) - int((np.abs(scan.coord) < NOWHERE).all(1).sum())
    if bad:
        raise UserError(
            f"{path}: {bad} of {len(scan)} points have NaN or infinite coordinates, or beyond {NOWHERE:g}; "
            f"remove these points"
        )
    return scan


def write_labels(source: Path | str, target: Path | str, classes: np.ndarray, confidence: np.ndarray) -> None:
    """Write to ``target`` everything ``source`` has, in its format, with a class and a confidence per point.

    classes     [N] int, raw class ids     confidence  [N] float, 0-1; both in the order of ``read_scan(source)``

    LAS and LAZ take the class as ``classification`` (see formats/las.py for ids that do not fit), all others as
    ``class``; fields of these names in the source are replaced. Of a headless lidar frame (.bin) only the classes are
    written, as a .label file. The source is never touched, and the target appears whole or not at all.
    Raises UserError if target is source, has another format, or cannot be written (disk full).
    """
    source, target = Path(source), Path(target)
    module = format_of(source)
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: the output would overwrite its own input; choose another name")
    if kind(target) != kind(source.with_suffix(ending(source))) and not source.is_dir():
        raise UserError(f"{target}: the output has the format of the input; call it {target.stem}{ending(source)}")
    if target.is_dir() and not (source.is_dir() and (target / "coord.npy").is_file()):
        raise UserError(f"{target}: a folder of that name exists already; choose another name")
    if len(classes) != len(confidence):
        raise ValueError(f"{len(classes)} classes but {len(confidence)} confidences")
    temporary = beside(target)  # keeps the ending, which decides on compression
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        module.write(source, temporary, np.asarray(classes), np.asarray(confidence))
        replace(temporary, target)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a full disk comes as OSError, RuntimeError or E57Exception, seldom by its name
        full = target.parent.is_dir() and shutil.disk_usage(target.parent).free < FULL
        cause = os.strerror(errno.ENOSPC) if full else reason(error)
        raise UserError(f"{target}: cannot be written ({cause}); nothing was left behind") from error
    finally:
        with suppress(OSError):  # the error above tells: a name too long, a folder that is a file
            remove(temporary)


#: Arrays that only the folder of a scan holds, beside coord.npy.
BESIDE_COORD = ("color.npy", "normal.npy", "segment.npy", "segment20.npy", "segment200.npy")


def is_scan(path: Path) -> bool:
    """Whether it holds points, by its name; an array of labels beside an array of points does not."""
    if path.is_dir():
        return (path / "coord.npy").is_file()
    if path.suffix.lower() == FRAMES:
        return path.name.endswith(".pcd.bin") or path.parent.name == "velodyne"
    beside = path.suffix.lower() == ".npy" and path.stem.endswith(("_labels", "_label"))
    return path.suffix.lower() in FORMATS and not beside


def files_of(path: Path) -> list[Path]:
    """All that a scan is read from: its file, or its folder and the arrays in it, and labels that lie beside."""
    if path.is_dir():
        return [path, *sorted(path.glob("*.npy"))]
    beside = label_file(path) if path.suffix.lower() == ".npy" else labels_beside(path)
    return [path] if beside is None else [path, beside]


def is_left_out(path: Path) -> bool:
    """Whether a walk through a folder passes by: what is hidden, and what predict wrote."""
    return path.name.startswith(".") or is_output(path)


def is_output(path: Path) -> bool:
    """Whether predict gave it its name: NAME_labelled, and NAME, of which it was made, lies beside it.

    Read as data, it would be scored, learned from and labelled again. A user's own scan_labelled.ply has no scan.ply
    beside it; where it has, it is read if it is named itself, and ``left_out`` tells.
    """
    name, _, ending = path.name.rpartition(LABELLED)
    if not name or ending[:1] not in ("", "."):
        return False
    return any(path.with_name(f"{name}{own}").exists() for own in MADE_OF.get(ending, (ending,)))


def left_out(folder: Path) -> str:
    """A sentence on what in a folder is passed by as a prediction; "" where there is none."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        made = {name for name in (*folders, *files) if is_output(Path(place, name))}
        folders[:] = [name for name in folders if name not in made and not name.startswith(".")]
        found += [Path(place, name).relative_to(folder).as_posix() for name in sorted(made)]
    if not found:
        return ""
    return f"{folder}: left out as made by predict: {few(found)}; rename what is your own data"


def walk_scans(folder: Path) -> list[Path]:
    """All scans below a folder, in name order; what is hidden or a prediction is left out.

    Raises UserError for the folder of a scan that has lost its points.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not is_left_out(here / name))
        if here != folder and is_scan(here):
            folders.clear()
            found.append(here)
            continue
        alone = None if is_scan(here) else next((name for name in BESIDE_COORD if name in files), None)
        if alone is not None:
            raise UserError(f"{here}: there is {alone} but no coord.npy, the points themselves; put it back")
        found += [path for name in files if is_scan(path := here / name) and not is_left_out(path)]
    return sorted(found)


def ending(source: Path) -> str:
    """Of the file that labels of a scan are written to: its own, except where that has no room for them."""
    return ".label" if source.suffix.lower() == FRAMES else source.suffix


def format_of(path: Path) -> ModuleType:
    if path.is_dir():
        if not is_scan(path):
            raise UserError(f"{path}: a folder without coord.npy is no scan (Pointcept's layout has one)")
        name = "npy"
    elif path.suffix.lower() in FORMATS:
        name = FORMATS[path.suffix.lower()]
    elif path.suffix.lower() == FRAMES:
        name = "lidar"
    else:
        raise UserError(f"{path}: unknown format {path.suffix or 'without ending'!r}; supported are {SUPPORTED}")
    return importlib.import_module(f"pointadapt.data.formats.{name}")


def kind(path: Path) -> str:
    """PLY, LAS (LAZ counts as LAS), ... after the ending."""
    ending = path.suffix.lower().removeprefix(".").upper()
    return "LAS" if ending == "LAZ" else ending or "FOLDER"


def reason(error: Exception) -> str:
    """The first line of what a library said, without a full stop; of the system's errors only what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def replace(temporary: Path, target: Path) -> None:
    """Rename over ``target``; an earlier output folder steps aside first, since folders are not replaced."""
    if not target.is_dir():
        os.replace(temporary, target)
        return
    aside = beside(target)
    os.replace(target, aside)
    os.replace(temporary, target)
    remove(aside)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
