import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pointadapt.backbones.weights import load_backbone
from pointadapt.errors import UserError
from pointadapt.tasks.segmentation import Segmentation, lovasz_softmax, segmentation_loss
from scenes import cloud, tiny


def lovasz_by_definition(probability, segment):
    """Class by class, as in the paper's Algorithm 1."""
    losses = []
    for k in segment.unique():
        truth = (segment == k).double()
        errors, order = (truth - probability[:, k]).abs().sort(descending=True)
        truth = truth[order]
        intersection, union = truth.sum() - truth.cumsum(0), truth.sum() + (1 - truth).cumsum(0)
        jaccard = 1 - intersection / union
        jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
        losses.append(errors @ jaccard)
    return torch.stack(losses).mean()


def test_lovasz():
    torch.manual_seed(0)
    probability = torch.randn(50, 5, dtype=torch.float64).softmax(1).requires_grad_()
    segment = torch.randint(0, 4, (50,))  # class 4 is absent
    torch.testing.assert_close(lovasz_softmax(probability, segment), lovasz_by_definition(probability, segment))
    perfect = torch.eye(5, dtype=torch.float64)[segment]
    assert lovasz_softmax(perfect, segment).abs() < 1e-12
    assert torch.autograd.gradcheck(lambda p: lovasz_softmax(p, segment), probability)


def test_ignored_points_do_not_count():
    logits, segment = torch.randn(20, 3), torch.randint(0, 3, (20,))
    segment[15:] = -1
    torch.testing.assert_close(segmentation_loss(logits, segment), segmentation_loss(logits[:15], segment[:15]))


def test_nothing_labelled_is_finite():
    logits = torch.randn(5, 3, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((5,), -1))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_logits_per_point_alone_and_in_a_batch():
    model = Segmentation(tiny(), ["a", "b", "c"]).eval()
    from pointadapt.point import collate

    clouds = [cloud(100, 9), cloud(30, 5, seed=1)]
    with torch.no_grad():
        together = model(collate(clouds))
        torch.testing.assert_close(together, torch.cat([model(c) for c in clouds]), atol=1e-5, rtol=1e-5)
    assert together.shape[1] == 3


def test_a_head_knows_its_backbone():
    model = Segmentation(load_backbone("nano", weights=None), 3)
    other = Segmentation(load_backbone("nano", weights=None), 3)
    with pytest.raises(UserError, match="other backbone weights"):
        other.head.load_state_dict(model.head.state_dict())
    same = Segmentation(model.backbone, 3)
    same.head.load_state_dict(model.head.state_dict())
    with pytest.raises(UserError, match="3 classes .* 4"):
        Segmentation(model.backbone, 4).head.load_state_dict(model.head.state_dict())


def test_too_few_classes():
    with pytest.raises(UserError, match="at least two"):
        Segmentation(tiny(), ["ground"])
    with pytest.raises(UserError, match="^backbone 'nano-mae .* of groups of points.*nano, sonata, .* for scenes"):
        Segmentation(load_backbone("nano-mae", weights=None), 3)


def test_features_of_another_width():
    model = Segmentation(tiny(), 3)
    point = cloud(20)
    with pytest.raises(UserError, match=r"Point.feat has 4 channels, this backbone takes \d"):
        model(point.but(feat=point.feat[:, :4]))


def test_peft_knows_our_methods_in_a_fresh_process(tmp_path):
    from pointadapt.methods import adapt
    from pointadapt.methods.gem import GEMConfig

    adapt(Segmentation(load_backbone("nano"), 3), GEMConfig(rank=4)).save_pretrained(tmp_path)
    code = f"""
import peft, pointadapt as pa
model = pa.Segmentation(pa.load_backbone("nano"), 3)
print(peft.PeftModel.from_pretrained(model, {str(tmp_path)!r}).active_adapter)
"""
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split() == ["default"], done.stderr[-2000:]
