"""Write docs/methods.md: every method on every kind of backbone. Run it after a method has changed."""

from pathlib import Path

from pointadapt.analysis.matrix import matrix

FILE = Path(__file__).parent.parent / "docs" / "methods.md"

if __name__ == "__main__":
    FILE.write_text(matrix())
    print(f"{FILE} written")
