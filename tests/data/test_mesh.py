"""Meshes: OFF in its spellings, points uniform over the surface, the same for the same file."""

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from pointadapt.data.mesh import read_off, sample_surface
from pointadapt.data.object_files import read_shape
from pointadapt.errors import UserError
from shapes import CUBE, CUBE_FACES, write_off, write_txt


@pytest.mark.parametrize("glued", [False, True])
def test_off(tmp_path, glued):
    vertices, faces = read_off(write_off(tmp_path / "a.off", glued=glued))
    assert vertices.shape == (8, 3) and faces.shape == (12, 3)  # squares become two triangles
    area = np.linalg.norm(np.cross(*(vertices[faces[:, i]] - vertices[faces[:, 0]] for i in (1, 2))), axis=1) / 2
    assert area.sum() == pytest.approx(6)


def test_off_with_comments_colours_and_triangles(tmp_path):
    file = tmp_path / "a.off"
    file.write_text(
        "# made by hand\nCOFF\n3 1 0\n0 0 0 255 0 0\n1 0 0 255 0 0 # corner\n0 1 0 0 0 255\n3 0 1 2 9 9 9\n"
    )
    vertices, faces = read_off(file)
    assert vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]] and faces.tolist() == [[0, 1, 2]]


def test_points_are_uniform_over_the_surface(tmp_path):
    coord = read_shape(write_off(tmp_path / "cube.off"), 6000).coord
    sides = np.array([np.isclose(coord[:, axis], value).sum() for axis in range(3) for value in (0, 1)])
    assert sides.sum() == pytest.approx(6000, abs=5) and (np.abs(sides - 1000) < 5 * np.sqrt(1000)).all()
    top = coord[np.isclose(coord[:, 2], 1)][:, :2]
    assert np.histogram2d(*top.T, bins=2, range=[(0, 1), (0, 1)])[0] == pytest.approx(250, rel=0.25)


def test_large_faces_get_more_points():
    vertices = np.array([(0, 0, 0), (3, 0, 0), (0, 1, 0), (0, 0, 5), (1, 0, 5), (0, 1, 5)], float)
    coord = sample_surface(vertices, np.array([(0, 1, 2), (3, 4, 5)]), 4000, "a")
    assert (coord[:, 2] == 0).mean() == pytest.approx(0.75, abs=0.03)


def test_the_mesh_is_the_seed(tmp_path):
    first, again = (read_shape(write_off(tmp_path / name), 100).coord for name in ("a.off", "b.off"))
    moved = read_shape(write_off(tmp_path / "c.off", [(x + 1, y, z) for x, y, z in CUBE]), 100).coord
    assert np.array_equal(first, again) and not np.allclose(first + (1, 0, 0), moved)


def write_ply(path, faces):
    vertex = np.array(CUBE, dtype=[(axis, "f4") for axis in "xyz"])
    face = np.empty(len(faces), dtype=[("vertex_indices", "O")])
    face["vertex_indices"] = [np.array(f, "i4") for f in faces]
    elements = [PlyElement.describe(vertex, "vertex")]
    elements += [PlyElement.describe(face, "face", val_types={"vertex_indices": "i4"})] if faces else []
    PlyData(elements).write(path)


def test_ply_with_faces_is_a_mesh(tmp_path):
    write_ply(tmp_path / "mesh.ply", CUBE_FACES)
    write_ply(tmp_path / "points.ply", [])
    assert len(read_shape(tmp_path / "mesh.ply", 77)) == 77
    assert read_shape(tmp_path / "points.ply", 77).coord.tolist() == [list(map(float, v)) for v in CUBE]


def test_off_of_points_alone(tmp_path):
    assert len(read_shape(write_off(tmp_path / "a.off", faces=[]), 77)) == 8


@pytest.mark.parametrize(
    "text, said",
    [
        ("", r"empty \(0 bytes\)"),
        ("PLY\n1 1 1", "must begin with OFF"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n", "truncated"),
        ("OFF\nthree 1 0\n0 0 0\n", "damaged"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "no area"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 nan 0\n3 0 1 2\n", "a vertex has NaN"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "names vertex 7"),
        ("OFF\n0 0 0\n", "no points"),
        ("OFF\n3 1 0\n0 0\n1 0\n0 1\n3 0 1 2\n", "damaged .2 numbers for a vertex"),
    ],
)
def test_broken_meshes(tmp_path, text, said):
    file = tmp_path / "a.off"
    file.write_text(text)
    with pytest.raises(UserError, match=f"a.off.*{said}"):
        read_shape(file)


def test_text_columns(tmp_path):
    values = np.arange(28.0).reshape(4, 7)
    scan = read_shape(write_txt(tmp_path / "a.txt", values, " "))
    assert scan.coord.tolist() == values[:, :3].tolist() and scan.label.tolist() == [6, 13, 20, 27]
    assert read_shape(write_txt(tmp_path / "b.txt", values[:, :6])).label is None
    assert read_shape(write_txt(tmp_path / "c.xyz", values[:, :4], " ")).label.tolist() == [3, 10, 17, 24]
    (tmp_path / "d.csv").write_text("x,y,z\n1,2,3\n")
    assert read_shape(tmp_path / "d.csv").coord.tolist() == [[1, 2, 3]]
    (tmp_path / "e.xyz").write_text("1 2 3 # the first\n4 5 6\n")
    assert read_shape(tmp_path / "e.xyz").coord.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "text, said",
    [("1 2\n3 4\n", "2 numbers on a line"), ("1 2 3\n1 2\n", "not readable"), ("1 2 nan\n", "1 of 1 points")],
)
def test_broken_text(tmp_path, text, said):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(UserError, match=said):
        read_shape(tmp_path / "a.xyz")
