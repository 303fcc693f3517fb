"""benchmarks/conv_gpu.py as far as it goes without a GPU: all of it but the figures."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("conv_gpu")


def test_work_counts_each_number_once(program):
    shape = program.Shape("layer", 0, 3, 5)
    forward = program.work("forward", rows=10, pairs=40, shape=shape, size=2)
    assert forward.operations == 2 * 40 * 3 * 5
    assert forward.bytes == 2 * (10 * 3 + 10 * 5 + 27 * 3 * 5) + 4 * 27 * 10
    both = program.work("both gradients", 10, 40, shape, 2)
    assert both.operations == 2 * forward.operations and both.bytes < 2 * forward.bytes
    assert program.work("neighbours", 10, 40, shape, 2) == program.Work(0.0, 10 * 12 + 4 * 27 * 10)
    # limited by the product, then by memory
    assert forward.seconds(1e3, 1e9) == 1.2 and forward.seconds(1e9, 1e2) == forward.bytes / 1e2


def test_levels_halve_the_resolution(program):
    first, second, third = program.levels(program.room(800), 3)
    assert len(first) > len(second) > len(third)
    assert torch.equal(torch.unique(first.grid_coord // 4, dim=0), third.grid_coord)
    assert third.feat.shape == (len(third), 1)


def test_the_program_measures_reports_and_says_what_is_missing(program, monkeypatch):
    found, missing = program.implementations()
    monkeypatch.setattr(program, "implementations", lambda: ({"torch": found["torch"]}, missing))
    shapes = (program.Shape("small", 0, 4, 6), program.Shape("coarse", 1, 6, 4, 5))
    limits = {"side": 64, "size": 4096}
    result = program.benchmark(torch.device("cpu"), 300, 5, ["float32", "bfloat16"], shapes, **limits)
    assert json.loads(json.dumps(result))["repeats"] == 5
    assert {"spconv", "FlexGEMM"} <= result["missing"].keys()
    for m in result["measurements"]:
        assert "torch" not in m["failed"]
        assert m["work"]["forward"]["operations"] == 2 * m["pairs"] * 24
        for phase in program.PHASES:
            assert len(m["seconds"][phase]["torch"]) == 5 and min(m["seconds"][phase]["torch"]) > 0
    text = program.report(result)
    assert "small 4->6 k3" in text and "coarse 6->4 k5" in text and "- spconv: " in text


def test_an_implementation_that_is_wrong_is_not_timed(program):
    point, shape = program.room(300), program.Shape("layer", 0, 4, 6)

    def wrong(point, shape):
        make, convolve = program.of_torch(point, shape)
        return make, lambda feat, weight, made: 1.01 * convolve(feat, weight, made)

    def broken(point, shape):
        raise OSError("no kernel image")

    found = {"torch": program.of_torch, "wrong": wrong, "broken": broken}
    measured = program.measure(point, shape, "float32", found, program.Stopwatch(torch.device("cpu"), 0), 5)
    assert measured["failed"].keys() == {"wrong", "broken"} and "1.0e-02" in measured["failed"]["wrong"]
    assert all(times.keys() == {"torch"} for times in measured["seconds"].values())


def test_report_compares_with_the_best_other(program):
    shape = program.Shape("layer", 0, 4, 6)
    times = {"pointadapt": [3e-6, 2e-6, 1e-6], "spconv": [4e-6] * 3, "spconv-triton": [3e-6] * 3, "torch": [1e-7]}
    seconds = dict.fromkeys(program.PHASES, times)
    result = {
        "device": "a GPU", "versions": "torch", "voxels": 5, "repeats": 3, "ceilings": {"float16": (1e12, 1e12)},
        "missing": {}, "measurements": [{
            "shape": vars(shape), "type": "float16", "rows": 5, "pairs": 9, "errors": {}, "failed": {},
            "seconds": seconds,
            "work": {phase: {"operations": 1e6, "bytes": 1.0} for phase in program.PHASES},
        }],
    }  # fmt: skip
    text = program.report(result)
    assert "geometric mean 1.50, least 1.50" in text and "50%" in text and math.isclose(1e6 / 1e12, 0.5 * 2e-6)
