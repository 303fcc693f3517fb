"""Scores from confusion matrices: IoU per class, mIoU, mAcc, allAcc of points; OA and mAcc of shapes; mIoU of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Absent = Literal["exclude", "zero"]


def confusion_matrix(prediction: Tensor, truth: Tensor, classes: int, ignore: int = -1) -> Tensor:
    """[classes, classes] int64 counts of points, rows = truth, columns = prediction.

    Points whose truth is ``ignore`` do not count. Matrices of several scans are simply added.
    Raises ValueError where a label or a prediction is no class.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, truth {tuple(truth.shape)}")
    counted = truth != ignore
    prediction, truth = prediction[counted].long(), truth[counted].long()
    for name, values in (("prediction", prediction), ("truth", truth)):
        if len(values) and not (int(values.min()) >= 0 and int(values.max()) < classes):
            raise ValueError(f"{name} holds {int(values.min())}..{int(values.max())}, classes are 0..{classes - 1}")
    cells = torch.bincount(truth * classes + prediction, minlength=classes * classes)
    return cells.reshape(classes, classes)


def sum_over_processes(confusion: Tensor) -> Tensor:
    """The sum of every process's matrix, on all of them; the matrix itself where there is one process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return confusion
    # NCCL sums on the GPU only, gloo on the host; counts are exact in int64 on both
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    total = confusion.to(device, copy=True)
    dist.all_reduce(total)
    return total.to(confusion.device)


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says, all in 0..1.

    iou     per class, None for a class that is in neither truth nor prediction (0 with ``absent="zero"``)
    recall  per class, None for a class without truth points (0 with ``absent="zero"``)
    miou, macc = means over the classes that have a value;  allacc = share of points that are right
    """

    miou: float
    macc: float
    allacc: float
    iou: list[float | None]
    recall: list[float | None]
    points: int

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def scores(confusion: Tensor, absent: Absent = "exclude") -> Scores:
    """Scores of a [C, C] matrix of counts.

    ``absent="zero"`` is the rule of the official PTv3 code base: a class that never occurs counts as 0 in the
    means. The default leaves it out, so that a score does not depend on how many unused classes a list has.
    """
    counts = confusion.double()
    hit, truth, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    iou = _per_class(hit, truth + predicted - hit, absent)
    recall = _per_class(hit, truth, absent)
    total = float(truth.sum())
    allacc = float(hit.sum()) / total if total else 0.0
    return Scores(_mean(iou), _mean(recall), allacc, iou, recall, int(total))


def group_scores(
    iou: Sequence[float | None], names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, float | None]:
    """ "mIoU GROUP" -> mean IoU of the classes of each group that have one, None where none has (head, common and tail
    of ScanNet200)."""
    value = dict(zip(names, iou, strict=True))
    found: dict[str, float | None] = {}
    for group, members in groups.items():
        known = [value[name] for name in members if value[name] is not None]
        found[f"mIoU {group}"] = _mean(known) if known else None
    return found


def top_k_confusion(probability: Tensor, labels: Tensor, k: int) -> Tensor:
    """[C, C] int64 counts of points with several labels: one is right when any of its labels is among the k most
    probable classes.

    probability [N, C]; labels [N, m] int64, the first counts as the point's own, -1 = none; points without a first
    label do not count. A point that is right counts for the most probable class that is among its labels, one that is
    wrong as its first label taken for the most probable class. So the toolkit of ScanNet++ is described; whether it
    does the same in every tie is not checked.
    """
    classes = probability.shape[1]
    labelled = labels[:, 0] >= 0
    labels = labels[labelled]
    best = probability[labelled].topk(k, 1).indices
    hit = (best[:, :, None] == labels[:, None, :]).any(2)  # [N, k]
    matched = best.gather(1, hit.int().argmax(1, keepdim=True))[:, 0]
    right = hit.any(1)
    return confusion_matrix(torch.where(right, matched, best[:, 0]), torch.where(right, matched, labels[:, 0]), classes)


def classification_scores(confusion: Tensor) -> dict[str, Any]:
    """OA (share of shapes that are right), mean accuracy over the classes that occur, and accuracy per class, all in
    0..1 (None: no shape of the class), of a [C, C] matrix of counts."""
    found = scores(confusion)
    return {"oa": found.allacc, "macc": found.macc, "accuracy": found.recall, "shapes": found.points}


def shape_miou(prediction: Tensor, truth: Tensor, parts: Sequence[int]) -> float:
    """Mean IoU over the ``parts`` of one shape's category, 0..1; a part that is neither there nor predicted counts 1,
    as published for ShapeNetPart. Points whose truth is negative do not count."""
    counted = truth >= 0
    prediction, truth = prediction[counted], truth[counted]
    values = []
    for part in parts:
        either = int(((prediction == part) | (truth == part)).sum())
        both = int(((prediction == part) & (truth == part)).sum())
        values.append(both / either if either else 1.0)
    return sum(values) / len(values)


def part_scores(confusion: Tensor, total: Tensor, number: Tensor) -> tuple[dict[str, Any], list[float | None]]:
    """(scores, mIoU of each category or None without shapes).

    confusion [P, P] counts of points; total [K] sums of :func:`shape_miou` over the shapes of each category, number [K]
    of them. instance_miou is the mean over shapes, class_miou the mean over categories; iou per part is of all points.
    """
    found = scores(confusion)
    by_category = _per_class(total, number, "exclude")
    return {
        "instance_miou": float(total.sum() / number.sum().clamp(min=1)),
        "class_miou": _mean(by_category),
        "allacc": found.allacc,
        "iou": found.iou,
        "shapes": int(number.sum()),
        "points": found.points,
    }, by_category


def _per_class(hit: Tensor, out_of: Tensor, absent: Absent) -> list[float | None]:
    missing = 0.0 if absent == "zero" else None
    return [h / n if n else missing for h, n in zip(hit.tolist(), out_of.tolist(), strict=True)]


def _mean(values: list[float | None]) -> float:
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else 0.0
