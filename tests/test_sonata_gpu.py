"""benchmarks/sonata_gpu.py as far as it goes without a GPU: all of it but the figures."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from scenes import cloud, tiny


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("sonata_gpu")


def test_work_is_what_the_layers_ask_for(program):
    point, model = cloud(100, 8), tiny(enc_depths=(1, 0, 0), mlp_ratio=2)
    work, rows = program.least_work(model, point, 2), len(point)
    pairs = rows + sum(len(w) for _, w, _ in program.neighbors(point).pairs)
    assert work["convolution"][0] == program.Work(2 * pairs * 144, 2 * (24 * rows + 27 * 144) + 4 * pairs)
    fc1 = program.Work(2 * rows * 12 * 24, 2 * (rows * 36 + 12 * 24))
    assert work["linears"].count(fc1) == 3  # and its way back, and the pooling's
    assert work["linears"][0] == program.Work(2 * rows * 9 * 12, 2 * (rows * 21 + 9 * 12))
    full, rest = divmod(rows, 32)
    slots = 32 * (full + (rest > 0))
    # the last window's extra queries are no work: its keys are 32 all the same
    assert work["attention"] == [program.Work(4 * rows * 32 * 12, 2 * 4 * rows * 12 + 8 * (rows + slots))]


def test_parts_inside_others_are_taken_out(program):
    parts, clock = program.Parts(torch.device("cpu")), iter([0.0, 1.0, 3.0, 4.0, 5.0, 9.0])
    parts.mark = lambda: next(clock)
    for name in ("whole", "part"):
        parts.enter(name)
    parts.leave(), parts.enter("part"), parts.leave(), parts.leave()
    assert parts.seconds() == {"part": 3.0, "whole": 6.0}


def test_the_program_measures_and_reports(program):
    limits = {"side": 64, "size": 4096}
    text = program.benchmark(torch.device("cpu"), 300, 2, "bfloat16", tiny(), **limits)
    for name in ("forward", "GEM step", "convolution", "attention", "linears", "neighbour maps", "curves and windows"):
        assert f"| {name} | " in text
