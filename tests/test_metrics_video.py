"""Scores of point videos: small examples worked by hand."""

import pytest
import torch

from pointadapt.metrics_video import ClipVotes, SegmentScores, edit_score, segment_hits, segments, video_miou


def score(*pairs, **options):
    total = SegmentScores(**options)
    for prediction, truth in pairs:
        total.add(prediction, truth)
    return total.scores()


def test_a_video_is_what_the_sum_of_its_clips_softmax_says():
    logits = torch.tensor([[4.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0], [0, 0, 5.0]])
    names, labels = ["a", "a", "a", "b"], [0, 0, 0, 1]
    votes = ClipVotes(3)
    votes.add(logits, names, labels)
    by_hand = logits.double().softmax(1)
    assert int(by_hand[:3].sum(0).argmax()) == votes.predictions()["a"] == 0  # two of three clips say 1
    found = votes.scores()
    assert found["video_accuracy"] == 0.5 and found["clip_accuracy"] == 0.25
    assert (found["videos"], found["clips"], found["accuracy"]) == (2, 4, [1.0, 0.0, None])
    turned = ClipVotes(3)
    order = [3, 1, 0, 2]
    turned.add(logits[order[:2]], [names[i] for i in order[:2]], [labels[i] for i in order[:2]])
    turned.add(logits[order[2:]], [names[i] for i in order[2:]], [labels[i] for i in order[2:]])
    assert turned.scores() == found


def test_a_video_without_clips_is_wrong_and_named():
    votes = ClipVotes(2)
    votes.add(torch.tensor([[3.0, 0]]), ["a"], [0])
    found = votes.scores({"a": 0, "short": 0, "shorter": 1})
    assert found["missing"] == ["short", "shorter"]
    assert found["video_accuracy"] == pytest.approx(1 / 3)
    assert found["accuracy"] == [0.5, 0.0] and found["macc"] == 0.25


def test_clips_of_a_video_agree_on_its_label():
    votes = ClipVotes(2)
    with pytest.raises(ValueError, match="'a' has clips of the labels 0 and 1"):
        votes.add(torch.zeros(2, 2), ["a", "a"], [0, 1])


@pytest.mark.parametrize("labels", [[0] * 149 + [1], [3], [2, 2, 2], [0, 1, 0, 1, 1, 2], [5] * 10 + [0]])
def test_a_perfect_prediction_has_full_scores(labels):
    found = score((labels, labels))
    assert [found[k] for k in ("frame_accuracy", "edit", "f1@10", "f1@25", "f1@50")] == [1] * 5


def test_the_published_evaluation_counts_a_correct_last_frame_as_wrong():
    labels = [0] * 149 + [1]
    assert segment_hits(labels, labels, 0.5, compat=True) == (1, 1, 1)
    assert segment_hits(labels, labels, 0.5) == (2, 0, 0)
    assert segments([0, 0, 1, 1], compat=True) == [(0, 0, 2), (1, 2, 3)]
    # the last segment's IoU is biased: 9 of 19 frames instead of 10 of 20
    truth, prediction = [0] * 10 + [1] * 20, [0] * 20 + [1] * 10
    assert segment_hits(prediction, truth, 0.5) == (2, 0, 0)
    assert segment_hits(prediction, truth, 0.5, compat=True) == (1, 1, 1)


def test_a_late_boundary():
    found = score(([0] * 120 + [1] * 30, [0] * 100 + [1] * 50))
    assert found["frame_accuracy"] == pytest.approx(130 / 150)
    assert found["edit"] == 1 and found["f1@50"] == 1
    assert segment_hits([0] * 120 + [1] * 30, [0] * 100 + [1] * 50, 0.61)[0] == 1  # IoUs 0.833 and 0.6


def test_edit_score_counts_segments():
    assert edit_score([0, 0, 1, 0], [0] * 4) == pytest.approx(1 / 3)
    assert edit_score([0, 1], [1, 0]) == 0
    assert edit_score([7, 7], [7, 7, 7], background=(7,)) == 1  # nothing is left on either side


def test_background_makes_no_segments():
    prediction, truth = [7, 0, 7, 1], [0, 0, 1, 7]
    assert edit_score(prediction, truth) < 1 == edit_score(prediction, truth, background=(7,))
    assert segment_hits([7, 0, 0, 7], [7, 0, 0, 1], 0.5) == (2, 1, 1)
    assert segment_hits([7, 0, 0, 7], [7, 0, 0, 1], 0.5, background=(7,)) == (1, 0, 1)
    found = score((prediction, truth), background=(7,))
    assert found["edit"] == 1 and found["frame_accuracy"] == 0.25  # frames of the background count


def test_f1_is_pooled_over_videos():
    good, bad = ([0, 1, 2, 3], [0, 1, 2, 3]), ([1, 1, 1, 1], [0, 0, 0, 0])
    pooled = score(good, bad)["f1@50"]
    mean = (score(good)["f1@50"] + score(bad)["f1@50"]) / 2
    assert pooled == pytest.approx(8 / 10) and mean == 0.5
    assert score(good, bad)["edit"] == 0.5 and score(good, bad)["videos"] == 2


@pytest.mark.parametrize("compat", [False, True])
def test_processes_share_the_videos_out(compat):
    pairs = [([0, 1, 1], [0, 0, 1]), ([2, 2], [2, 1]), ([0, 0, 1], [0, 0, 1])]
    first, second = SegmentScores(compat=compat), SegmentScores(compat=compat)
    first.add(*pairs[0])
    for pair in pairs[1:]:
        second.add(*pair)
    first.merge(second)
    assert first.scores() == score(*pairs, compat=compat)


def test_a_segment_is_taken_once_and_ignored_frames_are_left_out():
    assert segment_hits([0, 1, 0], [0, 0, 0], 0.1) == (1, 2, 0)
    found = score(([0, 5, 5, 1], [0, -1, -1, 1]))
    assert found["frames"] == 2 and found["frame_accuracy"] == found["f1@50"] == 1
    with pytest.raises(ValueError, match="3 frames, truth 2"):
        score(([0, 1, 1], [0, 1]))


def test_an_absent_class_counts_as_the_benchmark_says():
    confusion = torch.tensor([[8, 2, 0, 0], [0, 10, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert video_miou(confusion) == pytest.approx((0.8 + 10 / 12) / 2)
    assert video_miou(confusion, "synthia4d") == pytest.approx((0.8 + 10 / 12) / 4)
    confusion[0, 2] = 5  # predicted, but nowhere true
    assert video_miou(confusion, "hoi4d") == pytest.approx((8 / 15 + 10 / 12) / 2)
    assert video_miou(confusion) == pytest.approx((8 / 15 + 10 / 12 + 0) / 3)
    assert video_miou(confusion, "hoi4d", skip=(0,)) == pytest.approx(10 / 12)
