"""From a split of an ObjectSet to batches: prepared shapes, seeded transforms, packing into a Point."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pointadapt.data.corruptions import corrupt
from pointadapt.data.io import files_of
from pointadapt.data.loader import store
from pointadapt.data.object_files import Item, read_item
from pointadapt.data.object_set import ObjectSet, draw
from pointadapt.data.object_transforms import OBJECT_TRANSFORMS, farthest_rows, object_eval, pool_size
from pointadapt.data.transforms import Sample, Transform, take
from pointadapt.errors import UserError
from pointadapt.point import Point

#: Shapes whose farthest points are found in one go.
STACK = 64


class ObjectItems(Dataset):
    """The shapes of one split, each read and thinned once, then transformed anew at every access.

    ``items[i]`` is {"coord" [N, 3] float32, "index" [N] rows in the file, "name" str} with "label" (classification)
    or "segment" [N] int64 and "category" (parts). Points are thinned by farthest point sampling to a pool of
    ``75/64 * points`` (1200 for 1024), from which training draws at random and evaluation takes the first ``points``:
    the same ones whatever the order in the file. Randomness depends on (seed, epoch, index) alone; call
    :meth:`set_epoch` before each pass.

    transform   ``(sample, rng) -> sample``; by default the data set's augmentation with ``train``, else none
    need        points the model needs at least (groups, group size); smaller shapes are refused by name
    corruption  (name, severity 1..5) of :mod:`pointadapt.data.corruptions`, applied to each chosen shape
    cache       folder for prepared shapes, memory-mapped and found again by the next run; None keeps them in memory
    repeat      passes over the shapes that make up one epoch
    """

    def __init__(
        self,
        dataset: ObjectSet,
        split: str,
        train: bool | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        need: int = 1,
        corruption: tuple[str, int] | None = None,
        cache: Path | str | None = None,
        repeat: int = 1,
    ):
        self.dataset, self.split, self.seed, self.repeat = dataset, split, seed, repeat
        self.train = split == "train" if train is None else train
        self.need, self.corruption = need, corruption
        preset = OBJECT_TRANSFORMS[dataset.transform] if self.train else object_eval
        self.transform = transform or preset(dataset.points)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by worker processes too
        self.shapes = dataset.items(split)
        if not self.shapes:
            raise UserError(f"{dataset.file}: the split {split!r} lists no shapes; add some under `splits`")
        self.packed = self._cached(Path(cache)) if cache else self._pack()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.shapes) * self.repeat

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self.transform(
            self.shape(index % len(self.shapes)), np.random.default_rng([self.seed, int(self._epoch), index])
        )
        return sample if self.corruption is None else corrupted(sample, *self.corruption)

    def shape(self, row: int) -> Sample:
        """A prepared shape before its transform: up to ``75/64 * points`` points in the order of farthest sampling."""
        start, end = (int(v) for v in self.packed["ptr"][row : row + 2])
        item = self.shapes[row]
        sample: Sample = {k: np.array(v[start:end]) for k, v in self.packed.items() if k != "ptr"}
        if "segment" in sample:
            sample["segment"] = sample["segment"].astype(np.int64)
        return {**sample, "category" if self.dataset.task == "parts" else "label": item.target, "name": item.name}

    @property
    def targets(self) -> np.ndarray:
        """[M] int64 class (or category) of each shape of the split."""
        return np.array([item.target for item in self.shapes], np.int64)

    def _pack(self) -> dict[str, np.ndarray]:
        """All prepared shapes behind each other, and ``ptr`` [M+1] where each begins."""
        samples: list[Sample] = []
        normalize = False if self.split in self.dataset.tests else None  # a suite's corruption would be undone
        for at in range(0, len(self.shapes), STACK):
            run = [prepare(self.dataset, item, self.need, normalize) for item in self.shapes[at : at + STACK]]
            samples += thin(run, self.dataset.points)
        ptr = np.cumsum([0, *(len(sample["coord"]) for sample in samples)])
        packed = {key: np.concatenate([sample[key] for sample in samples]) for key in samples[0]}
        return {**packed, "ptr": ptr}

    def _cached(self, folder: Path) -> dict[str, np.ndarray]:
        place = folder / f"{self.split}-{self._fingerprint()}"
        if not place.is_dir():
            store(place, [self._pack()])
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted((place / "0000").glob("*.npy"))}

    def _fingerprint(self) -> str:
        """Changes with the files, the shapes listed and whatever decides how they are prepared."""
        paths = dict.fromkeys(item.path for item in self.shapes)
        stats = {file: file.stat() for path in paths for file in files_of(path)}
        files = [(str(path.resolve()), stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()]
        keys = ("task", "classes", "categories", "points", "up", "normalize", "label_field")
        recipe = {key: value for key, value in self.dataset.as_dict().items() if key in keys}
        parts = [files, [item.name for item in self.shapes], recipe, self.need]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def prepare(dataset: ObjectSet, item: Item, need: int = 1, normalize: bool | None = None) -> Sample:
    """One shape as read: sorted, turned, normalised; parts along. Raises UserError naming what is wrong with it."""
    coord, segment = read_item(dataset, item)
    name = item.path if item.row is None else f"{item.path}#{item.row}"
    sample = dataset.prepare(np.asarray(coord), name, need, normalize)
    return sample if segment is None else {**sample, "segment": segment[sample["index"]].astype(np.int16)}


def thin(samples: list[Sample], points: int) -> list[Sample]:
    """Shapes of more than ``points`` down to the pool that training draws from; the others stay as they are."""
    large = [i for i, sample in enumerate(samples) if len(sample["coord"]) > points]
    if not large:
        return samples
    rows = dict(zip(large, farthest_rows([samples[i]["coord"] for i in large], pool_size(points)), strict=True))
    return [take(sample, rows[i]) if i in rows else sample for i, sample in enumerate(samples)]


def corrupted(sample: Sample, name: str, severity: int) -> Sample:
    """The sample with corrupted points; what belonged to single points is lost with them."""
    seed = int.from_bytes(draw(sample["name"])[:4], "little")
    coord = corrupt(sample["coord"], name, severity, seed)
    return {**{k: v for k, v in sample.items() if k not in ("index", "segment")}, "coord": coord}


def collate_objects(samples: list[Sample]) -> dict[str, Any]:
    """Pack samples: ``point`` (a Point of B clouds, feat = coord), ``label`` [B] or ``segment`` [N], lists of B names.

    The categories of parts lie in ``point.extra["category"]`` [B] int64. ``index`` is a list of B arrays.
    """
    if not samples:
        raise ValueError("collate_objects needs at least one sample")
    coord = torch.from_numpy(np.concatenate([sample["coord"] for sample in samples]).astype(np.float32))
    offset = torch.tensor([len(sample["coord"]) for sample in samples]).cumsum(0)
    point = Point(coord=coord, feat=coord, offset=offset)
    if "category" in samples[0]:
        point = point.but(extra={"category": torch.tensor([sample["category"] for sample in samples])})
    batch: dict[str, Any] = {"point": point}
    if "label" in samples[0]:
        batch["label"] = torch.tensor([sample["label"] for sample in samples])
    if all("segment" in sample for sample in samples):
        batch["segment"] = torch.from_numpy(np.concatenate([sample["segment"] for sample in samples]))
    for key in ("name", "index"):
        if all(key in sample for sample in samples):
            batch[key] = [sample[key] for sample in samples]
    return batch
