"""Meshes of single objects: OFF files, faces of PLY files, and points drawn uniformly over a surface."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from pointadapt.errors import UserError

OFF_HEADER = re.compile(r"^(ST)?(C)?(N)?OFF", re.IGNORECASE)


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(vertices [V, 3] float64, triangles [F, 3] int64); polygons are cut into fans, colours are left out.

    The counts may follow ``OFF`` on its line without a space (``OFF3 1 0``), as in some files of ModelNet.
    Raises UserError when it is no OFF file or ends early.
    """
    whole = path.read_text(encoding="utf-8", errors="replace")
    lines = [text for line in whole.splitlines() if (text := line.split("#")[0].strip())]
    header = OFF_HEADER.match(lines[0]) if lines else None
    if header is None:
        raise UserError(f"{path}: not an OFF file, its first line must begin with OFF")
    rest = lines[0][header.end() :].strip()
    lines = [rest, *lines[1:]] if rest else lines[1:]
    try:
        num_vertices, num_faces = (int(value) for value in lines[0].split()[:2])
        corners, polygons = lines[1 : 1 + num_vertices], lines[1 + num_vertices : 1 + num_vertices + num_faces]
        if (len(corners), len(polygons)) != (num_vertices, num_faces):
            raise UserError(
                f"{path}: the header promises {num_vertices} vertices and {num_faces} faces, the file ends before; "
                f"it is truncated, copy it again"
            )
        if not num_vertices:
            raise UserError(f"{path}: the mesh has no points; leave it out")
        vertices = np.array(" ".join(corners).split(), np.float64).reshape(num_vertices, -1)
        if vertices.shape[1] < 3:
            raise ValueError(f"{vertices.shape[1]} numbers for a vertex")
        return vertices[:, :3], off_faces(polygons)
    except UserError:
        raise
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: not readable as OFF, so damaged ({error}); copy or export it again") from error


def off_faces(lines: list[str]) -> np.ndarray:
    """[F, 3] int64 of lines ``corners i j k ... colour``."""
    numbers = np.array(" ".join(lines).split(), np.float64)
    if numbers.size == 4 * len(lines) and (numbers[::4] == 3).all():
        return numbers.reshape(-1, 4)[:, 1:].astype(np.int64)
    rows = [line.split() for line in lines]
    return triangles([[int(value) for value in row[1 : 1 + int(row[0])]] for row in rows])


def read_ply_mesh(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(vertices, triangles) of a PLY file with faces, or None where it holds points alone."""
    from plyfile import PlyData

    file = PlyData.read(str(path))
    if "face" not in file or "vertex" not in file or not file["face"].count:
        return None
    face = file["face"]
    names = [p.name for p in face.properties if p.name in ("vertex_indices", "vertex_index")]
    if not names:
        return None
    vertex = file["vertex"]
    return np.stack([vertex[axis].astype(np.float64) for axis in "xyz"], 1), triangles(list(face[names[0]]))


def triangles(polygons: list) -> np.ndarray:
    """[F, 3] int64: every polygon as the fan around its first corner."""
    sizes = {len(polygon) for polygon in polygons}
    if sizes == {3}:
        return np.array(polygons, np.int64)
    fans = [(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]
    return np.array(fans, np.int64).reshape(-1, 3)


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, path: Path | str) -> np.ndarray:
    """[count, 3] float64 points, uniform over the surface, seeded by the mesh itself: a file always gives the same.

    Raises UserError for a mesh without area, with a missing vertex, or with NaN or infinite coordinates.
    """
    if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise UserError(f"{path}: a face names vertex {faces.max()}, there are {len(vertices)}; export the mesh again")
    if not np.isfinite(vertices).all():
        raise UserError(f"{path}: a vertex has NaN or infinite coordinates; export the mesh again")
    corner = vertices[faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    total = area.cumsum()
    if not len(total) or not total[-1] > 0:
        raise UserError(f"{path}: the faces of this mesh have no area, so no points can be drawn on it; leave it out")
    digest = hashlib.sha256(np.ascontiguousarray(vertices).tobytes() + np.ascontiguousarray(faces).tobytes())
    rng = np.random.default_rng(int.from_bytes(digest.digest()[:8], "little"))
    chosen = corner[np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=len(total) - 1)]
    root, second = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return (1 - root) * chosen[:, 0] + root * (1 - second) * chosen[:, 1] + root * second * chosen[:, 2]
