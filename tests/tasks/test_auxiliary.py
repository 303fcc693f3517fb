"""Losses of methods' own under DistributedDataParallel, which looks for used parameters behind the output alone."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from contracts import BACKBONES, batch, tiny
from pointadapt.backbones.point_vit import PointViT
from pointadapt.methods import adapt
from pointadapt.methods.pointlora import PointLoRAConfig
from pointadapt.tasks.action_segmentation import ActionSegmentation
from pointadapt.tasks.parts import PartSegmentation
from pointadapt.tasks.video_segmentation import VideoSegmentation

TASKS = {
    "classification": lambda: tiny("vit"),
    "parts": lambda: PartSegmentation(PointViT(BACKBONES["vit"]), 4, None),
    "video": lambda: tiny("video"),
    "action": lambda: ActionSegmentation(PointViT(BACKBONES["vit"]), 4),
    "points of a video": lambda: VideoSegmentation(PointViT(BACKBONES["vit"]), 4),
}


@pytest.fixture
def group(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", TASKS)
def test_a_scorer_with_a_loss_of_its_own_learns_in_every_process(name, group):
    torch.manual_seed(0)
    model = adapt(TASKS[name](), PointLoRAConfig(), "site").train()
    task, point = model.get_base_model(), batch(tiny("video"))
    found = []
    for network in (model, DistributedDataParallel(model, find_unused_parameters=True)):
        torch.manual_seed(1)
        logits = network(point)
        assert task.auxiliary is not None
        task.loss(logits, torch.zeros(logits.shape[:-1], dtype=torch.long)).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    alone, together = found
    scorer = [name for name in alone if ".scorer." in name]
    assert scorer and all(alone[name].any() for name in scorer)
    assert together.keys() == alone.keys()
    for name in alone:
        torch.testing.assert_close(together[name], alone[name], atol=1e-5, rtol=1e-4)
