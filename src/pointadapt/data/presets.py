"""Published sequences of transforms: training, evaluation, test-time views, and the official packages' defaults.

Order and parameters are those of Sonata, PointTPA and PTv3 (Pointcept configs), of airborne surveys our own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pointadapt.data.transforms import (
    CenterShift,
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    Collect,
    Compose,
    ElasticDistortion,
    Flip,
    GridSample,
    KeepOriginal,
    NormalizeColor,
    NormalizeCoord,
    RandomDropout,
    RandomFlip,
    RandomJitter,
    RandomRotate,
    RandomScale,
    Rotate,
    Scale,
    SphereCrop,
    Transform,
)

#: A training crop starts from this many raw points per voxel it may end with. No effect on scans of the published
#: benchmarks at their published crop; it spares large tiles the work on points that the crop would throw away.
POINTS_PER_VOXEL = 8


def indoor_train(grid_size: float = 0.02, points: int = 102_400, rate: float | None = None) -> Compose:
    """Training transforms of Sonata, GEM and PointTPA on ScanNet; S3DIS: ``rate=0.6, points=204_800``."""
    origin = (0.0, 0.0, 0.0)
    crops = [SphereCrop(rate=rate)] if rate else []
    return Compose(
        [
            SphereCrop(POINTS_PER_VOXEL * points),
            CenterShift(),
            RandomDropout(),
            RandomRotate(np.pi, "z", origin),
            RandomRotate(np.pi / 64, "x"),
            RandomRotate(np.pi / 64, "y"),
            RandomScale(),
            RandomFlip(),
            RandomJitter(),
            ElasticDistortion(),
            ChromaticAutoContrast(),
            ChromaticTranslation(),
            ChromaticJitter(),
            GridSample(grid_size),
            *crops,
            SphereCrop(points),
            CenterShift(apply_z=False),
            NormalizeColor(),
            Collect(),
        ]
    )


def outdoor_train(grid_size: float = 0.02, points: int = 102_400) -> Compose:
    """Training transforms for lidar: those of PTv3 on nuScenes, on random columns from the ground up."""
    return Compose(
        [
            SphereCrop(POINTS_PER_VOXEL * points, column=True),
            CenterShift(),
            RandomRotate(np.pi, "z", (0.0, 0.0, 0.0)),
            RandomScale(),
            RandomFlip(),
            RandomJitter(),
            GridSample(grid_size),
            SphereCrop(points, column=True),
            CenterShift(),
            NormalizeColor(),
            Collect(),
        ]
    )


def aerial_train(grid_size: float = 0.02, points: int = 102_400) -> Compose:
    """Training transforms for airborne surveys: turns and flips of random columns, nothing else.

    Their classes are defined by metres above the ground (low vegetation ends at 0.5 m), and a survey is precise to
    centimetres: scaling and jitter of a quarter voxel would wipe out just that.
    """
    return Compose(
        [
            SphereCrop(POINTS_PER_VOXEL * points, column=True),
            CenterShift(),
            RandomRotate(np.pi, "z", (0.0, 0.0, 0.0), p=1.0),
            RandomFlip(),
            GridSample(grid_size),
            SphereCrop(points, column=True),
            CenterShift(),
            NormalizeColor(),
            Collect(),
        ]
    )


def s3dis_train(grid_size: float = 0.02, points: int = 204_800) -> Compose:
    """:func:`indoor_train` on the nearest 60 % of a room's voxels: the published recipe for whole rooms of S3DIS."""
    return indoor_train(grid_size, points, rate=0.6)


TRAIN_TRANSFORMS: dict[str, Callable[..., Compose]] = {
    "indoor": indoor_train,
    "s3dis": s3dis_train,
    "outdoor": outdoor_train,
    "aerial": aerial_train,
}


def eval_transform(grid_size: float = 0.02) -> Compose:
    """Evaluation: one fixed point per voxel, ``inverse`` and ``origin_segment`` for scores on all points."""
    return Compose([CenterShift(), KeepOriginal(), GridSample(grid_size, "fixed"), *finish()])


def finish() -> list[Transform]:
    """What follows grid sampling in evaluation."""
    return [CenterShift(apply_z=False), NormalizeColor(), Collect()]


def tta_views() -> list[Transform]:
    """The 13 published test-time views of a centred scan: 4 turns x scales 1, 0.95, 1.05, and a double flip.

    The first leaves the scan as it is. Then grid sampling (or :func:`fragments`), :func:`finish` and a vote.
    """
    turns = [i * np.pi / 2 for i in range(4)]
    return [Compose([Rotate(turn), Scale(scale)]) for scale in (1.0, 0.95, 1.05) for turn in turns] + [Flip()]


def sonata_default(grid_size: float = 0.02) -> Compose:
    """The default transform of the official Sonata and Concerto packages; pass a RandomState for their draw."""
    return Compose([CenterShift(), GridSample(grid_size), NormalizeColor(), Collect()])


def utonia_default(scale: float = 1.0, apply_z_positive: bool = True, normalize_coord: bool = False) -> Compose:
    """The default transform of the official Utonia package: objects ``normalize_coord``, outdoors no z shift."""
    steps: list[Transform] = [NormalizeCoord()] if normalize_coord else []
    steps += [Scale(scale)] if scale != 1 else []
    steps += [CenterShift()] if apply_z_positive else []
    return Compose([*steps, GridSample(0.01), NormalizeColor(), Collect()])
