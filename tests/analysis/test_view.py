"""Pictures of clouds: the nearest point is what one sees, colours tell classes apart, files are whole."""

import numpy as np
import pytest
from PIL import Image

from pointadapt.analysis.view import (
    BACKGROUND,
    PALETTE,
    UNLABELLED,
    class_colors,
    draw,
    height_colors,
    panels,
    save_png,
)

RED, BLUE = np.array([250, 0, 0]), np.array([0, 0, 250])


def plate(x, steps=40):
    """A square plate [steps**2, 3] facing along x."""
    y, z = np.meshgrid(np.linspace(-1, 1, steps), np.linspace(-1, 1, steps))
    return np.stack([np.full(y.size, x), y.ravel(), z.ravel()], 1)


def middle(image):
    height, width, _ = image.shape
    return image[height * 2 // 5 : height * 3 // 5, width * 2 // 5 : width * 3 // 5].reshape(-1, 3)


@pytest.mark.parametrize("azimuth, seen", [(0.0, RED), (180.0, BLUE)])
def test_nearer_plate_hides_the_other(azimuth, seen):
    coord = np.concatenate([plate(1.0), plate(-1.0)])
    color = np.repeat([RED, BLUE], len(coord) // 2, axis=0)
    image = draw(coord, color, size=(120, 90), azimuth=azimuth, elevation=0, shading=0)
    share = (middle(image) == seen).all(1).mean()
    assert share > 0.98


def test_up_is_up_and_everything_is_in_sight():
    coord = np.concatenate([plate(0.0), plate(0.0) * [1, 1, 0.3] + [0, 0, 1.2]])
    color = np.repeat([BLUE, RED], len(coord) // 2, axis=0)
    image = draw(coord, color, size=(100, 100), azimuth=30, elevation=10, shading=0)
    red, blue = ((image == tint).all(-1) for tint in (RED, BLUE))
    assert red.any() and blue.any()
    assert np.nonzero(red)[0].mean() < np.nonzero(blue)[0].mean()
    frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (frame == BACKGROUND).all(), "nothing is cut off at the border"


def test_shading_darkens_behind_edges_only():
    coord = np.concatenate([plate(0.0, 80), plate(1.0, 20) * [1, 0.3, 0.3]])
    flat = draw(coord, np.full((len(coord), 3), 200), size=(160, 160), azimuth=0, elevation=0, shading=0)
    shaded = draw(coord, np.full((len(coord), 3), 200), size=(160, 160), azimuth=0, elevation=0)
    drawn = (flat == 200).all(-1)
    darker = shaded[drawn][:, 0] < 150
    assert 0.005 < darker.mean() < 0.3


@pytest.mark.parametrize("number", [0, 1, 2])
def test_tiny_clouds(number):
    image = draw(np.zeros((number, 3)), np.zeros(number, int), size=(32, 24))
    assert image.shape == (24, 32, 3)
    assert (image != BACKGROUND).any() == (number > 0)


def test_class_colors():
    segment = np.array([0, 3, -1, 5])
    assert np.array_equal(class_colors(segment), [PALETTE[0], PALETTE[3], UNLABELLED, PALETTE[5]])
    assert np.array_equal(class_colors(np.array([len(PALETTE)])), PALETTE[:1])


def test_palette_is_distinct():
    """Also for red-green blindness: deuteranopia after Machado et al. (2009), distances in linear light."""
    linear = (PALETTE / 255.0) ** 2.2
    blind = linear @ np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]).T
    for colors, least in ((PALETTE / 255.0, 0.19), (blind.clip(0, 1) ** (1 / 2.2), 0.08)):
        distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 9 * np.eye(len(colors))
        assert distance.min() > least


def test_height_colors_rise():
    coord = np.zeros((50, 3))
    coord[:, 2] = np.linspace(0, 2, 50)
    colors = height_colors(coord).astype(int)
    assert colors[-1].sum() > colors[25].sum() > colors[0].sum()
    assert len(height_colors(coord[:0])) == 0


def test_pictures_and_panels_write_whole_files(tmp_path):
    coord = plate(0.0)
    picture = draw(coord, np.zeros(len(coord), int), size=(80, 60), azimuth=0, elevation=0)
    with Image.open(save_png(picture, tmp_path / "one.png")) as image:
        assert image.size == (80, 60)
    sheet = panels(
        [("truth", picture), ("prediction", picture), ("errors", picture)], tmp_path / "three.png", columns=2
    )
    with Image.open(tmp_path / "three.png") as image:
        saved = np.asarray(image)
    assert np.array_equal(saved, sheet)
    assert saved.shape[1] == 2 * 80 + 6 and saved.shape[0] > 2 * 60
    assert not list(tmp_path.glob("*.part"))
