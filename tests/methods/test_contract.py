"""Every method on every kind of backbone keeps the contract of tests/contracts.py."""

import pytest

from contracts import BACKBONES, CHECKS, KIND, ON_VIDEO, Case
from pointadapt.methods import METHODS

#: a decoder probe needs a decoder
CASES = [
    (method, backbone)
    for method, config in METHODS.items()
    for backbone in BACKBONES
    if KIND[backbone] in config.works_on and (method, backbone) != ("decoder", "m2")
    if backbone != "video" or method in ON_VIDEO
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No check may ask the network for anything."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"asked the hub: {args}")

    monkeypatch.setattr("peft.utils.other.file_exists", refuse)
    monkeypatch.setattr("huggingface_hub.file_exists", refuse)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("method", "backbone"), CASES, ids=lambda v: v)
def test_contract(method, backbone, check, tmp_path):
    check(Case(method, backbone, tmp_path))
