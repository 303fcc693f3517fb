"""Draw docs/images/scans.png: generated rooms of both styles and an airborne tile, as scanned and by class.

python scripts/draw_examples.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pointadapt.analysis.view import draw, panels
from pointadapt.data.furniture_item import ROOM_CLASSES
from pointadapt.data.synthetic import room
from pointadapt.data.synthetic_aerial import aerial

AZIMUTH = -60.0
TARGET = Path(__file__).parent.parent / "docs" / "images" / "scans.png"


def opened(scan: dict[str, np.ndarray]) -> np.ndarray:
    """[N] bool: all but the ceiling and the walls between us and the furniture."""
    turn = np.radians(AZIMUTH)
    toward = scan["coord"][:, :2] @ [np.cos(turn), np.sin(turn)]
    shell = np.isin(scan["segment"], [ROOM_CLASSES.index(name) for name in ("wall", "window", "door")])
    return (scan["segment"] != ROOM_CLASSES.index("ceiling")) & ~(shell & (toward > 0.15 * toward.max()))


def main() -> None:
    scans = []
    for title, scan in (("site a", room(5, "a")), ("site b", room(1, "b"))):
        seen = opened(scan)
        scans.append((title, scan["coord"][seen], scan["color"][seen], scan["segment"][seen], 0.065))
    tile = aerial(9)
    grey = (tile["intensity"] / 1500).clip(0, 1)[:, None] * np.full(3, 235)
    scans.append(("from the air", tile["coord"], grey.astype(np.uint8), tile["segment"], 0.3))
    images = []
    for part in (2, 3):
        for title, coord, *colors, spacing in scans:
            picture = draw(
                coord, colors[part - 2], (920, 680), AZIMUTH, elevation=38, zoom=1.15, spacing=spacing, shading=0.8
            )
            images.append((title if part == 2 else "", picture))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    sheet = Image.fromarray(panels(images, columns=3)).reduce(2).quantize(128, dither=Image.Dither.NONE)
    sheet.save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
