"""Every method on every kind of backbone keeps the contract of tests/contracts.py."""

import pytest

from contracts import BACKBONES, CHECKS, CORE, KIND, ON_VIDEO, Case
from pointadapt.methods import METHODS

#: a decoder probe needs a decoder; APPT, which is slow here, makes its own tokens on either form
LEFT_OUT = (("decoder", "m2"), ("appt", "gpt"))
CASES = [
    (method, backbone, check)
    for method, config in METHODS.items()
    for backbone in BACKBONES
    for check in (CORE if backbone in ("recon", "gpt") else CHECKS)
    if KIND[backbone] in config.works_on and (method, backbone) not in LEFT_OUT
    if backbone != "video" or method in ON_VIDEO
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No check may ask the network for anything."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"asked the hub: {args}")

    monkeypatch.setattr("peft.utils.other.file_exists", refuse)
    monkeypatch.setattr("huggingface_hub.file_exists", refuse)


@pytest.mark.parametrize(("method", "backbone", "check"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_contract(method, backbone, check, tmp_path):
    check(Case(method, backbone, tmp_path))
