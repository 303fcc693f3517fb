"""Files are written whole or not at all, read in UTF-8, and what is wrong with them is one sentence."""

import pytest

from pointadapt.errors import UserError
from pointadapt.files import read_json, read_text, write_text


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write .*run.json"):
        write_text(tmp_path / "file" / "run.json", "{}")
    with pytest.raises(UserError, match="cannot write .*too long"):
        write_text(tmp_path / ("n" * 255), "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_text_in_other_encodings(tmp_path):
    (tmp_path / "marked.txt").write_text("Gehör\n", encoding="utf-8-sig")
    assert read_text(tmp_path / "marked.txt") == "Gehör\n"
    (tmp_path / "old.txt").write_text("Gehör\n", encoding="latin-1")
    with pytest.raises(UserError, match="old.txt: no text in UTF-8 .* save it in UTF-8"):
        read_text(tmp_path / "old.txt")


def test_damaged_json(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"miou": 0.')
    with pytest.raises(UserError, match="evaluation.json: no valid JSON"):
        read_json(tmp_path / "evaluation.json")
