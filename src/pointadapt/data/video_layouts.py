"""Layouts of video data sets that `pointadapt init` knows: those of the published benchmarks.

Each finder looks at a folder and returns what a dataset.yaml would say, or None. ``variant`` chooses where one folder
holds several protocols. Nothing but names and headers of arrays are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pointadapt.data.frame_names import natural
from pointadapt.data.layout import UP_NOTE, Layout
from pointadapt.data.object_arrays import first, text
from pointadapt.data.object_layouts import pick
from pointadapt.data.scans import SPLITS
from pointadapt.data.video_arrays import VideoArrays, holds_videos, read_videos
from pointadapt.data.video_classes import (
    HOI4D_IGNORED,
    HOI4D_SEGMENTS,
    MSR_ACTION3D,
    NTU,
    NTU60_SUBJECTS,
    NTU120_SUBJECTS,
    RADHAR,
    SHREC,
    SYNTHIA,
    SYNTHIA_IGNORED,
)
from pointadapt.data.video_set import VideoSet
from pointadapt.errors import UserError
from pointadapt.files import read_text

SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "test": "test", "testing": "test"}
#: Where RadHAR's sensor sees something: beyond lie outliers (its x is forward, y sideways, z up).
RADHAR_BOX = {"x": (0.0, 6.0), "y": (-4.0, 4.0), "z": (-4.0, 4.0)}

VideoLayout = Layout[VideoSet]


def places(folder: Path) -> Iterator[tuple[Path, str]]:
    """(folder, prefix of its files' names within the data set): the folder itself, then those right below it."""
    yield folder, ""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield path, f"{path.name}/"


# --- depth cameras --------------------------------------------------------------------------------------------------

MSR = re.compile(r"a(\d{2})_s(\d{2})_e(\d{2})_sdepth\.(npz|bin)")
NTU_NAME = re.compile(r"S\d{3}C\d{3}P\d{3}R\d{3}A(\d{3})")
SHORT_NOTE = "videos of fewer frames than a clip are left out, as in published scores, and counted: see `short_video`"


def msr_action3d(folder: Path, variant: str | None) -> VideoLayout | None:
    """aAA_sSS_eEE_sdepth.npz with ``point_clouds``: subjects 1 to 5 are learned from, 6 to 10 are the test."""
    for place, prefix in places(folder):
        endings = {match[4] for path in place.iterdir() if (match := MSR.fullmatch(path.name))}
        if endings == {"bin"}:
            raise UserError(
                f"{place}: these are raw depth frames of MSR-Action3D; make clouds of them first with: pointadapt "
                f"prepare msr-action3d {place} CLOUDS"
            )
        if endings:
            splits = {
                "train": (f"{prefix}a*_s0[1-5]_e*_sdepth.npz",),
                "test": (f"{prefix}a*_s0[6-9]_e*_sdepth.npz", f"{prefix}a*_s10_e*_sdepth.npz"),
            }
            splits = {split: tuple(s for s in sources if any(folder.glob(s))) for split, sources in splits.items()}
            dataset = VideoSet(
                folder,
                "action",
                MSR_ACTION3D,
                ids={i + 1: name for i, name in enumerate(MSR_ACTION3D)},
                label_pattern=r"a(\d+)_s\d+_e",
                splits=splits,
                frames=24,
                stride=1,
                points=2048,
                up="-y",
                scale=1 / 300,
                short_video="drop",
            )
            return VideoLayout(dataset, "MSR-Action3D", (SHORT_NOTE,))
    return None


def ntu(folder: Path, variant: str | None) -> VideoLayout | None:
    """SsssCcccPpppRrrrAaaa.npz with ``data``: NTU RGB+D 60 or 120 in the splits of its papers."""
    for place, prefix in places(folder):
        names = [path.name for path in place.iterdir()]
        if any(NTU_NAME.fullmatch(name) and (place / name).is_dir() for name in names):
            raise UserError(
                f"{place}: these are depth pictures of NTU RGB+D; make clouds of them first with: pointadapt prepare "
                f"ntu {place} CLOUDS"
            )
        actions = [int(match[1]) for name in names if (match := NTU_NAME.match(name)) and name.endswith(".npz")]
        if not actions:
            continue
        kinds = ("cross-subject", "cross-view") if max(actions) <= 60 else ("cross-subject", "cross-setup")
        kind = pick(folder, kinds, variant) or kinds[0]
        count = 60 if max(actions) <= 60 else 120
        train, test = ntu_split(kind, NTU60_SUBJECTS if count == 60 else NTU120_SUBJECTS)
        splits = {
            split: tuple(s for code in codes if any(folder.glob(s := f"{prefix}*{code}*.npz")))
            for split, codes in (("train", train), ("test", test))
        }
        classes = NTU[:count]
        dataset = VideoSet(
            folder,
            "action",
            classes,
            ids={i + 1: name for i, name in enumerate(classes)},
            label_pattern=r"A(\d{3})",
            splits=splits,
            frames=24,
            step=2,
            stride=2,
            points=2048,
            up="-y",
            scale=100.0,
            short_video="drop",
        )
        return VideoLayout(dataset, f"NTU RGB+D {count} ({kind})", (SHORT_NOTE,), kinds)
    return None


def ntu_split(kind: str, subjects: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """(codes of names to learn from, codes of the test): subjects P, cameras C (test: 1), setups S (test: odd)."""
    if kind == "cross-view":
        return ["C002", "C003"], ["C001"]
    if kind == "cross-setup":
        return [f"S{i:03d}" for i in range(2, 33, 2)], [f"S{i:03d}" for i in range(1, 33, 2)]
    people = range(1, 41 if len(subjects) == 20 else 107)
    return [f"P{i:03d}" for i in people if i in subjects], [f"P{i:03d}" for i in people if i not in subjects]


def shrec(folder: Path, variant: str | None) -> VideoLayout | None:
    """gesture_G/finger_F/subject_S/essai_E/*.npy [32, 256, 8], train_gestures.txt and test_gestures.txt."""
    lists = {split: folder / f"{split}_gestures.txt" for split in ("train", "test")}
    if not lists["train"].is_file() or not any(folder.glob("gesture_*")):
        return None
    kinds = ("14", "28")
    kind = pick(folder, kinds, variant) or "14"
    rows = [line.split() for file in lists.values() if file.is_file() for line in read_text(file).splitlines() if line]
    if not all(len(row) == 7 and all(word.isdigit() for word in row) for row in rows):
        raise UserError(
            f"{lists['train']}: SHREC'17's lists have seven numbers on a line: gesture finger subject essai ..."
        )
    ids = {i + 1: name for i, name in enumerate(SHREC)}
    if kind == "28":
        named = {int(row[5]): f"{SHREC[int(row[0]) - 1]}, {('one finger', 'hand')[int(row[1]) - 1]}" for row in rows}
        ids = {i: named.get(i, f"gesture {i}") for i in range(1, 29)}
    dataset = VideoSet(
        folder,
        "action",
        tuple(ids.values()),
        ids=ids,
        splits={split: (f"{file.name}#{kind}",) for split, file in lists.items() if file.is_file()},
        frames=32,
        points=128,
        columns=(4, 5, 6),
        up="-y",
        transform="none",
    )
    notes = (
        "`columns: [4, 5, 6]` are x y z; [0, 1, 2], column, row and depth in the picture, are what PointLSTM reads",
    )
    return VideoLayout(dataset, f"SHREC'17 ({kind} gestures)", notes, kinds)


# --- HOI4D, Synthia4D -----------------------------------------------------------------------------------------------


def hoi4d(folder: Path, variant: str | None) -> VideoLayout | None:
    """train1.h5 ..., test1.h5 ... with pcd [n, F, N, 3] and label [n, F] (19 actions) or semantic [n, F, N]."""
    splits = by_name(folder, (".h5", ".hdf5"))
    if not splits:
        return None
    some = read_videos(folder / (splits.get("train") or next(iter(splits.values())))[0])
    if not some.many or "classes" in some.fields:
        return None
    if "semantic" in some.fields:
        dataset = VideoSet(
            folder,
            "video_segmentation",
            tuple(HOI4D_SEGMENTS.values()),
            ids=HOI4D_SEGMENTS,
            ignore=HOI4D_IGNORED,
            splits=splits,
            frames=3,
            stride=3,
            points=8192,
            up="-y",
            transform="hoi4d",
        )
        note = (
            "41 named classes; published code has 49 outputs and papers score 49, 43, 39, 38 or 14: compare with care"
        )
        return VideoLayout(dataset, "HOI4D semantic segmentation", (note,))
    if some.frame_label(0) is None:
        return None
    dataset = VideoSet(
        folder,
        "action_segmentation",
        tuple(f"action {i}" for i in range(19)),
        splits=splits,
        frames=some.frames(0),
        points=2048,
        up="-y",
        transform="hoi4d",
    )
    notes = ["the files name no actions: give them names in `classes`, in the order of their ids"]
    if not any(read_videos(folder / file).frame_label(0) is not None for file in splits.get("test", ())):
        notes.append("the labels of test are private: published scores hold out a quarter of train (`holdout: 0.25`)")
    return VideoLayout(dataset, "HOI4D action segmentation", tuple(notes))


def synthia(folder: Path, variant: str | None) -> VideoLayout | None:
    """SYNTHIA-SEQS-05-FOG-000000.npz: pc [16384, 3], rgb, semantic, center. Variants: raw ids, or 0 to 12."""
    for place, prefix in places(folder):
        files = [path.name for path in place.glob("SYNTHIA-SEQS-*-*.npz")]
        if not files:
            continue
        kind = pick(folder, ("raw", "mapped"), variant) or "raw"
        sequences = {match[1] for name in files if (match := re.match(r"SYNTHIA-SEQS-(\d\d)", name))}
        names = {split: [q for q in wanted if q in sequences] for split, wanted in SYNTHIA_SPLITS.items()}
        dataset = VideoSet(
            folder,
            "video_segmentation",
            tuple(SYNTHIA.values()),
            ids=SYNTHIA if kind == "raw" else {},
            ignore=SYNTHIA_IGNORED if kind == "raw" else (12,),
            splits={split: tuple(f"{prefix}SYNTHIA-SEQS-{q}-*.npz" for q in found) for split, found in names.items()},
            frames=3,
            stride=1,
            points=16384,
            color=True,
            up="-y",
            gaps=True,
            transform="synthia",
        )
        notes = (
            f"labels are read as {kind} ids: choose with --variant",
            "published scores cut each clip in two with 1 m of context: `halves: 1.0`",
            "published training takes val as well",
            "the colour of each point is read as well, as published: `color`",
        )
        return VideoLayout(dataset, "Synthia4D", notes, ("raw", "mapped"))
    return None


SYNTHIA_SPLITS = {"train": ("01", "02", "04"), "val": ("05",), "test": ("06",)}


# --- array files with many videos -----------------------------------------------------------------------------------


def by_name(folder: Path, endings: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """split -> array files of videos whose names say so: train1.h5, radhar_test.npz."""
    splits: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir(), key=natural):
        if path.suffix.lower() not in endings or not path.is_file():
            continue
        words = re.findall(r"[a-z]+", path.stem.lower())
        split = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)
        if split and holds_videos(path):
            splits.setdefault(split, []).append(path.name)
    return {split: tuple(splits[split]) for split in SPLITS if split in splits}


def many_videos(folder: Path, variant: str | None) -> VideoLayout | None:
    """NPZ or HDF5 files with many videos and a class each; RadHAR's are known by their classes."""
    splits = by_name(folder, (".npz", ".h5", ".hdf5"))
    if "train" not in splits:
        return None
    some = read_videos(folder / splits["train"][0])
    if not (some.many or some.packed) or some.label(0) is None:
        return None
    classes, notes = class_names(some, folder, splits)
    if classes == RADHAR and some.packed:
        dataset = VideoSet(
            folder, "action", RADHAR, splits=splits, frames=24, merge=5, points=128, box=RADHAR_BOX, up="z"
        )
        note = "about 21 points a frame: `merge: 5` joins five frames (a sixth of a second) into one"
        return VideoLayout(dataset, "RadHAR", (note, "some points are outliers: `box` leaves them out"))
    frames = max(min(24, min(some.frames(row) for row in range(len(some)))), 2)
    dataset = VideoSet(folder, "action", classes, splits=splits, frames=frames, up="z")
    return VideoLayout(dataset, "array files of videos", (*notes, UP_NOTE))


def class_names(
    some: VideoArrays, folder: Path, splits: dict[str, tuple[str, ...]]
) -> tuple[tuple[str, ...], list[str]]:
    """(names of the classes in a file, or their numbers, what to know about it)."""
    named = some.fields.get("classes")
    if named is not None:
        return tuple(text(name) for name in named), []
    labels = [first(read_videos(folder / f).fields, ("label", "labels", "y")) for fs in splits.values() for f in fs]
    most = max(int(np.max(label)) for label in labels if label is not None)
    notes = ["the files name no classes: give them names in `classes`, in the order of their label ids"]
    return tuple(f"class {i}" for i in range(most + 1)), notes


#: The finders of published layouts.
VIDEO_FINDERS: tuple[Callable[[Path, str | None], VideoLayout | None], ...] = (
    msr_action3d,
    ntu,
    shrec,
    synthia,
    hoi4d,
    many_videos,
)
