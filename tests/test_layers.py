"""Imports run downwards only, peft has one door, and the top level stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "pointadapt"
FILES = sorted(ROOT.rglob("*.py"))
BELOW = [file for file in FILES if file != ROOT / "__init__.py"]
LAYER = {
    "errors": 0, "files": 0, "kinds": 0, "point": 0, "tokens": 0, "ops": 0,
    "backbones": 1, "methods": 1,
    "tasks": 2, "data": 2, "metrics": 2, "metrics_video": 2,
    "run": 3, "checkpoint": 3, "optim": 3, "domains": 3, "train": 3, "evaluate": 3, "predict": 3, "analysis": 3,
    "align": 3, "align_samples": 3,
    "compare": 4, "demo": 4, "demo_video": 4, "cli_tools": 4, "cli_init": 4, "cli_adapt": 4, "cli": 5, "__main__": 6,
}  # fmt: skip
#: Imports inside one layer; never both ways.
SIDEWAYS = {
    ("point", "errors"), ("ops", "point"), ("ops", "tokens"), ("ops", "errors"), ("files", "errors"),
    ("metrics_video", "metrics"), ("align", "analysis"), ("align", "align_samples"), ("align_samples", "analysis"),
    ("domains", "run"), ("domains", "analysis"), ("domains", "align"), ("domains", "align_samples"),
    ("train", "domains"), ("evaluate", "domains"), ("predict", "domains"),
    ("train", "run"), ("train", "checkpoint"), ("train", "optim"),
    ("checkpoint", "run"), ("evaluate", "run"), ("evaluate", "predict"), ("evaluate", "analysis"),
    ("predict", "run"), ("analysis", "run"), ("demo_video", "demo"),
    ("cli_adapt", "cli_init"), ("cli_adapt", "cli_tools"), ("cli_tools", "cli_init"),
}  # fmt: skip


def imported(file: Path) -> list[str]:
    """Absolute names of all that a file imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno} imports relatively"
            names.append(node.module or "")
    return names


def part(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize(
    "file", [f for f in FILES if f != ROOT / "__init__.py"], ids=lambda f: str(f.relative_to(ROOT))
)
def test_imports_point_down(file):
    me = part(file)
    for name in imported(file):
        package, _, inside = name.partition(".")
        if package != "pointadapt":
            continue
        assert inside, f"{file.name} imports from the package's top level"
        other = inside.split(".")[0]
        assert other == me or LAYER[other] < LAYER[me] or (me, other) in SIDEWAYS, f"{me} imports {other}"


def test_sideways_goes_one_way():
    assert not {(b, a) for a, b in SIDEWAYS} & SIDEWAYS
    assert all(LAYER[a] == LAYER[b] for a, b in SIDEWAYS)


def test_only_the_glue_and_peft_s_own_methods_know_peft():
    found = {f.name for f in FILES if any(n.split(".")[0] == "peft" for n in imported(f))}
    assert found == {"core.py", "tuner.py", "from_peft.py"}


def test_files_say_what_they_are_and_stay_short():
    for file in FILES:
        text = file.read_text()
        assert not text or ast.get_docstring(ast.parse(text)), f"{file.name} has no first line that says what it is"
        assert text.count("\n") <= 600, f"{file.name} is too long"


@pytest.mark.parametrize(
    "code, absent",
    [
        ("import pointadapt", "torch numpy peft"),
        ("import pointadapt.cli; pointadapt.cli.parse(['info', 'x'])", "torch peft matplotlib laspy"),
        ("import pointadapt; pointadapt.Run('x')", "torch peft"),
        (
            "import pointadapt; pointadapt.read_scan, pointadapt.Segmentation, pointadapt.load_backbone",
            "peft matplotlib",
        ),
    ],
    ids=["package", "cli", "Run", "models and data"],
)
def test_imports_are_light(code, absent):
    check = f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert not set(absent.split()) & set(done.stdout.split())


def test_public_names():
    check = f"""
import sys
sys.path.insert(0, {str(ROOT.parent)!r})
import pointadapt as pa
import pointadapt.train, pointadapt.evaluate, pointadapt.predict       # modules of the same names
for name in pa.__all__:
    getattr(pa, name)
from pointadapt import train
assert callable(pa.train) and callable(pa.evaluate) and callable(pa.predict) and train is pa.train
assert pa.train.__module__ == "pointadapt.train"
from pointadapt.train import Batches
assert pa.train is train
assert set(pa.__all__) <= set(dir(pa))
try:
    pa.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    subprocess.run([sys.executable, "-c", check], check=True)
