"""The stored outputs of the official code, through the program that users run."""

from pathlib import Path

import pytest

from parity import check as program

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures").glob("*.safetensors"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_agrees_with_the_official_code(path):
    results = program.check(path)
    assert results
    assert [(name, error) for name, error, tolerance in results if not error <= tolerance] == []


def test_program_exits_by_the_result(tmp_path, capsys):
    good = next(path for path in FIXTURES if path.name.startswith("bb_submconv"))
    assert program.main([str(good)]) == 0
    from safetensors.torch import load_file, save_file

    wrong = load_file(good)
    wrong["k3.y"] += 0.01
    save_file(wrong, tmp_path / good.name)
    assert program.main([str(tmp_path / good.name)]) == 1
    assert "ABOVE TOLERANCE" in capsys.readouterr().out
    assert program.main(["strange_thing.safetensors"]) == 2
