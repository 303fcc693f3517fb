import pytest
import torch

from pointadapt.backbones.ptv3 import PTv3, PTv3Config, upcast
from pointadapt.errors import UserError
from pointadapt.point import Point, collate
from scenes import TINY, cloud, tiny

DECODER = dict(dec_depths=(1, 1), dec_channels=(16, 24), dec_num_head=(2, 2), dec_patch_size=(32, 32))
FORMS = {
    "encoder": {},
    "decoder": DECODER,
    "classic": dict(generation="m1", **DECODER),
    "legacy": dict(generation="m1", legacy=True, **DECODER),
    "rope": dict(rope_base=10.0),
    "rpe": dict(enable_rpe=True),
    "post-norm, layer scale, mask token": dict(pre_norm=False, layer_scale=0.1, mask_token=True),
    "strides 3 and 4": dict(stride=(3, 4)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_cloud_is_alone_in_any_batch(form):
    model = tiny(**FORMS[form])
    clouds = [cloud(300, 20), cloud(0), cloud(60, 37, seed=1), cloud(1, 3), cloud(20, 4, seed=2)]
    with torch.no_grad():
        together = model.dense(collate(clouds))
        alone = torch.cat([model.dense(collate([c])) for c in clouds if len(c)])
        backwards = model.dense(collate(clouds[::-1]))[-len(clouds[0]) :]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[: len(clouds[0])], backwards, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_without_points(form):
    model = tiny(**FORMS[form])
    assert model.dense(collate([cloud(0), cloud(0)])).shape == (0, model.dense_channels)


def test_official_mode_leaks_between_clouds_and_clean_mode_does_not():
    first, other = cloud(300, 20), cloud(20, 60, seed=1)
    gap = {}
    for compat in ("official", "clean"):
        model = tiny(compat=compat, window_layout="shrink" if compat == "official" else "flash")
        model.draw = torch.arange
        with torch.no_grad():
            alone = model.dense(collate([first]))
            gap[compat] = (model.dense(collate([first, other]))[: len(first)] - alone).abs().max()
    assert gap["official"] > 1e-3 and gap["clean"] < 1e-5


@pytest.mark.parametrize("form", ["encoder", "classic"])
def test_two_evaluations_are_bitwise_equal(form):
    model, point = tiny(**FORMS[form]), collate([cloud(300, 20), cloud(60, 9, seed=1)])
    with torch.no_grad():
        first = model.dense(point)
        torch.rand(3)
        assert torch.equal(first, model.dense(point))
        assert torch.equal(first, model.dense(collate(point.split())))


def test_a_point_remembers_nothing_of_other_rules():
    point = collate([cloud(300, 32), cloud(60, 12, seed=1)])  # depths 6 and 4; with the legacy rule 5 and 4
    form = dict(generation="m1", order=("hilbert",), enc_patch_size=(16, 16, 16))
    models = [tiny(**form, **rule) for rule in ({"compat": "official"}, {"legacy": True}, {})]
    with torch.no_grad():
        for model in models:
            model.draw = torch.arange
        alone = [model.dense(point.but(cache={})) for model in models]
        for order in ((0, 1, 2), (2, 1, 0)):
            shared = point.but(cache={})
            for which in order:
                assert torch.equal(models[which].dense(shared), alone[which])
    assert (alone[0] - alone[2]).abs().max() > 1e-3


def test_official_evaluation_is_random():
    model, point = tiny(compat="official"), cloud(300, 20)
    with torch.no_grad():
        outputs = [model.dense(point) for _ in range(4)]
    assert any(not torch.equal(outputs[0], o) for o in outputs[1:])


def test_single_cloud_unshuffled_gives_the_official_numbers():
    point = cloud(300, 20)
    official = tiny(compat="official")
    official.draw = torch.arange
    with torch.no_grad():
        assert torch.equal(official.dense(point), tiny().dense(point))


@pytest.mark.parametrize("curve", ["z", "hilbert"])
def test_order_of_the_rows_does_not_matter(curve):
    model, point = tiny(order=(curve,)), cloud(300, 20)
    rows = torch.randperm(len(point))
    shuffled = Point(point.coord[rows], point.feat[rows], point.offset, point.grid_coord[rows])
    with torch.no_grad():
        torch.testing.assert_close(model.dense(shuffled), model.dense(point)[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_parameter(form):
    model = tiny(**FORMS[form]).train()
    point = cloud(300, 20)
    point = point.but(mask=torch.arange(len(point)) % 3 == 0)
    model.dense(point).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_frozen_batch_norm_stands_still_in_training():
    model = tiny(**FORMS["classic"]).requires_grad_(False).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.dense(cloud(300, 20))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training and model.enc[0].blocks[0].training
    model.requires_grad_(True).train().dense(cloud(300, 20))
    assert not all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_upcast_widths_and_order():
    model, point = tiny(), cloud(300, 20)
    with torch.no_grad():
        deepest = model(point)
    assert deepest.feat.shape[1] == model.out_channels == 36
    everything = upcast(deepest)
    assert everything.shape == (len(point), 12 + 24 + 36) and model.dense_channels == 72
    assert torch.equal(everything[:, :12], deepest.parent.parent.feat)
    assert upcast(deepest, 1).shape[1] == 24 + 36
    assert upcast(deepest, 0).shape[1] == 36


def test_voxels_are_made_from_coordinates():
    point = cloud(300, 20)
    made = Point(point.coord + 5, point.feat, point.offset, grid_size=0.1)
    low = point.grid_coord.amin(0)
    with torch.no_grad():
        expected = tiny().dense(point.but(grid_coord=point.grid_coord - low))
        torch.testing.assert_close(tiny().dense(made.but(coord=point.coord + 1e-4)), expected, atol=1e-5, rtol=1e-5)


def test_prompt_driven_norm_needs_its_condition():
    model = tiny(generation="m1", pdnorm_bn=True, pdnorm_ln=True, pdnorm_conditions=("A", "B"), **DECODER)
    point = cloud(100, 9)
    with torch.no_grad():
        a, b = (model.dense(point.but(condition=c)) for c in "AB")
    assert not torch.equal(a, b)
    with pytest.raises(UserError, match="A, B"):
        model.dense(point)


def test_state_of_a_forward_survives_pooling_and_unpooling():
    model, seen = tiny(**DECODER), []
    for stage in [*model.enc, *model.dec]:
        stage.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].extra.get("mine")))
    with torch.no_grad():
        out = model(cloud(100, 9).but(extra={"mine": 7}))
    assert seen == [7] * 5 and out.extra["mine"] == 7


def test_bad_input_is_named():
    point = cloud(50, 9)
    with pytest.raises(ValueError, match="negative"):
        tiny()(point.but(grid_coord=point.grid_coord - 5))
    with pytest.raises(ValueError, match="grid_size"):
        tiny()(point.but(grid_coord=None))
    with pytest.raises(ValueError, match="enc_num_head"):
        PTv3Config(enc_num_head=(1, 2))
    with pytest.raises(ValueError, match="2, 4 or 8"):
        tiny(generation="m1", stride=(3, 2))


def test_counts_of_sonata_base():
    with torch.device("meta"):
        encoder = PTv3(PTv3Config())
        decoder = PTv3(
            PTv3Config(
                dec_depths=(2, 2, 2, 2),
                dec_channels=(64, 96, 192, 384),
                dec_num_head=(4, 6, 12, 24),
                dec_patch_size=(1024,) * 4,
            )
        )
    assert sum(p.numel() for p in encoder.parameters()) == 108_461_328
    assert sum(p.numel() for p in decoder.dec.parameters()) == 16_331_520
    assert encoder.dense_channels == 1232


def test_training_shuffles_curves_and_follows_the_seed():
    model, point = tiny(drop_path=0.0).train(), cloud(300, 20)
    outputs = []
    for seed in (1, 1, 2, 3):
        torch.manual_seed(seed)
        outputs.append(model.dense(point))
    assert torch.equal(outputs[0], outputs[1])
    assert any(not torch.equal(outputs[0], o) for o in outputs[2:])
    assert len(TINY.order) == 4
