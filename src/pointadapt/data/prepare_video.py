"""Raw depth frames to point clouds: MSR-Action3D's *_sdepth.bin and NTU RGB+D's folders of depth pictures.

Every video becomes one NPZ under the name of its source with a ragged list of [N, 3] float32 arrays, one a frame, as
the published loaders read it: ``point_clouds`` in raw depth units for MSR-Action3D, ``data`` in depth / 65535 for NTU.
Both cameras have focal length 280 and the picture's centre as principal point; pixels of depth 0 are left out. Axes are
the camera's: x right, y down, z forward. Source: the loaders of MeteorNet, PSTNet
and P4Transformer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointadapt.data.frame_names import misnumbered, natural
from pointadapt.data.io import reason
from pointadapt.data.prepare import Outcome, Show, shared
from pointadapt.data.scans import repeated
from pointadapt.errors import UserError
from pointadapt.files import written

FOCAL = 280.0
#: Full scale of the 16-bit depth pictures, which the published code divides by.
FULL_SCALE = 65535.0
MSR = re.compile(r"a\d{2}_s\d{2}_e\d{2}_sdepth\.bin")
NTU = re.compile(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}")
KEYS = {"msr": "point_clouds", "ntu": "data"}
TITLES = {"msr": "MSR-Action3D", "ntu": "NTU RGB+D"}


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare_videos` did.

    kind      "msr" or "ntu"
    written   videos; skipped: those that were there already
    empty     frames without any depth, which stay, so that time stays true
    failed    one sentence for each video that could not be read; nothing was written of it
    """

    kind: str
    written: int
    skipped: int
    empty: int
    failed: tuple[str, ...]


def msr_action3d(source: Path, out: Path, overwrite: bool, workers: int, show: Show | None) -> Outcome:
    """`pointadapt prepare msr-action3d`."""
    return outcome(prepare_videos(source, out, overwrite, workers, show, "msr"))


def ntu_rgbd(source: Path, out: Path, overwrite: bool, workers: int, show: Show | None) -> Outcome:
    """`pointadapt prepare ntu`."""
    return outcome(prepare_videos(source, out, overwrite, workers, show, "ntu"))


def outcome(done: Prepared) -> Outcome:
    notes = (f"{done.empty} frames have no depth; they stay, without points",) if done.empty else ()
    return Outcome(done.written, done.skipped, notes, done.failed)


def prepare_videos(
    source: Path | str,
    out: Path | str,
    overwrite: bool = False,
    workers: int = 1,
    show: Show | None = None,
    kind: str | None = None,
) -> Prepared:
    """Convert all raw videos below ``source`` into ``out``/NAME.npz; an interrupted call goes on where it stopped.

    overwrite  convert what is there already
    workers    processes that share the videos
    show       called with (videos done, videos in all)
    kind       "msr" or "ntu": take no others
    Raises UserError where there are no raw videos (of that kind), two have one name, or ``out`` cannot be written.
    """
    source, out = Path(source), Path(out)
    wanted = kind
    kind, videos = raw_videos(source)
    if wanted not in (None, kind):
        raise UserError(f"{source}: these are raw videos of {TITLES[kind]}, not of {TITLES[str(wanted)]}")
    jobs = [(kind, video, out / f"{video.stem if kind == 'msr' else video.name}.npz") for video in videos]
    todo = [job for job in jobs if overwrite or not job[2].is_file()]
    failed, empty = [], 0
    for done, (frames, message) in enumerate(shared(convert, todo, workers), len(jobs) - len(todo) + 1):
        empty += frames
        failed += [message] if message else []
        if show is not None:
            show(done, len(jobs))
    return Prepared(kind, len(todo) - len(failed), len(jobs) - len(todo), empty, tuple(failed))


