"""Projection by hand and against the real calibration (RAYSSL_DATA); what a calibration file may get wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cameras import boxes, camera, nearest_boxes, read_calibration, subject_boxes
from pipelines.errors import UserError

FILE = """
[cam_01]
size = [640.0, 480.0]
matrix = [[100.0, 0.0, 320.0], [0.0, 50.0, 240.0], [0.0, 0.0, 1.0]]
distortions = [0.1, 0.01, 0.001, 0.002]
rotation = [0.0, 0.0, 1.5707963267948966]
translation = [0.0, 0.0, 1.0]

[metadata]
error = 0.0
"""


def written(tmp_path, text):
    path = tmp_path / "calibration.toml"
    path.write_text(text)
    return path


def test_projection_by_hand(tmp_path):
    """(1, 2, 1) turned by a quarter about z and moved by 1: (-2, 1, 2), so x = -1, y = .5, r^2 = 1.25.

    radial = 1 + .1 * 1.25 + .01 * 1.5625 = 1.140625; u = -1 * radial + 2 * .001 * -.5 + .002 * (1.25 + 2) = -1.135125;
    v = .5 * radial + .001 * (1.25 + .5) + 2 * .002 * -.5 = .5700625: pixel (320 + 100 u, 240 + 50 v).
    """
    (name, lens), *others = read_calibration(written(tmp_path, FILE)).items()
    assert name == "cam_01" and not others and lens.size == (640, 480)
    point = np.array([[1.0, 2.0, 1.0]])
    np.testing.assert_allclose(lens.to_camera(point), [[-2, 1, 2]], atol=1e-12)
    np.testing.assert_allclose(lens.project(point), [[320 - 113.5125, 240 + 28.503125]], atol=1e-9)
    np.testing.assert_allclose(lens.resized(320, 960).project(point), [[103.24375, 537.00625]], atol=1e-9)
    assert np.isnan(lens.project(np.array([[0.0, 0.0, -2.0]]))).all()  # behind it


def test_a_camera_is_read_as_it_was_written(tmp_path):
    lens = read_calibration(written(tmp_path, FILE))["cam_01"]
    again = camera(json.loads(json.dumps(lens.entry())), "it")
    points = np.random.default_rng(0).normal(0, 0.3, (5, 4, 3))
    np.testing.assert_allclose(again.project(points), lens.project(points), atol=1e-9)
    assert again.size == lens.size
    matrix = {**lens.entry(), "rotation": lens.rotation.tolist()}
    np.testing.assert_allclose(camera(matrix, "it").rotation, lens.rotation, atol=1e-9)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("translation", "place", "camera cam_01 has no translation"),
        ("size = [640.0, 480.0]", "size = [640.0]", "size is 2 finite numbers"),
        ("size = [640.0, 480.0]", "size = [640.0, nan]", "size is 2 finite numbers"),
        ("[0.1, 0.01, 0.001, 0.002]", '"none"', "distortions is not made of numbers"),
        ("rotation = [0.0, 0.0, 1.5707963267948966]", "rotation = [[1,0,0],[0,1,0],[0,0,-1]]", "not a rotation matrix"),
        ("size =", "fisheye = true\nsize =", "fisheye lens"),
        ("[cam_01]", "[metadata]\n[x", "is not TOML"),
        (FILE, "", "holds no cameras"),
    ],
)
def test_bad_calibrations(tmp_path, old, new, says):
    with pytest.raises(UserError, match=says):
        read_calibration(written(tmp_path, FILE.replace(old, new)))


def test_no_calibration(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml cannot be read: No such file"):
        read_calibration(tmp_path / "none.toml")


def test_boxes():
    """Joints at (0, 0) and (4, 2), and one unknown: centre (2, 1), side 1.25 * 4; no joint at all: NaN."""
    nan = np.nan
    pixels = np.array([[(0, 0), (4, 2), (nan, 7)], [(nan, nan)] * 3])
    np.testing.assert_allclose(boxes(pixels), [(2, 1, 5), (nan, nan, nan)])


def test_boxes_of_keypoints():
    """Found are (0, 0) and (4, 2) of frame 1, (10, 10) and (10, 18) of frame 4: centres (2, 1), (10, 14), sides 5, 10.

    Frame 0 and 2 are next to 1, frame 3 and 5 next to 4. Frame 2 has one keypoint, which has no extent.
    """
    nan, inf = np.nan, np.inf
    first, last = [(0, 0, 0.1), (4, 2, 1), (90, 90, 0)], [(10, 10, 1), (10, 18, 0.5), (nan, 1, 1)]
    none, one = [(5, 5, 0), (9, 9, nan), (inf, 9, 1)], [(7, 7, 1), (1, 1, 0), (1, 1, 0)]
    keypoints = np.array([none, first, one, none, last, none], np.float32)
    found, between = subject_boxes(keypoints), subject_boxes(keypoints[[1, 0, 4]])
    assert found is not None and between is not None and found.dtype == np.float32
    np.testing.assert_allclose(found, [(2, 1, 5)] * 3 + [(10, 14, 10)] * 3)
    np.testing.assert_allclose(between[1], (2, 1, 5))  # as far from both: the earlier
    assert subject_boxes(keypoints[[0, 2]]) is None and subject_boxes(keypoints[:0]) is None


@pytest.mark.skipif("RAYSSL_DATA" not in os.environ, reason="RAYSSL_DATA names no folder of real data")
def test_reprojection_of_real_joints():
    """Mean distance from the 2D keypoints, by camera, over joints found: of a confidence above .4, as in its README.

    With all that have any confidence, 3 to 14 % more joints, the means are 16.7, 9.5, 26.9 and 11.2.
    """
    folder = Path(os.environ["RAYSSL_DATA"]) / "multiview"
    solid, flat = (pq.read_table(folder / f"pose{d}d_single_person.parquet") for d in (3, 2))
    names = [json.loads(table.schema.metadata[b"joint_names"]) for table in (solid, flat)]
    points = np.stack(solid["joints3d"].to_numpy()).reshape(-1, len(names[0]), 3)[np.argsort(solid["frame"])]
    means: dict[float, list[float]] = {0.4: [], 0.0: []}
    for name, lens in read_calibration(folder / "calibration.toml").items():
        mine = flat.filter(np.array([c.replace("cam", "cam_") == name for c in flat["camera"].to_pylist()]))
        found = np.stack(mine["keypoints2d"].to_numpy()).reshape(-1, 25, 3)[np.argsort(mine["frame"])]
        found = found[:, [names[1].index(joint) for joint in names[0]]]
        apart = np.linalg.norm(lens.project(points) - found[..., :2], axis=-1)
        for least in means:
            means[least].append(apart[found[..., 2] > least].mean())
    np.testing.assert_allclose(means[0.4], [15.9, 8.9, 24.1, 9.9], atol=0.06)
    assert max(means[0.4]) < 25 and max(means[0.0]) < 27


def test_a_frame_without_a_box_has_that_of_the_nearest() -> None:
    """Frames 1, 2 and 5 have none: 1 is next to 0, 2 to 3, and 5, between 4 and 6, takes the earlier."""
    found = np.array([[0, 0, 1], [np.nan, 1, 1], [2, 2, 0], [3, 3, 4], [4, 4, 5], [5, 5, -1], [6, 6, 7]])
    filled = nearest_boxes(found)
    assert filled is not None and filled[:, 2].tolist() == [1, 1, 4, 4, 5, 5, 7]
    assert nearest_boxes(found[1:3]) is None
