"""ST-Adapter: the published layer on groups of points; the contract suite holds it against clips as well."""

import pytest
import torch

from pointadapt.backbones.point_vit import PointViT, PointViTConfig
from pointadapt.errors import UserError
from pointadapt.methods import adapt
from pointadapt.methods.st_adapter import STAdapter, STAdapterConfig
from pointadapt.ops.frames import take_clouds, tracks
from pointadapt.tasks.video import VideoClassification
from small_videos import FRAMES, adapters, logits, stirred, task, video


@pytest.mark.parametrize(
    ("options", "blocks", "rank"),
    [({}, 12, 192), ({"rank": 64}, 12, 64), ({"target_modules": ["mix", "ffn"]}, 24, 192), ({"kernel": 5}, 12, 192)],
    ids=str,
)
def test_counts(options, blocks, rank):
    with torch.device("meta"):
        model = adapt(VideoClassification(PointViT(PointViTConfig()), 20), STAdapterConfig(**options))
    found = adapters(model, STAdapter)
    each = 2 * 384 * rank + rank + 384 + (options.get("kernel", 3) + 1) * rank
    assert len(found) == blocks and sum(p.numel() for a in found for p in a.parameters()) == blocks * each
    assert blocks != 12 or options or blocks * each == 1_785_600


def test_it_starts_at_nothing_and_only_its_convolution_learns_at_first():
    model, point = adapt(task(), STAdapterConfig(rank=8)).eval(), video()
    assert torch.equal(logits(model, point), logits(task(), point))
    model.get_base_model().loss(model(point), torch.tensor([1, 2])).backward()
    for adapter in adapters(model, STAdapter):
        assert adapter.temporal.weight.grad.abs().max() > 0 and adapter.up.bias.grad.abs().max() > 0
        assert adapter.down.weight.grad.abs().max() == 0 == adapter.up.weight.grad.abs().max()


def test_the_layer_is_linear_and_follows_the_nearest_anchor():
    """z + W_u (b + sum of w_o * (W_d z)[t + o]), by hand on one token."""
    model, point = stirred(adapt(task(), STAdapterConfig(rank=8)).eval()), video(1)
    backbone = model.get_base_model().backbone
    (adapter, _) = adapters(model, STAdapter)
    with torch.no_grad():
        tokens = backbone.enter(point)
        frozen, found = backbone.blocks[0].mix.base_layer(tokens), backbone.blocks[0].mix(tokens)
        hidden = adapter.down(tokens.part("patch") + frozen.part("patch")).flatten(0, 1)
        row, slot = 3, 6
        at = [int(index.view(FRAMES, -1)[row, slot]) for index in tracks(tokens, 3)]
        mixed = adapter.temporal.bias + sum(adapter.temporal.weight[o] * hidden[at[o]] for o in range(3))
        expected = frozen.part("patch")[row, slot] + adapter.up(mixed)
    torch.testing.assert_close(found.part("patch")[row, slot], expected)
    assert torch.equal(found.part("cls"), frozen.part("cls"))


def test_it_sees_the_order_of_frames():
    model, clip = stirred(adapt(task(), STAdapterConfig(rank=8)).eval()), video(1)
    backwards = take_clouds(clip, torch.arange(FRAMES - 1, -1, -1))
    assert (logits(model, backwards) - logits(model, clip)).abs().max() > 1e-4


def test_refusals():
    from pointadapt.backbones.ptv3 import PTv3, PTv3Config
    from pointadapt.tasks.segmentation import Segmentation

    sizes = dict(enc_depths=(1, 1), enc_channels=(16, 32), enc_num_head=(1, 2), enc_patch_size=(8, 8))
    with pytest.raises(UserError, match="method 'st-adapter' cannot work on PTv3: it needs a tokenizer"):
        adapt(Segmentation(PTv3(PTv3Config(stride=(2,), **sizes)), 3), STAdapterConfig())
    for options in ({"kernel": 2}, {"rank": 0}, {"follow": "grid"}):
        with pytest.raises(UserError, match=next(iter(options))):
            STAdapterConfig(**options)
