"""Scores over the seven corruptions of ModelNet-C and ScanObjectNN-C against DGCNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pointadapt.data.corruptions import MODELNET_C
from pointadapt.errors import UserError

#: Accuracy of DGCNN on clean shapes and on each corruption, the mean of five severities.
DGCNN: dict[str, dict[str, float]] = {
    suite: dict(zip(("clean", *MODELNET_C), values, strict=True))
    for suite, values in {
        "ModelNet-C": (0.926, 0.906, 0.684, 0.785, 0.752, 0.793, 0.705, 0.725),
        "ScanObjectNN-C": (0.858, 0.578, 0.456, 0.733, 0.622, 0.697, 0.540, 0.773),
        "Objaverse-C": (0.397, 0.370, 0.217, 0.332, 0.273, 0.261, 0.213, 0.244),
    }.items()
}


def corruption_scores(
    clean: float, accuracy: Mapping[str, float | Sequence[float]], suite: str = "ModelNet-C"
) -> dict[str, float]:
    """{"mCE", "RmCE", "mOA"}: mean corruption error, its relative form, mean accuracy. DGCNN has mCE = RmCE = 1.

    clean     accuracy on clean shapes, a share (0-1)
    accuracy  of each of the seven corruptions: the mean, or one share per severity

    CE_c = (1 - OA_c) / (1 - OA_c of DGCNN), RCE_c = (OA_clean - OA_c) / (the same of DGCNN); nothing is rounded before
    the means. Raises UserError for a missing corruption, an unknown suite, or accuracies in per cent.
    """
    if suite not in DGCNN:
        raise UserError(f"there is no reference for {suite!r}; there are {', '.join(DGCNN)}")
    missing = [name for name in MODELNET_C if name not in accuracy]
    if missing:
        raise UserError(f"the scores of {suite} need all seven corruptions; {missing[0]} is missing")
    mean = {name: float(np.mean(accuracy[name])) for name in MODELNET_C}
    if not all(0 <= value <= 1 for value in (clean, *mean.values())):
        raise UserError("accuracies must be shares between 0 and 1, not per cent")
    reference = DGCNN[suite]
    error = [(1 - mean[name]) / (1 - reference[name]) for name in MODELNET_C]
    relative = [(clean - mean[name]) / (reference["clean"] - reference[name]) for name in MODELNET_C]
    return {"mCE": float(np.mean(error)), "RmCE": float(np.mean(relative)), "mOA": float(np.mean([*mean.values()]))}
