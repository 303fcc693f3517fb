"""Pickles: arrays and plain containers come through, nothing else is ever run."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from pointadapt.data.unpickle import read_pickle
from pointadapt.errors import UserError


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_and_containers(tmp_path, protocol):
    content = {
        "train": [(np.arange(6, dtype=np.float32).reshape(2, 3), np.int64(3), "name")],
        "more": OrderedDict(a={1, 2}, b=np.array(["x", "yy"]), c=np.asfortranarray(np.eye(2))),
    }
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(content, protocol))
    got = read_pickle(file)
    points, label, name = got["train"][0]
    assert points.tolist() == [[0, 1, 2], [3, 4, 5]] and label == 3 and name == "name"
    assert got["more"]["a"] == {1, 2} and got["more"]["b"].tolist() == ["x", "yy"]
    assert got["more"]["c"].tolist() == [[1, 0], [0, 1]]


class Touch:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


class Evaluated:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("bad, named", [(Touch, "pathlib|getattr"), (Evaluated, "builtins.eval")])
def test_code_is_refused(tmp_path, bad, named):
    file, mark = tmp_path / "a.dat", tmp_path / "touched"
    file.write_bytes(pickle.dumps([bad(mark) if bad is Touch else bad()]))
    with pytest.raises(UserError, match=f"a.dat: this pickle is refused.*({named})"):
        read_pickle(file)
    assert not mark.exists()


def test_object_arrays_cannot_smuggle_code(tmp_path):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(np.array([Evaluated()], object)))
    with pytest.raises(UserError, match="refused"):
        read_pickle(file)


def test_python_2_strings(tmp_path):
    """numpy arrays of Python 2 pickles hold their bytes as text."""
    text = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Rq\x00(K\x01K\x02\x85"
    text += b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
    text += np.array([1.5, -2], "<f4").tobytes() + b"tb."
    (tmp_path / "a.pkl").write_bytes(text)
    assert read_pickle(tmp_path / "a.pkl").tolist() == [1.5, -2]


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle"])
def test_damaged(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match="a.pkl: not readable as a pickle"):
        read_pickle(tmp_path / "a.pkl")
