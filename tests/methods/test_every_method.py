"""What holds for methods side by side: published counts, controls by name, refusals by reason, a trained decoder."""

from pathlib import Path

import pytest
import torch

from contracts import BACKBONES, KIND, Case, batch, logits, tiny, train
from methods.objects import trained
from pointadapt.analysis.matrix import BACKBONES as OFFICIAL
from pointadapt.analysis.matrix import matrix
from pointadapt.backbones.ptv3 import PTv3
from pointadapt.backbones.weights import save_backbone
from pointadapt.compare.arms import Arm, choose_arms
from pointadapt.domains.domain import open_domain
from pointadapt.errors import UserError
from pointadapt.methods import METHODS, adapt, load_adapted
from pointadapt.run import method_config
from pointadapt.tasks.segmentation import Segmentation
from tiny_runs import tiny_run

HEAD = 24_660
DECODER = 16_331_520

#: method -> trained parameters without head on (Sonata-base, sparse U-Net, Point-MAE); None: it cannot work there
COUNTS = {
    "linear": (0, 0, 768),
    "decoder": (None, 13_222_656, None),
    "full": (108_461_328, 39_167_904, 21_825_792),
    "bitfit": (102_592, 5_120, 40_448),
    "adapter": (938_448, 302_784, 605_184),
    "houlsby": (1_876_896, 302_784, 1_209_600),
    "adaptformer": (924_144, 298_176, 595_968),
    "ssf": (157_344, 9_216, 103_680),
    "lora": (228_864, None, 148_224),
    "vera": (27_600, None, 17_664),
    "randlora": (682_416, None, 447_744),
    "convlora": (None, 1_032_192, None),
    "prefix": (143_040, None, 92_928),
    "vpt": (71_520, None, 92_928),
    "idpt": (2_363_392, None, 1_330_944),
    "dapt": (1_117_272, None, 721_932),
    "pointgst": (1_030_128, None, 355_296),
    "pointlora": (585_088, None, 505_217),
    "pointtpa": (1_152_904, None, None),
    "gem": (1_815_152, 785_792, None),
}
#: PointTPA's table 1, in million with the head for 20 classes; the arm that comes to it. Its LoRA (0.89) has no
#: whole rank; its IDPT (2.61) fits a head for 200 classes, see test_idpt.py.
PUBLISHED = {
    "linear": 0.02,
    "houlsby": 1.90,
    "prefix[n=4]": 0.08,
    "bitfit[target_modules=blocks.*]": 0.12,
    "lora[r=30]": 0.88,
    "randlora": 0.71,
    'vera[r=512,target_modules=["qkv","proj"]]': 0.08,
    "dapt": 1.14,
    "pointgst": 1.05,
    "pointtpa": 1.18,
    "full": 108.49,
}
#: The controls that the papers left out; trained parameters on Sonata-base with the head.
CONTROLS = {
    "adapter": 963_108,
    "pointtpa[dynamic=none]": 963_108,
    "pointtpa[groups=[1]]": 1_177_564,
    "pointtpa[gate=uniform]": 1_177_564 - 116_600,
    "pointtpa[gate=random]": 1_177_564 - 116_600,
    "pointtpa[grouping=random]": 1_177_564,
    "gem[share=none,up_bias=false]": 2_036_864 + HEAD,
    "gem[share=kv]": 1_815_152 + HEAD,
    "gem[share=qk]": 1_815_152 + HEAD,
    "gem[use_ca=false]": 1_121_280 + HEAD,
    "gem[use_sa=false]": 693_872 + HEAD,
    "gem[num_latents=1]": 1_815_152 - 3 * 32 + HEAD,
}


def official(name: str, config):
    with torch.device("meta"):
        return adapt(OFFICIAL[name](), config)


def config_of(arm: str):
    found = Arm.parse(arm)
    return method_config(found.method, found.options)


@pytest.mark.parametrize("method", COUNTS)
def test_counts(method):
    heads = (HEAD, 1_940, 365_839 if method in ("idpt", "dapt") else 267_535)
    for name, head, count in zip(("Sonata-base", "Sparse U-Net", "Point-MAE"), heads, COUNTS[method], strict=True):
        if count is None:
            with pytest.raises(UserError):
                official(name, METHODS[method]())
        else:
            assert trained(official(name, METHODS[method]())) == count + head, name


@pytest.mark.parametrize("method", [name for name, (count, *_) in COUNTS.items() if count is not None])
def test_counts_with_a_new_decoder(method):
    found = trained(official("Sonata-base with new decoder", METHODS[method]()))
    assert found == COUNTS[method][0] + DECODER + 64 * 20 + 20


@pytest.mark.parametrize(("arm", "million"), PUBLISHED.items())
def test_published_counts(arm, million):
    assert round(trained(official("Sonata-base", config_of(arm))) / 1e6, 2) == million


def test_bitfit_of_the_blocks_alone():
    """What its published count is made of: 14 biases as wide as a block, and no other of the encoder."""
    assert trained(official("Sonata-base", config_of("bitfit[target_modules=blocks.*]"))) == 14 * 7152 + HEAD == 124_788


def test_errors_name_methods_as_the_command_line_does():
    assert {getattr(config, "method", name) for name, config in METHODS.items()} <= METHODS.keys()


