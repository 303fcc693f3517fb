"""Corruptions of clean shapes, after two published suites; every one deterministic in (name, severity, seed).

ModelNet-C (Ren et al., ICML 2022; PointCloud-C), the seven of APPT's tables: scale, jitter, rotate,
dropout_global, dropout_local, add_global, add_local.
ModelNet40-C (Sun et al., 2022), the thirteen that need no mesh: uniform, gaussian, background,
impulse, upsampling, rotation, shear, distortion, distortion_rbf, distortion_rbf_inv, density, density_inc, cutout.

Shapes are [N, 3] in the unit sphere; cluster sizes are the papers' at 1024 points and grow with N. The published files
come from scripts that fix no random state: what is made here follows their laws, not their draws. To score on the
published files list them under `tests` in dataset.yaml.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial.transform import Rotation
from scipy.special import comb

from pointadapt.data.transforms import unit_sphere
from pointadapt.errors import UserError

MODELNET_C = ("scale", "jitter", "rotate", "dropout_global", "dropout_local", "add_global", "add_local")
MODELNET40_C = (
    "uniform", "gaussian", "background", "impulse", "upsampling",
    "rotation", "shear", "distortion", "distortion_rbf", "distortion_rbf_inv",
    "density", "density_inc", "cutout",
)  # fmt: skip
CORRUPTIONS = (*MODELNET_C, *MODELNET40_C)
SEVERITIES = (1, 2, 3, 4, 5)

#: What grows with the severity, in words at each function: a factor, sigma, degrees, a share, points or clusters.
PARAMETERS: dict[str, tuple[float, ...]] = {
    "scale": (1.6, 1.7, 1.8, 1.9, 2.0),
    "jitter": (0.01, 0.02, 0.03, 0.04, 0.05),
    "rotate": (6, 12, 18, 24, 30),
    "dropout_global": (0.25, 0.375, 0.5, 0.625, 0.75),
    "dropout_local": (100, 200, 300, 400, 500),
    "add_global": (10, 20, 30, 40, 50),
    "add_local": (100, 200, 300, 400, 500),
    "uniform": (0.01, 0.02, 0.03, 0.04, 0.05),
    "gaussian": (0.01, 0.015, 0.02, 0.025, 0.03),
    "background": (1 / 45, 1 / 40, 1 / 35, 1 / 30, 1 / 20),
    "impulse": (1 / 30, 1 / 25, 1 / 20, 1 / 15, 1 / 10),
    "upsampling": (1 / 5, 1 / 4, 1 / 3, 1 / 2, 1 / 1),
    "rotation": (2.5, 5, 7.5, 10, 15),
    "shear": (0.05, 0.1, 0.15, 0.2, 0.25),
    "distortion": (0.1, 0.2, 0.3, 0.4, 0.5),
    "distortion_rbf": (0.025, 0.05, 0.075, 0.1, 0.125),
    "distortion_rbf_inv": (0.025, 0.05, 0.075, 0.1, 0.125),
    "density": (1, 2, 3, 4, 5),
    "density_inc": (1, 2, 3, 4, 5),
    "cutout": (2, 3, 5, 7, 10),
}

Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def corrupt(coord: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """[M, 3] float32: coord [N, 3] corrupted; M differs from N where points are dropped or added.

    The same (name, severity, seed) gives the same result for the same shape; pass a seed of its own for each shape.
    Raises UserError for an unknown name or severity, and for a shape too small for the points to drop.
    """
    if name not in FUNCTIONS:
        raise UserError(f"there is no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity} of corruption {name!r}: it must be 1, 2, 3, 4 or 5")
    if len(coord) < 64:
        raise UserError(f"a shape of {len(coord)} points cannot be corrupted: it needs at least 64")
    rng = np.random.default_rng([zlib.crc32(name.encode()), severity, seed])
    out = FUNCTIONS[name](np.asarray(coord, np.float64), PARAMETERS[name][severity - 1], rng)
    return out.astype(np.float32)


# --- ModelNet-C -----------------------------------------------------------------------------------------------------


def scale(coord: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """Each axis by its own factor U[1/most, most], back into the unit sphere."""
    return unit_sphere(coord * rng.uniform(1 / most, most, 3))


def jitter(coord: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of ``sigma``."""
    return coord + sigma * rng.standard_normal(coord.shape)


