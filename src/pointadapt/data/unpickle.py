"""Pickles of published benchmarks, read by an unpickler that knows arrays and plain containers and nothing else."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

from pointadapt.errors import UserError

#: All that a pickle may name. Containers, text and numbers need no name.
ALLOWED = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "bytearray")),
    ("collections", "OrderedDict"),
}


class ArraysOnly(pickle.Unpickler):
    """Refuses every global outside ALLOWED, so that loading runs no foreign code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"it names {module}.{name}; only NumPy arrays, lists, tuples, dicts and numbers are read")
        module = {"__builtin__": "builtins"}.get(module, module.replace("numpy.core", "numpy._core"))
        return getattr(importlib.import_module(module), name)


def read_pickle(path: Path) -> Any:
    """The arrays and containers of a pickle. Raises UserError when it holds anything else or is damaged."""
    try:
        with open(path, "rb") as stream:
            return ArraysOnly(stream, encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{path}: this pickle is refused: {error}") from error
    except Exception as error:  # a damaged pickle fails in any of a dozen ways
        raise UserError(f"{path}: not readable as a pickle of arrays, so damaged ({error}); copy it again") from error
