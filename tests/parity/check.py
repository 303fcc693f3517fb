"""Compare pointadapt with stored outputs of the official code.

    python tests/parity/check.py FIXTURE.safetensors...

The kind of a fixture is the start of its file name. Prints the largest error per tensor and exits with 1 when any
is above the tolerance, 2 when a file is missing, or of no known kind. A kind lives in the module of its name beside
this file: ``check(path) -> [(tensor name, error, tolerance), ...]``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parent)]

#: start of the file name -> module; the first that fits
KINDS = {
    "bb_gridsample": "gridsample",
    "bb_serialization": "serialization",
    "bb_submconv": "submconv",
    "bb_": "backbone",
    "pointtpa": "pointtpa",
    "pointmae_cls": "pointmae",
    "pointbert_cls": "pointmae",
    "recon_cls": "recon",
    "pointgpt_s_full": "pointgpt",
    "pointmae_partseg_full": "pointmae_partseg",
    "pointgst": "pointgst",
    "pointlora": "pointlora",
    "vptdeep": "vptdeep",
    "idpt_partseg_full": "idpt_partseg",
    "idpt": "idpt",
    "dapt": "dapt",
}


def check(path: Path) -> list[tuple[str, float, float]]:
    """[(tensor name, largest error, tolerance)] of one fixture. Raises KeyError for an unknown kind."""
    module = next((m for start, m in KINDS.items() if path.name.startswith(start)), None)
    if module is None:
        raise KeyError(path.name)
    spec = importlib.util.spec_from_file_location(f"parity_{module}", HERE / f"{module}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.check(path)


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__)
        return 2
    failed = unknown = False
    for path in (p for p in map(Path, paths) if p.suffix != ".json"):  # side-cars are read with their fixture
        if not path.is_file():
            print(f"{path}: there is no such file")
            unknown = True
            continue
        try:
            results = check(path)
        except KeyError as error:
            if error.args != (path.name,):
                raise
            print(f"{path.name}: unknown kind; known are {', '.join(KINDS)}")
            unknown = True
            continue
        print(path.name)
        for name, error, tolerance in results:
            good = error <= tolerance  # False for NaN
            failed |= not good
            print(f"  {name:<34} {error:10.3e}  tolerance {tolerance:.1e}{'' if good else '   ABOVE TOLERANCE'}")
    return 2 if unknown else int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
