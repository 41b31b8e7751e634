"""Skeleton, cameras and pictures of synthetic takes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import bodies, video_datasets
from pipelines.bodies import JOINTS, MIRROR, PARENTS
from pipelines.cameras import camera
from pipelines.datasets import DatasetOptions, write
from pipelines.errors import UserError


@pytest.fixture(scope="module")
def take():
    rng = np.random.default_rng(0)
    body = bodies.subject(rng)
    joints, axes = bodies.move(body, 40, rng)
    return body, joints, axes


def test_tables_of_the_skeleton():
    assert len(JOINTS) == len(PARENTS) == len(MIRROR) == 17
    assert all(parent < joint for joint, parent in enumerate(PARENTS))
    for joint, other in enumerate(MIRROR):
        swapped = JOINTS[joint].replace("left", "?").replace("right", "left").replace("?", "right")
        assert JOINTS[other] == swapped and MIRROR[other] == joint
        assert joint == 0 or PARENTS[other] == MIRROR[PARENTS[joint]]


def test_bones_keep_their_lengths_and_a_foot_is_on_the_floor(take):
    body, joints, axes = take
    lengths = np.linalg.norm(joints[:, 1:] - joints[:, list(PARENTS[1:])], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(np.linalg.norm(body.bones[1:], axis=1), lengths.shape))
    np.testing.assert_allclose(body.bones[:, 2], body.bones[list(MIRROR), 2])
    np.testing.assert_allclose(joints[:, [3, 6], 2].min(1), 70)
    np.testing.assert_allclose(axes @ axes.swapaxes(-1, -2), np.broadcast_to(np.eye(3), axes.shape), atol=1e-9)
    assert (np.linalg.det(axes) > 0).all()


def test_it_moves_smoothly():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        joints, _ = bodies.move(bodies.subject(rng), 64, rng)
        step = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
        assert step.mean() > 8 and step.max() < 350  # mm a frame
        assert np.abs(joints[..., :2]).max() < 2000 and joints[..., 2].max() < 2500


def test_knees_and_elbows_bend_one_way():
    """By more than a little, no foot is forward of its knee (along the thigh's y axis), no wrist behind its elbow."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        joints, axes = bodies.move(bodies.subject(rng), 64, rng)
        for hip, knee, foot in ((1, 2, 3), (4, 5, 6)):
            shin = np.einsum("fji,fj->fi", axes[:, hip], joints[:, foot] - joints[:, knee])
            assert shin[:, 1].max() < 60
        for shoulder, elbow, wrist in ((11, 12, 13), (14, 15, 16)):
            forearm = np.einsum("fji,fj->fi", axes[:, shoulder], joints[:, wrist] - joints[:, elbow])
            assert forearm[:, 1].min() > -20


def test_the_cameras_look_at_the_middle():
    cameras = bodies.rig(96, np.random.default_rng(0))
    for lens in cameras.values():
        np.testing.assert_allclose(lens.project(np.array([0, 0, bodies.AIM])), [48, 48], atol=1e-6)
        assert lens.project(np.array([0, 0, 2000.0]))[1] < 48  # up is up
        assert np.linalg.det(lens.rotation) == pytest.approx(1)
    assert np.ptp([lens.translation[2] for lens in cameras.values()]) > 0


@pytest.mark.parametrize("angle", [30.0, 90.0])
def test_the_cameras_stand_on_a_circle(angle):
    cameras = bodies.rig(96, np.random.default_rng(0), angle).values()
    places = np.stack([-lens.rotation.T @ lens.translation for lens in cameras])
    turned = np.diff(np.unwrap(np.arctan2(places[:, 1], places[:, 0])))
    np.testing.assert_allclose(np.linalg.norm(places[:, :2], axis=1), bodies.DISTANCE)
    np.testing.assert_allclose(np.degrees(turned), angle, atol=10)


def test_the_median_of_a_take_is_its_background():
    """But for few pixels: no body stays in its place."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        body = bodies.subject(rng)
        shapes = bodies.capsules(body, *bodies.move(body, 64, rng))
        lens, ground = bodies.rig(64, rng)["camera0"], bodies.room(64, rng)
        median = np.median(bodies.render(shapes, lens, ground), 0)
        assert (abs(median - 255 * ground).max(-1) > 5).mean() < 0.02


def test_the_body_is_drawn_where_its_joints_are(take):
    """On a ground of a colour that no body has, the pixel of each joint in the picture is the body's."""
    body, joints, axes = take
    shapes = bodies.capsules(body, joints, axes)
    ground = np.zeros((64, 64, 3), np.float32)
    for lens in bodies.rig(64, np.random.default_rng(0)).values():
        drawn = bodies.render(shapes, lens, ground)
        place = np.floor(lens.project(joints)).astype(int).clip(0, 63)
        assert (drawn[np.arange(40)[:, None], place[..., 1], place[..., 0]].max(-1) > 0).mean() > 0.99
        assert 0.02 < (drawn.max(-1) > 0).mean() < 0.3


def test_what_is_nearer_hides_what_is_farther():
    """Two balls on one line of sight: the camera sees the nearer one's colour in the middle, whatever their order."""
    lens = bodies.rig(32, np.random.default_rng(0))["camera0"]
    middle = np.array([0, 0, bodies.AIM])
    near = middle + 500 * -lens.rotation[2]
    for order in ([0, 1], [1, 0]):
        ends = np.stack([middle, near])[order][None, :, None].repeat(2, 2)
        colours = np.array([(1, 0, 0), (0, 0, 1)], np.float32)[order]
        shapes = bodies.Capsules(ends, np.full((2, 2), 200.0), colours)
        red, _, blue = bodies.render(shapes, lens, np.zeros((32, 32, 3), np.float32))[0, 16, 16]
        assert blue > 60 and red == 0


def test_a_body_outside_the_picture():
    """Near its edges and far beyond them."""
    lens = bodies.rig(32, np.random.default_rng(0))["camera0"]
    ground = np.full((32, 32, 3), 0.5, np.float32)
    for offset, seen in ((1300.0, True), (9000.0, False), (-9000.0, False)):
        ends = (np.array([0, 0, bodies.AIM]) + offset * lens.rotation[0])[None, None, None].repeat(2, 2)
        drawn = bodies.render(bodies.Capsules(ends, np.full((1, 2), 200.0), np.ones((1, 3), np.float32)), lens, ground)
        assert (drawn != 128).any() == seen


@pytest.mark.parametrize("backgrounds", ["static", "varied"])
def test_poses_as_parquet(tmp_path, backgrounds):
    options = DatasetOptions(str(tmp_path), takes=3, frames=12, size=32, backgrounds=backgrounds)
    train, test = write("poses", options)
    with pq.ParquetFile(train) as file:
        metadata = file.schema_arrow.metadata
        assert file.num_row_groups == 3 and [file.metadata.row_group(i).num_rows for i in range(3)] == [4] * 3
        rows = file.read().to_pylist()
    assert tuple(json.loads(metadata[b"joint_names"])) == JOINTS
    assert tuple(json.loads(metadata[b"joint_parents"])) == PARENTS
    assert tuple(json.loads(metadata[b"joint_mirror"])) == MIRROR
    assert list(rows[0]) == ["take", "camera", "video", "num_frames", "label", "pose", "box"]
    assert [row["camera"] for row in rows[:4]] == list(bodies.CAMERAS)
    assert {row["label"] for row in rows} == {0, 1, 2}
    assert {row["label"] for row in pq.read_table(test).to_pylist()} == {16, 17, 18, 19}
    rigs = {name: camera(entry, name) for name, entry in json.loads(metadata[b"cameras"]).items()}
    world = []
    for row in rows[:4]:
        lens, pose = rigs[row["camera"]], np.array(row["pose"]).reshape(12, 17, 3)
        world.append((pose - lens.translation) @ lens.rotation)  # R' (X - t)
        x, y, side = np.array(row["box"]).reshape(12, 3).T[..., None]
        u, v = np.moveaxis(lens.project(world[-1]), -1, 0)
        assert (np.abs(u - x) < side / 2).all() and (np.abs(v - y) < side / 2).all()
        assert row["num_frames"] == video_datasets.count_frames(row["video"]) == 12
    np.testing.assert_allclose(world[0], world[3], atol=0.01)  # one body, seen by four


def test_poses_too_few_or_too_small(tmp_path):
    for bad in (DatasetOptions(str(tmp_path), takes=0), DatasetOptions(str(tmp_path), frames=1)):
        with pytest.raises(UserError, match="poses needs --takes of at least 1, --frames of at least 2"):
            write("poses", bad)