@pytest.mark.parametrize(("arm", "count"), CONTROLS.items())
def test_controls_by_name(arm, count):
    assert trained(official("Sonata-base", config_of(arm))) == count
    torch.manual_seed(1)
    model = adapt(tiny(), config_of(arm)).eval()
    point = batch()
    assert torch.equal(logits(model, point), logits(tiny(), point))
    train(model, 2)
    assert not torch.equal(logits(model.eval(), point), logits(tiny(), point))


@pytest.mark.parametrize("backbone", ["m2", "m1", "vit", "unet"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_or_says_why_not(method, backbone, tmp_path):
    config = METHODS[method]
    assert config.works_on and set(config.works_on) <= {*KIND.values()}
    network = tiny(backbone).backbone
    if KIND[backbone] in config.works_on and (method != "decoder" or len(network.dec)):
        Case(method, backbone, tmp_path).adapted()
        return
    assert config.needs
    with pytest.raises(UserError) as error:
        adapt(tiny(backbone), config())
    told = f"method {config.method!r} cannot work on {type(network).__name__}: it needs {config.needs}"
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("method", "target", "backbone", "reason"),
    [
        ("gem", "qkv", "m2", "Linear is no branch.*can be block, cpe, mix, ffn, attn, mlp$"),
        ("adapter", "qkv", "m2", "Linear is no branch.*can be block, cpe, mix, ffn, attn, mlp$"),
        ("pointtpa", "qkv", "m2", "Linear is no branch.*can be cpe, mix, ffn, attn, mlp$"),
        ("pointtpa", "block", "m2", "Block chooses the curve"),
        ("pointgst", "block", "m2", "Block chooses the curve"),
        ("prefix", "ffn", "m2", "FFN is no attention.*can be attn$"),
        ("prefix", "block", "vit", "Block is no attention.*can be attn$"),
        ("vpt", "ffn", "m2", "FFN is no attention.*can be attn$"),
        ("vpt", r"enc\.0\.blocks\.0", "m2", "Block is no attention.*can be attn$"),
        ("vpt", "mix", "vit", "Branch is no block.*can be block, attn$"),
        ("idpt", "mix", "m2", "Mix is no attention.*can be attn$"),
        ("idpt", "mix", "vit", "Branch is no block.*can be block$"),
        ("convlora", "mix", "unet", "Mix is no convolution.*can be conv1, conv2$"),
        ("linear", "ffn", "m2", "makes no adapters: leave target_modules=.* out"),
        ("full", "ffn", "m2", "makes no adapters: leave target_modules=.* out"),
        ("pointlora", "block", "m2", "adds nothing at target_modules=.*of PTv3"),
        ("dapt", "attn", "vit", "adds nothing at target_modules=.*of PointViT"),
        ("lora", "ffn", "m2", "FFN is not supported; the backbone's Linear slots are: qkv, proj, fc1, fc2$"),
        ("lora", "cpe", "m2", "CPE is not supported"),
        ("vera", "ffn", "m2", "No layers types compatible.*qkv, proj, fc1, fc2$"),
    ],
)
def test_a_slot_that_a_method_cannot_use_is_refused_with_what_it_can(method, target, backbone, reason):
    model = tiny(backbone)
    names = list(model.state_dict())
    with pytest.raises(UserError, match=reason) as error:
        adapt(model, METHODS[method](target_modules=[target]))
    told = str(error.value)
    assert f"method {method!r}" in told and repr(target) in told and "\n" not in told and len(told) < 300
    assert list(model.state_dict()) == names


def test_compare_leaves_out_with_a_reason(tmp_path):
    file = tmp_path / "unet.safetensors"
    save_backbone(tiny("unet").backbone, file)
    domain = open_domain(tiny_run(tmp_path, backbone=str(file)))
    arms, refused = choose_arms(["all"], domain)
    names = {arm.method for arm in arms}
    assert {"gem", "convlora", "adapter", "bitfit", "ssf", "full", "linear", "decoder"} <= names
    assert names | refused.keys() == METHODS.keys() and all(refused.values())
    with pytest.raises(UserError, match="use method convlora"):
        choose_arms(["lora"], domain)


@pytest.mark.parametrize("method", [name for name, config in METHODS.items() if "points" in config.works_on])
def test_a_new_decoder_is_trained_by_every_method(method, tmp_path):
    def fresh() -> Segmentation:
        torch.manual_seed(0)
        net = PTv3(BACKBONES["m1"])
        net.fresh = ["dec"]
        return Segmentation(net, 4).eval()

    model = adapt(fresh(), METHODS[method]())
    mark = "backbone.modules_to_save" if method == "full" else ".dec.0.modules_to_save."
    before = {n: p.detach().clone() for n, p in model.named_parameters() if mark in n}
    assert before
    train(model, 2)
    assert not [n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])]
    model.eval().save_pretrained(tmp_path)
    torch.manual_seed(5)
    again = fresh()
    for parameter in again.backbone.dec.parameters():  # whatever a new one starts with, the file brings the trained one
        torch.nn.init.normal_(parameter)
    assert torch.equal(logits(load_adapted(again, tmp_path), batch()), logits(model, batch()))


def test_the_page_of_methods_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    assert page.read_text() == matrix(), "run python scripts/write_method_matrix.py"
