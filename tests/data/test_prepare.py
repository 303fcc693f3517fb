"""`pointadapt prepare`: raw depth videos to clouds, by name; what it refuses."""

import numpy as np
import pytest

from pointadapt import cli
from pointadapt.data.prepare import PREPARE, prepare
from pointadapt.errors import UserError


def write_msr(path, frames=3, cut=0):
    """A raw depth video whose first frame sees nothing."""
    depth = np.zeros((frames, 4, 6), "<u4")
    depth[1:, 1, 2] = 560
    content = np.array([frames, 6, 4], "<u4").tobytes() + depth.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content[: len(content) - cut])


def test_msr_by_the_command_line(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "clouds"
    write_msr(raw / "a01_s01_e01_sdepth.bin")
    write_msr(raw / "a02_s06_e01_sdepth.bin")
    assert cli.main(["prepare", "msr-action3d", str(raw), str(out)]) == 0
    said = capsys.readouterr()
    assert "wrote 2 videos" in said.out and "2 frames have no depth" in said.err
    with np.load(out / "a01_s01_e01_sdepth.npz", allow_pickle=True) as found:
        clouds = found["point_clouds"]
    assert [len(cloud) for cloud in clouds] == [0, 1, 1]
    np.testing.assert_allclose(clouds[1], [[(2 - 3) * 2, (1 - 2) * 2, 560]])
    write_msr(raw / "a03_s01_e01_sdepth.bin", cut=5)
    assert cli.main(["prepare", "msr-action3d", str(raw), str(out)]) == 2
    said = capsys.readouterr()
    assert "wrote 0 videos" in said.out and "2 were there already" in said.out
    assert "a03_s01_e01_sdepth.bin" in said.err and "truncated" in said.err


def test_refused(tmp_path):
    write_msr(tmp_path / "a01_s01_e01_sdepth.bin")
    for arguments, message in {
        ("kinect", tmp_path, tmp_path / "out"): "use one of msr-action3d, ntu",
        ("ntu", tmp_path, tmp_path / "out"): "of MSR-Action3D, not of NTU RGB",
        ("ntu", tmp_path / "none", tmp_path / "out"): "there is no folder",
        ("msr-action3d", tmp_path, tmp_path / "out", False, 0): "workers is 0",
    }.items():
        with pytest.raises(UserError, match=message):
            prepare(*arguments)
    assert not (tmp_path / "out").exists() and all(":" in entry.function for entry in PREPARE.values())