def rotate(coord: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Euler angles about x, y, z, each U[-degrees, degrees]."""
    return Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).apply(coord)


def dropout_global(coord: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A random ``share`` of the points is lost."""
    return coord[rng.permutation(len(coord))[: round(len(coord) * (1 - share))]]


def dropout_local(coord: np.ndarray, total: float, rng: np.random.Generator) -> np.ndarray:
    """1 to 8 clusters of neighbouring points are lost, ``total`` points (of 1024) together."""
    for size in cluster_sizes(coord, total, rng):
        coord = np.delete(coord, around(coord, size, rng), axis=0)
    return coord


def add_global(coord: np.ndarray, count: float, rng: np.random.Generator) -> np.ndarray:
    """``count`` points (per 1024), uniform inside the unit sphere."""
    number = of_1024(coord, count)
    direction = rng.standard_normal((number, 3))
    inside = direction / np.linalg.norm(direction, axis=1, keepdims=True) * np.cbrt(rng.random((number, 1)))
    return np.concatenate([coord, inside])


def add_local(coord: np.ndarray, total: float, rng: np.random.Generator) -> np.ndarray:
    """1 to 8 Gaussian clusters (sigma U[0.075, 0.125]) about points of the shape, ``total`` points (per 1024)."""
    clusters = [coord]
    for size in cluster_sizes(coord, total, rng):
        sigma = rng.uniform(0.075, 0.125)
        clusters.append(coord[rng.integers(len(coord))] + sigma * rng.standard_normal((size, 3)))
    added = np.concatenate(clusters[1:])
    radius = np.linalg.norm(added, axis=1, keepdims=True)
    return np.concatenate([coord, added / np.maximum(radius, 1)])


# --- ModelNet40-C ---------------------------------------------------------------------------------------------------


def uniform(coord: np.ndarray, bound: float, rng: np.random.Generator) -> np.ndarray:
    """Noise U[-bound, bound] on each coordinate."""
    return unit_sphere(coord + rng.uniform(-bound, bound, coord.shape))


def gaussian(coord: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of ``sigma``, clipped to the unit cube."""
    return unit_sphere((coord + sigma * rng.standard_normal(coord.shape)).clip(-1, 1))


def background(coord: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A ``share`` of further points, uniform in the cube around the shape."""
    return unit_sphere(np.concatenate([coord, rng.uniform(-1, 1, (int(len(coord) * share), 3))]))


def impulse(coord: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A ``share`` of the points moves by +-0.1 along each axis."""
    rows = rng.permutation(len(coord))[: int(len(coord) * share)]
    moved = coord.copy()
    moved[rows] += rng.choice([-0.1, 0.1], (len(rows), 3))
    return unit_sphere(moved)


def upsampling(coord: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A ``share`` of further points, U[-0.05, 0.05] beside points of the shape."""
    rows = rng.permutation(len(coord))[: int(len(coord) * share)]
    return unit_sphere(np.concatenate([coord, coord[rows] + rng.uniform(-0.05, 0.05, (len(rows), 3))]))


def rotation(coord: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    """Angles about x, y, z, each U[degrees - 2.5, degrees + 2.5] with a random sign."""
    angles = rng.uniform(degrees - 2.5, degrees + 2.5, 3) * rng.choice([-1, 1], 3)
    return unit_sphere(Rotation.from_euler("xyz", angles, degrees=True).apply(coord))


def shear(coord: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """x and z along y, y along x and z, each by U[amount - 0.05, amount + 0.05] with a random sign."""
    a, b, c, d = rng.uniform(amount - 0.05, amount + 0.05, 4) * rng.choice([-1, 1], 4)
    return unit_sphere(coord @ np.array([[1, a, 0], [b, 1, c], [0, d, 1]]))


def distortion(coord: np.ndarray, bound: float, rng: np.random.Generator) -> np.ndarray:
    """Free-form deformation: 5 x 5 x 5 control points of the bounding box move by U[-bound, bound] of its edges."""
    low, edge = coord.min(0), np.maximum(np.ptp(coord, axis=0), 1e-9)
    at = (coord - low) / edge
    k = np.arange(5)
    basis = comb(4, k) * at[..., None] ** k * (1 - at[..., None]) ** (4 - k)  # [N, 3, 5] Bernstein
    move = np.einsum(
        "ni,nj,nk,ijkc->nc", basis[:, 0], basis[:, 1], basis[:, 2], rng.uniform(-bound, bound, (5, 5, 5, 3))
    )
    return unit_sphere(coord + move * edge)


def distortion_rbf(coord: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """5 x 5 x 5 control points of the cube move by +-amount per axis, multiquadric functions in between."""
    return warped(coord, amount, "multiquadric", rng)


def distortion_rbf_inv(coord: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """As :func:`distortion_rbf` with inverse multiquadric functions."""
    return warped(coord, amount, "inverse_multiquadric", rng)


def warped(coord: np.ndarray, amount: float, kernel: str, rng: np.random.Generator) -> np.ndarray:
    side = np.linspace(-1, 1, 5)
    control = np.stack(np.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)
    moves = rng.choice([-amount, amount], control.shape)
    return unit_sphere(coord + RBFInterpolator(control, moves, kernel=kernel, epsilon=2.0, degree=1)(coord))


def density(coord: np.ndarray, clusters: float, rng: np.random.Generator) -> np.ndarray:
    """In ``clusters`` clusters of 100 points (of 1024) three quarters of the points are lost."""
    size = of_1024(coord, 100)
    for _ in range(int(clusters)):
        rows = around(coord, size, rng)
        coord = np.delete(coord, rng.permutation(rows)[: len(rows) * 3 // 4], axis=0)
    return coord


def density_inc(coord: np.ndarray, clusters: float, rng: np.random.Generator) -> np.ndarray:
    """``clusters`` clusters of 100 points (of 2048) stay whole, the others are thinned to half the points in all."""
    half, dense = len(coord) // 2, []
    for _ in range(int(clusters)):
        rows = around(coord, max(half * 100 // 1024, 1), rng)
        dense.append(coord[rows])
        coord = np.delete(coord, rows, axis=0)
    left = half - sum(map(len, dense))
    return np.concatenate([*dense, coord[rng.permutation(len(coord))[:left]]])


def cutout(coord: np.ndarray, clusters: float, rng: np.random.Generator) -> np.ndarray:
    """``clusters`` clusters of 30 points (of 1024) are lost."""
    size = of_1024(coord, 30)
    for _ in range(int(clusters)):
        coord = np.delete(coord, around(coord, size, rng), axis=0)
    return coord


def of_1024(coord: np.ndarray, count: float) -> int:
    """What ``count`` of 1024 points are of these, at least one."""
    return max(round(count * len(coord) / 1024), 1)


def cluster_sizes(coord: np.ndarray, total: float, rng: np.random.Generator) -> list[int]:
    """``total`` points (of 1024) in 1 to 8 clusters of random sizes; none is empty."""
    number = min(int(rng.integers(1, 9)), of_1024(coord, total))
    cuts = np.sort(rng.permutation(of_1024(coord, total) - 1)[: number - 1] + 1)
    return np.diff([0, *cuts.tolist(), of_1024(coord, total)]).tolist()


def around(coord: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """[size] rows nearest to a random point, itself among them."""
    distance = ((coord - coord[rng.integers(len(coord))]) ** 2).sum(1)
    return np.argsort(distance, kind="stable")[:size]


FUNCTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        *(scale, jitter, rotate, dropout_global, dropout_local, add_global, add_local),
        *(uniform, gaussian, background, impulse, upsampling, rotation, shear),
        *(distortion, distortion_rbf, distortion_rbf_inv, density, density_inc, cutout),
    )
}
