"""Grid sampling and default transforms against fixtures ``bb_gridsample_*`` of the official code.

Everything here is an integer or a copied float, so every tolerance is 0. What depends on how NumPy's unstable sort
broke ties inside a voxel is compared as the fixtures' README says: by membership, by coverage, and by equality on
voxels of one point; the error is then the number of offending rows.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from pointadapt.data.loader import collate_batch
from pointadapt.data.presets import sonata_default, utonia_default
from pointadapt.data.transforms import Transform
from pointadapt.ops.voxel import HASHES, grid_index, voxelize


def default(name: str) -> Transform:
    """The transform that a fixture calls sonata_default, concerto_default, utonia_default_sSCALE, utonia_object ..."""
    if not name.startswith("utonia"):
        return sonata_default()
    scale = re.search(r"_s(\d[\d.]*)", name)
    return utonia_default(
        scale=float(scale[1]) if scale else 1.0,
        apply_z_positive="outdoor" not in name,
        normalize_coord="object" in name,
    )


def differ(got: Tensor, want: Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    if not got.is_floating_point() and not want.is_floating_point():
        return float((got.long() != want.long()).sum())
    return float((got.double() - want.double()).abs().max()) if got.numel() else 0.0


def strays(rows: Tensor, inverse: Tensor, order: Tensor) -> float:
    """Number of voxels whose chosen row [M] does not lie in voxel ``order[m]``."""
    return float((inverse[rows.long()] != order).sum())


def check(path: Path | str) -> list[tuple[str, float, float]]:
    """(tensor name, error, tolerance) for everything the fixture holds."""
    with safe_open(path, "pt") as file:
        want = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        grid_size = float(file.metadata()["grid"])
    results = []
    for name in (name for name in HASHES if f"{name}.key" in want):
        results += [(f"{name}.{part}", error, 0.0) for part, error in check_hash(want, name, grid_size)]
    for name in sorted(key.removesuffix(".feat") for key in want if key.endswith(".feat")):
        results += [(f"{name}.{part}", error, 0.0) for part, error in check_default(want, name)]
    return results


def check_hash(want: dict[str, Tensor], name: str, grid_size: float) -> list[tuple[str, float]]:
    cells, least = grid_index(want["in.coord"], grid_size)
    voxels = voxelize(cells, name)
    count, voxel = voxels.count, torch.arange(len(voxels))
    draws = np.random.RandomState(7).randint(0, int(count.max()), len(count))
    rows = voxels.member(torch.from_numpy(draws))
    theirs, single = want[f"{name}.train.selected_index"].long(), count == 1
    parts = torch.stack(voxels.fragments())
    their_parts = want[f"{name}.test.index"].long()
    covered = torch.zeros(len(cells), dtype=torch.bool)
    covered[parts.flatten()] = True
    return [
        ("key", differ(voxels.key, want[f"{name}.key"])),
        ("count", differ(count, want[f"{name}.count"])),
        ("argsort_stable", differ(voxels.order, want[f"{name}.argsort_stable"])),
        ("train.inverse", differ(voxels.inverse, want[f"{name}.train.inverse"])),
        ("train.grid_coord", differ(cells[rows], want[f"{name}.train.grid_coord"])),
        ("train.min_coord", differ(least[None].double() * grid_size, want[f"{name}.train.min_coord"])),
        ("train.selected_index in its voxel", strays(rows, voxels.inverse, voxel)),
        ("train.selected_index of the fixture in ours", strays(theirs, voxels.inverse, voxel)),
        ("train.selected_index (count 1)", differ(rows[single], theirs[single])),
        ("test.n_parts", differ(torch.tensor([len(parts)]), want[f"{name}.test.n_parts"])),
        ("test.index in its voxel", sum(strays(part, voxels.inverse, voxel) for part in parts)),
        ("test.index of the fixture in ours", sum(strays(part, voxels.inverse, voxel) for part in their_parts)),
        ("test.index (count 1)", differ(parts[:, single], their_parts[:, single])),
        ("test.index covers every point", float((~covered).sum())),
    ]


def check_default(want: dict[str, Tensor], name: str) -> list[tuple[str, float]]:
    coord = want["in.coord"].numpy().astype(np.float32)
    sample = {"coord": coord, "color": want["in.color"].numpy(), "normal": want["in.normal"].numpy()}
    out = default(name)(sample, np.random.RandomState(11))
    batch = collate_batch([out])
    single = torch.bincount(want[f"{name}.inverse"]) == 1
    got = {"coord": batch["point"].coord, "feat": batch["point"].feat}
    same = [(f"{k} (count 1)", differ(v[single], want[f"{name}.{k}"][single])) for k, v in got.items()]
    return same + [
        ("grid_coord", differ(batch["point"].grid_coord, want[f"{name}.grid_coord"])),
        ("inverse", differ(torch.from_numpy(out["inverse"]), want[f"{name}.inverse"])),
        ("offset", differ(batch["point"].offset, want[f"{name}.offset"])),
    ]
