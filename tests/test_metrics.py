"""Scores against counts done by hand and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as oracle
from sklearn.metrics import jaccard_score

from pointadapt.metrics import confusion_matrix, scores, sum_over_processes


def test_by_hand():
    truth = torch.tensor([0, 0, 0, 1, 1, -1])
    found = torch.tensor([0, 0, 1, 1, 0, 1])
    counts = confusion_matrix(found, truth, 2)
    assert counts.tolist() == [[2, 1], [1, 1]]
    result = scores(counts)
    assert result.iou == pytest.approx([2 / 4, 1 / 3])
    assert result.miou == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert result.macc == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result.allacc == pytest.approx(3 / 5)
    assert result.points == 5


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, found = rng.integers(0, 7, 500), rng.integers(0, 7, 500)
    counts = confusion_matrix(torch.from_numpy(found), torch.from_numpy(truth), 7)
    assert (counts.numpy() == oracle(truth, found, labels=range(7))).all()
    assert scores(counts).iou == pytest.approx(list(jaccard_score(truth, found, labels=range(7), average=None)))


def test_absent_class():
    """Class 2 never occurs; class 1 occurs in the prediction alone, which is a mistake and counts."""
    counts = confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 3)
    default, official = scores(counts), scores(counts, absent="zero")
    assert default.iou == pytest.approx([2 / 3, 0, None])
    assert default.miou == pytest.approx((2 / 3 + 0) / 2)
    assert default.recall == pytest.approx([2 / 3, None, None]) and default.macc == pytest.approx(2 / 3)
    assert official.miou == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert official.macc == pytest.approx(2 / 9)


def test_parts_add_up():
    torch.manual_seed(0)
    truth, found = torch.randint(-1, 5, (1000,)), torch.randint(0, 5, (1000,))
    parts = sum(confusion_matrix(f, t, 5) for f, t in zip(found.split(300), truth.split(300), strict=True))
    assert torch.equal(parts, confusion_matrix(found, truth, 5))
    assert torch.equal(sum_over_processes(parts), parts)  # one process: nothing to sum


def test_nothing_labelled():
    result = scores(confusion_matrix(torch.zeros(4, dtype=torch.long), torch.full((4,), -1), 3))
    assert (result.miou, result.allacc, result.points) == (0.0, 0.0, 0)


def test_labels_outside_are_refused():
    with pytest.raises(ValueError, match="truth holds 0..3"):
        confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match="prediction"):
        confusion_matrix(torch.tensor([5]), torch.tensor([0]), 3)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([0]), 3)
