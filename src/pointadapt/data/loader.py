"""From a data set's split to batches: cached scans, seeded transforms, packing into a Point."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pointadapt.data.io import files_of
from pointadapt.data.labels import keep_labels, keep_points, named
from pointadapt.data.scans import DataSet
from pointadapt.data.tiles import MARGIN, tiles
from pointadapt.data.transforms import Sample, Transform, take
from pointadapt.errors import UserError
from pointadapt.files import beside, read_json
from pointadapt.ops.voxel import grid_index, voxelize
from pointadapt.point import Point

#: Training keeps at most this many points of a voxel: enough for a fresh random one in each epoch.
KEEP = 4


class ScanDataset(Dataset):
    """The scans of one split, each read and prepared once, then transformed anew at every access.

    The transform's randomness depends on (seed, epoch, index) alone, so that a resumed run goes on exactly as the
    interrupted one, whatever the number of workers. Call :meth:`set_epoch` before each pass.

    transform    ``(sample, rng) -> sample``; None returns the prepared scan
    train        thin the scans to KEEP points per voxel; needed labels are then checked too
    limit        scans of more voxels than this become several items, overlapping tiles. Without ``train``, labels
                 outside a tile's core are -1, so that every point of a scan is scored exactly once
    cache        folder for prepared scans (memory-mapped, shared by workers, found again by the next run);
                 None keeps them in memory
    repeat       passes over the scans that make up one epoch
    points       for training with few labels: how many of each scan are known, or (list of them, scan name -> indices)
    workers      processes that fill the cache
    """

    def __init__(
        self,
        dataset: DataSet,
        split: str,
        transform: Transform | None = None,
        seed: int = 0,
        train: bool | None = None,
        limit: int = 500_000,
        cache: Path | str | None = None,
        repeat: int = 1,
        points: int | tuple[Path, dict[str, np.ndarray]] | None = None,
        workers: int = 0,
    ):
        self.dataset, self.split, self.transform, self.seed, self.repeat = dataset, split, transform, seed, repeat
        self.train = split == "train" if train is None else train
        self.limit = limit
        self.points = listed(points, dataset.paths(split)) if isinstance(points, tuple) else points
        self.cache = Path(cache) if cache else None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by worker processes too
        self.items: list[Sample | Path] = []
        labelled = False
        for items in self._prepare_all(dataset.paths(split), workers):
            labelled = labelled or any((self._load(item)["segment"] >= 0).any() for item in items)
            self.items += items
        if not self.items:
            raise UserError(f"{dataset.file}: the split {split!r} lists no scans; add some under `splits`")
        if not labelled:
            raise UserError(
                f"{dataset.file}: no scan of the split {split!r} has a labelled point; "
                f"check `label_field`, `classes` and `ignore`"
            )

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.items) * self.repeat

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self._load(self.items[index % len(self.items)])
        if self.transform is None:
            return sample
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        return self.transform(sample, rng)

    def _load(self, item: Sample | Path) -> Sample:
        if isinstance(item, Path):
            names = {file.stem: np.load(file, mmap_mode="r") for file in sorted(item.glob("*.npy"))}
            item = {**names, **read_json(item / "scan.json")}
        out = {k: np.asarray(v) if isinstance(v, np.ndarray) else v for k, v in item.items()}
        return {**out, "color": out["color"].astype(np.float32), "segment": out["segment"].astype(np.int64)}

    def _prepare_all(self, paths: list[Path], workers: int) -> Iterator[list[Sample | Path]]:
        if self.cache is None or workers == 0 or len(paths) < 2:
            yield from map(self._prepare, paths)
            return
        for items in DataLoader(Caching(self, paths), batch_size=None, num_workers=workers, collate_fn=as_it_is):
            if isinstance(items, UserError):
                raise items
            yield items

    def _prepare(self, path: Path) -> list[Sample | Path]:
        """The items a scan becomes: read from the cache, or from the file."""
        if self.cache is None:
            return list(self._cut(path))
        folder = self.cache / f"{path.stem}-{self._fingerprint(path)}"
        if not folder.is_dir():
            store(folder, self._cut(path))
        return [*sorted(folder.iterdir())]

    def _cut(self, path: Path) -> list[Sample]:
        sample = self.dataset.read(path)
        if self.train:
            sample.pop("more_segments", None)  # learned from is the first label
            rng, known = np.random.default_rng(self.seed), self.points
            if isinstance(known, dict):
                sample = {**sample, "segment": keep_points(sample["segment"], known[path], path)}
            sample = thin(sample, self.dataset.voxel, rng, labelled_first=isinstance(known, dict))
            if isinstance(known, int):  # of the scan: below it may become several items
                scan = os.path.relpath(path, self.dataset.folder)
                sample = {**sample, "segment": keep_labels(sample["segment"], known, self.seed, scan)}
        sample = {**sample, "color": sample["color"].astype(np.uint8), "segment": sample["segment"].astype(np.int16)}
        items = []
        margin = 0.0 if self.train else MARGIN * self.dataset.voxel
        for rows, core in tiles(sample["coord"], self.dataset.voxel, self.limit, margin):
            item = take(sample, rows)
            item["segment"][~core] = -1
            items.append(item)
        return items

    def _fingerprint(self, path: Path) -> str:
        """Changes with the file and with whatever decides how it is prepared."""
        apart = self.dataset.label_files.get(path)
        files = [*files_of(path), *([] if apart is None else [apart])]
        newest = max((file.stat() for file in files), key=lambda stat: stat.st_mtime_ns)
        recipe = {k: v for k, v in self.dataset.as_dict().items() if k != "splits"}
        state = [str(path.resolve()), newest.st_mtime_ns, newest.st_size]
        parts = [*state, recipe, self.train, self.limit, self.seed, KEEP]
        if self.points is not None:
            parts.append(self.points[path].tolist() if isinstance(self.points, dict) else self.points)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def listed(points: tuple[Path, dict[str, np.ndarray]], paths: list[Path]) -> dict[Path, np.ndarray]:
    """Training scan -> indices of its labelled points. Raises UserError for a scan that the list lacks."""
    file, rows = points
    found = {path: rows[name] for name, path in named(rows, paths, file).items()}
    for path in paths:
        if path not in found:
            raise UserError(f"{file}: this list of labelled points has none for the training scan {path}")
    return found


class Caching(Dataset):
    """Item i: what a scan becomes in the cache, or the UserError that it met; for worker processes to share."""

    def __init__(self, scans: ScanDataset, paths: list[Path]) -> None:
        self.scans, self.paths = scans, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[Sample | Path] | UserError:
        try:
            return self.scans._prepare(self.paths[index])
        except UserError as error:  # raised here, it would come out as a page of the worker's traceback
            return error


def as_it_is(item: Any) -> Any:
    return item


def thin(sample: Sample, grid_size: float, rng: np.random.Generator, labelled_first: bool = False) -> Sample:
    """At most KEEP random points of each voxel; with ``labelled_first`` only labelled ones where a voxel has any."""
    shuffled = rng.permutation(len(sample["coord"]))
    if labelled_first:
        shuffled = shuffled[np.argsort(sample["segment"][shuffled] < 0, kind="stable")]
    cells, _ = grid_index(torch.from_numpy(sample["coord"][shuffled]), grid_size)
    voxels = voxelize(cells)
    rank = torch.arange(len(cells)) - voxels.start.repeat_interleave(voxels.count)
    few = rank < KEEP
    if labelled_first:
        known = torch.from_numpy(sample["segment"][shuffled] >= 0)[voxels.order]
        few &= known | ~known[voxels.start].repeat_interleave(voxels.count)
    keep = voxels.order[few].numpy()
    return take(sample, np.sort(shuffled[keep]))


def store(folder: Path, items: list[Sample]) -> None:
    """Write prepared samples as ``folder/NNN/KEY.npy``, whole or not at all."""
    temporary = beside(folder)
    try:
        for number, item in enumerate(items):
            part = temporary / f"{number:04d}"
            part.mkdir(parents=True)
            rest = {}
            for key, value in item.items():
                if isinstance(value, np.ndarray):
                    np.save(part / f"{key}.npy", value)
                else:
                    rest[key] = value
            (part / "scan.json").write_text(json.dumps(rest))
        os.replace(temporary, folder)
    except OSError as error:
        if folder.is_dir():  # another process was faster
            return
        raise UserError(f"the cache of prepared scans cannot be written to {folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def collate_batch(
    samples: list[Sample], mix_prob: float = 0.0, rng: np.random.Generator | None = None, grid_size: float | None = None
) -> dict[str, Any]:
    """Pack transformed samples: ``point`` (a Point of B clouds), ``segment`` [N], and lists of B for the rest.

    With probability ``mix_prob`` neighbouring scenes are merged into one by dropping every other offset (Mix3D);
    voxels that two merged scenes share are then there twice. Lists keep one entry per sample.
    """
    if not samples:
        raise ValueError("collate_batch needs at least one sample")

    def pack(key: str) -> Tensor | None:
        if key not in samples[0]:
            return None
        return torch.from_numpy(np.concatenate([sample[key] for sample in samples]))

    offset = torch.tensor([len(sample["coord"]) for sample in samples]).cumsum(0)
    if mix_prob > 0 and (rng or np.random.default_rng()).random() < mix_prob:
        offset = torch.cat([offset[1:-1:2], offset[-1:]])
    coord, feat = pack("coord"), pack("feat")
    assert coord is not None and feat is not None, "samples need coord and feat: end the transforms with Collect()"
    batch: dict[str, Any] = {
        "point": Point(coord=coord, feat=feat, offset=offset, grid_coord=pack("grid_coord"), grid_size=grid_size)
    }
    segment = pack("segment")
    if segment is not None:
        batch["segment"] = segment
    for key in ("name", "inverse", "origin_segment", "index"):
        if all(key in sample for sample in samples):  # a crop drops what belonged to all points, where it cuts
            values = [sample[key] for sample in samples]
            batch[key] = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values]
    return batch
