"""Pictures of point clouds: PNG by a numpy z-buffer; the class colours that all figures share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointadapt.files import written

Image = NDArray[np.uint8]  # [height, width, 3]

#: Distinct for normal and for red-green blind eyes: Okabe and Ito's first, then chosen greedily in CIELAB.
_COLORS = (
    "0072b2 e69f00 009e73 cc79a7 56b4e9 d55e00 f0e442 4433bb ee1155 11ee77 554400 880077 "
    "6688ff 00eeff 772244 aacc99 aa9944 994433 aadd55 00eecc ff66dd 775577 009900 004499"
)
PALETTE = np.array([tuple(bytes.fromhex(color)) for color in _COLORS.split()], dtype=np.uint8)
UNLABELLED = np.array([150, 150, 150], dtype=np.uint8)
RIGHT, WRONG = np.array([178, 186, 192], dtype=np.uint8), np.array([213, 40, 30], dtype=np.uint8)
BACKGROUND = (250, 250, 248)


def class_colors(segment: NDArray[Any]) -> Image:
    """[N] class indices -> [N, 3] colours; negative (ignored) is grey."""
    segment = np.asarray(segment)
    return np.where((segment < 0)[:, None], UNLABELLED, PALETTE[np.maximum(segment, 0) % len(PALETTE)])


def height_colors(coord: NDArray[Any]) -> Image:
    """[N, 3] colours from dark blue at the bottom to yellow at the top of coord [N, 3]."""
    ramp = np.array([[45, 50, 110], [35, 110, 145], [60, 165, 130], [150, 205, 80], [250, 230, 60]])
    if len(coord) == 0:
        return np.zeros((0, 3), dtype=np.uint8)
    height = np.asarray(coord)[:, 2]
    low, high = np.percentile(height, [1, 99])
    level = ((height - low) / max(high - low, 1e-9)).clip(0, 1) * (len(ramp) - 1)
    return np.stack([np.interp(level, range(len(ramp)), ramp[:, channel]) for channel in range(3)], 1).astype(np.uint8)


def draw(
    coord: NDArray[Any],
    color: NDArray[Any],
    size: tuple[int, int] = (960, 720),
    azimuth: float = -60.0,
    elevation: float = 35.0,
    zoom: float = 1.0,
    field_of_view: float = 40.0,
    spacing: float | None = None,
    shading: float = 1.0,
    background: tuple[int, int, int] = BACKGROUND,
) -> Image:
    """A perspective view of coord [N, 3] with colours [N, 3] (0-255) or class indices [N].

    The camera looks at the middle of the cloud from ``azimuth``/``elevation`` degrees. ``spacing`` (metres) is the
    edge of a point's splat, by default the cloud's own point spacing. ``shading`` darkens pixels behind a depth edge.
    """
    color = np.asarray(color)
    color = class_colors(color) if color.ndim == 1 else color
    width, height = size
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:] = background
    if len(coord) == 0:
        return image
    coord = np.asarray(coord, dtype=np.float64)
    low, high = np.percentile(coord, 0.2, axis=0), np.percentile(coord, 99.8, axis=0)
    pixel, depth, focal = _project(
        coord - (low + high) / 2, (high - low).clip(0.1), size, azimuth, elevation, zoom, field_of_view
    )
    spacing = _spacing(coord) if spacing is None else spacing
    radius = (focal * spacing / depth.clip(1e-6) / 2).clip(0, 6)

    far = np.iinfo(np.uint64).max
    buffer = np.full(height * width, far, dtype=np.uint64)
    key = ((depth / depth.max() * (2**31 - 1)).astype(np.uint64) << np.uint64(32)) | np.arange(
        len(coord), dtype=np.uint64
    )
    reach = int(np.ceil(radius.max()))
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy > (reach + 0.5) ** 2:
                continue
            x, y = pixel[:, 0] + dx, pixel[:, 1] + dy
            seen = (dx * dx + dy * dy <= (radius + 0.5) ** 2) & (depth > 0)
            seen &= (x >= 0) & (x < width) & (y >= 0) & (y < height)
            np.minimum.at(buffer, y[seen] * width + x[seen], key[seen])
    hit = buffer != far
    rows = (buffer[hit] & np.uint64(2**32 - 1)).astype(np.int64)
    flat = image.reshape(-1, 3)
    flat[hit] = color[rows]
    if shading:
        distance = np.full(height * width, np.inf)
        distance[hit] = depth[rows]
        shade = _eye_dome(distance.reshape(height, width), shading)
        flat[hit] = (flat[hit] * shade.reshape(-1, 1)[hit]).astype(np.uint8)
    return image


def _project(
    coord: NDArray[Any],
    extent: NDArray[Any],
    size: tuple[int, int],
    azimuth: float,
    elevation: float,
    zoom: float,
    fov: float,
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Pixels [N, 2] (int), depths [N] and the focal length in pixels of a camera that sees the whole extent."""
    turn, tilt = np.radians(azimuth), np.radians(elevation)
    back = np.array([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
    right = np.array([-np.sin(turn), np.cos(turn), 0.0])
    up = np.cross(back, right)
    focal = size[1] / 2 / np.tan(np.radians(fov) / 2)
    corners = extent / 2 * (np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T)
    flat, deep = np.abs(np.stack([corners @ right, corners @ up], 1)), corners @ back
    distance = (flat * focal / (np.array(size) * 0.47) + deep[:, None]).max() / zoom
    depth = distance - coord @ back
    screen = focal * np.stack([coord @ right, -(coord @ up)], 1) / depth[:, None].clip(1e-6)
    # centre what the corners occupy on the screen
    outer = np.stack([corners @ right, -(corners @ up)], 1) / (distance - deep)[:, None].clip(1e-6) * focal
    middle = np.array(size) / 2 - (outer.min(0) + outer.max(0)) / 2
    return np.floor((screen + middle).clip(-1e6, 1e6)).astype(np.int64), depth, float(focal)


def _spacing(coord: NDArray[Any]) -> float:
    """Typical distance to the nearest other point, of a sample, widened so that surfaces close."""
    from scipy.spatial import cKDTree

    if len(coord) < 3:
        return 0.05
    sample = coord[:: max(1, len(coord) // 2000)]
    distance = cKDTree(coord).query(sample, k=min(4, len(coord)))[0][:, -1]
    return float(np.percentile(distance, 75)) * 1.3


def _eye_dome(depth: NDArray[Any], strength: float) -> NDArray[Any]:
    """[height, width] factors 0-1: darker where neighbours are nearer to the eye (Boucheny's eye-dome lighting)."""
    log = np.log2(np.where(np.isfinite(depth), depth, np.nanmax(depth[np.isfinite(depth)]) * 1.2))
    total = np.zeros_like(log)
    for step in (1, 2, 4):
        for axis in (0, 1):
            for shift in (-step, step):
                total += np.maximum(0, log - np.roll(log, shift, axis=axis)) / step
    return np.exp(-strength * 12 * total / 3)


def panels(images: list[tuple[str, Image]], path: str | os.PathLike[str] | None = None, columns: int = 0) -> Image:
    """Pictures side by side under their titles; written as PNG if a path is given."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    columns = columns or len(images)
    rows = -(-len(images) // columns)
    height, width = np.max([image.shape[:2] for _, image in images], axis=0)
    bar = max(24, height // 18) if any(title for title, _ in images) else 0
    gap = 6
    sheet = Pillow.new("RGB", (columns * (width + gap) - gap, rows * (height + bar + gap) - gap), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=max(12, int(bar * 0.62)))
    for index, (title, image) in enumerate(images):
        left, top = index % columns * (width + gap), index // columns * (height + bar + gap)
        pen.text((left + 8, top + bar * 0.12), title, fill=(40, 40, 40), font=font)
        sheet.paste(Pillow.fromarray(image), (left, top + bar))
    if path is not None:
        save_png(np.asarray(sheet), path)
    return np.asarray(sheet)


def save_png(image: Image, path: str | os.PathLike[str]) -> Path:
    """Write an image as PNG: to a temporary name first, so that a half-written file never stays."""
    from PIL import Image as Pillow

    target = Path(path)
    with written(target) as part:
        Pillow.fromarray(image).save(part, format="PNG", optimize=True)
    return target
