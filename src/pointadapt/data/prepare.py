"""Raw downloads of benchmarks to files that `pointadapt init` reads: one table, name -> what converts it.

pointadapt prepare msr-action3d MSR-Action3D/ clouds/
pointadapt prepare scannet ScanNet/ scannet/
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pointadapt.errors import UserError

#: Told while converting: (done, in all).
Show = Callable[[int, int], None]
Job = TypeVar("Job")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Outcome:
    """What a conversion did.

    written, skipped  outputs; skipped: those that were there already
    notes             sentences on what a user should know
    failed            one sentence for each input that could not be read; nothing was written of it
    """

    written: int
    skipped: int = 0
    notes: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """One raw data set: what it is, what its outputs are called, and "module:function" that converts it.

    The function is called as ``function(source, out, overwrite, workers, show)`` and returns an :class:`Outcome`. It
    writes each output whole or not at all, so that an interrupted call goes on where it stopped; it raises UserError
    where ``source`` holds nothing of its kind or ``out`` cannot be written.
    """

    text: str
    outputs: str
    function: str

    def __call__(self, source: Path, out: Path, overwrite: bool, workers: int, show: Show | None) -> Outcome:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)(source, out, overwrite, workers, show)


PREPARE: dict[str, Preparation] = {
    "msr-action3d": Preparation(
        "MSR-Action3D: depth videos aAA_sSS_eEE_sdepth.bin", "videos", "pointadapt.data.prepare_video:msr_action3d"
    ),
    "ntu": Preparation(
        "NTU RGB+D 60 and 120: folders SsssCcccPpppRrrrAaaa of depth pictures",
        "videos",
        "pointadapt.data.prepare_video:ntu_rgbd",
    ),
    "scannet": Preparation("ScanNet v2: scans/sceneXXXX_YY/", "scans", "pointadapt.data.prepare_scenes:scannet"),
    "s3dis": Preparation("S3DIS: Area_1/ROOM/Annotations/CLASS_i.txt", "rooms", "pointadapt.data.prepare_scenes:s3dis"),
    "nuscenes": Preparation(
        "nuScenes-lidarseg: samples/, lidarseg/, v1.0-trainval/",
        "lists of frames",
        "pointadapt.data.prepare_scenes:nuscenes",
    ),
    "semantickitti": Preparation(
        "SemanticKITTI: sequences/00/velodyne/*.bin, labels/*.label; read as it is",
        "dataset.yaml",
        "pointadapt.data.prepare_scenes:semantickitti",
    ),
}


def prepare(
    kind: str, source: Path | str, out: Path | str, overwrite: bool = False, workers: int = 1, show: Show | None = None
) -> Outcome:
    """Convert a raw download; see :class:`Preparation`. Raises UserError for an unknown kind or a missing folder."""
    if kind not in PREPARE:
        raise UserError(f"nothing is known of raw {kind!r}: use one of {', '.join(PREPARE)}")
    if not Path(source).exists():
        raise UserError(f"there is no folder {source}: check the path")
    if Path(out).is_file():
        raise UserError(f"{out} is a file: name a folder to write into")
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    return PREPARE[kind](Path(source), Path(out), overwrite, workers, show)


def shared(convert: Callable[[Job], Done], jobs: Sequence[Job], workers: int) -> Iterator[Done]:
    """What ``convert`` returns of every job, in their order, by as many processes."""
    if workers <= 1 or len(jobs) < 2:
        yield from map(convert, jobs)
        return
    context = multiprocessing.get_context("spawn")  # forked copies of a process with threads may hang
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        yield from pool.map(convert, jobs, chunksize=max(1, min(16, len(jobs) // (4 * workers))))