def raw_videos(source: Path) -> tuple[str, list[Path]]:
    """("msr", files) or ("ntu", folders of pictures) at or below a path. Raises UserError where there are none."""
    if not source.exists():
        raise UserError(f"there is no folder {source}: check the path")
    if MSR.fullmatch(source.name):
        return "msr", [source]
    if NTU.fullmatch(source.name):
        return "ntu", [source]
    found = sorted(path for path in source.rglob("*_sdepth.bin") if MSR.fullmatch(path.name))
    kind = "msr" if found else "ntu"
    if not found:
        found = sorted(path for path in source.rglob("S*C*P*R*A*") if path.is_dir() and NTU.fullmatch(path.name))
    if not found:
        raise UserError(
            f"{source}: no raw videos here; prepare knows aAA_sSS_eEE_sdepth.bin (MSR-Action3D) and folders "
            f"SsssCcccPpppRrrrAaaa of depth pictures (NTU RGB+D)"
        )
    if twice := repeated(path.name for path in found):
        raise UserError(f"{source}: two videos are called {twice}; prepare their folders one by one")
    return kind, found


def convert(job: tuple[str, Path, Path]) -> tuple[int, str]:
    """One video: (its frames without depth, what went wrong with it or "")."""
    kind, source, target = job
    try:
        frames = list(msr_frames(source) if kind == "msr" else ntu_frames(source))
    except UserError as error:
        return 0, str(error)
    write_video(target, frames, KEYS[kind])
    return sum(len(frame) == 0 for frame in frames), ""


def write_video(target: Path, frames: Iterable[np.ndarray], key: str = "point_clouds") -> None:
    """A ragged video in the published form, whole or not at all. Raises UserError when it cannot be written."""
    frames = list(frames)
    ragged = np.empty(len(frames), object)
    for number, frame in enumerate(frames):
        ragged[number] = np.asarray(frame, np.float32)
    with written(target) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **{key: ragged})  # type: ignore[arg-type]


def unproject(depth: np.ndarray, focal: float = FOCAL) -> np.ndarray:
    """[N, 3] float32 of the pixels of a depth picture [H, W] above 0, in its unit: x right, y down, z forward."""
    height, width = depth.shape
    v, u = np.nonzero(depth > 0)
    z = depth[v, u].astype(np.float64)
    return np.stack([(u - width / 2) * z / focal, (v - height / 2) * z / focal, z], 1).astype(np.float32)


def msr_frames(path: Path) -> Iterator[np.ndarray]:
    """Clouds of aAA_sSS_eEE_sdepth.bin: uint32 frames, width, height, then depth [frames, height, width] uint32."""
    size = path.stat().st_size
    head = np.fromfile(path, "<u4", 3)
    if len(head) < 3:
        raise UserError(f"{path}: {size} bytes are no depth video; copy the file again")
    frames, width, height = (int(value) for value in head)
    wanted = 12 + 4 * frames * width * height
    if size != wanted:
        raise UserError(
            f"{path}: {frames} frames of {width} x {height} need {wanted} bytes, the file has {size}, so it is "
            f"truncated or damaged; copy it again"
        )
    if frames < 2:
        raise UserError(f"{path}: a video of {frames} frames shows no motion; leave it out")
    depth = np.memmap(path, "<u4", "r", 12, (frames, height, width))
    for picture in depth:
        yield unproject(np.asarray(picture))


def ntu_frames(folder: Path) -> Iterator[np.ndarray]:
    """Clouds of a folder of 16-bit depth pictures, in the order of their numbers."""
    pictures = sorted(folder.glob("*.png"), key=natural)
    if len(pictures) < 2:
        raise UserError(f"{folder}: {len(pictures)} depth pictures; a video has two at least")
    if problem := misnumbered(pictures):
        raise UserError(problem)
    for path in pictures:
        yield (unproject(read_depth(path)) / np.float32(FULL_SCALE)).astype(np.float32)


def read_depth(path: Path) -> np.ndarray:
    """[H, W] of a 16-bit grey PNG. Raises UserError for a damaged file or a picture of another kind."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode not in ("I;16", "I;16B", "I"):
                raise UserError(f"{path}: a picture of mode {picture.mode}; depth is a 16-bit grey PNG")
            return np.asarray(picture).astype(np.uint32)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not readable as PNG, so damaged ({reason(error)}); copy it again") from error
