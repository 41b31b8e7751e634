"""3D pose: errors against scipy and by hand, the turned camera, mirrors, normalization, the method, skeletons."""

import copy
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from methods import backbones
from methods.backbones import Backbone
from methods.method import Clock, Facts
from methods.metrics.pose import mpjpe, nmpjpe, pmpjpe
from methods.metrics.skeleton import COLOURS, side, skeleton_figure
from methods.pose import (
    METHOD,
    Config,
    Pose,
    centred_camera,
    errors,
    mirrored,
    normalization,
    pose_loss,
)
from pipelines.bodies import JOINTS, MIRROR, PARENTS

CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=5, epoch=0, seed=0)
METRICS = (mpjpe, nmpjpe, pmpjpe)
SMALL = Config(joints=4, root=1, frozen=0)
seeds = st.integers(0, 2**31)
fast = settings(max_examples=60, deadline=None)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int) -> Tensor:
    return torch.from_numpy(Rotation.random(rng=np.random.default_rng(seed)).as_matrix())


def seen(n: int, joints: int = 17, seed: int = 0) -> Tensor:
    """Poses in front of a camera, (n, joints, 3) millimetres: 2 to 8 m away and up to 45 degrees off its axis."""
    root = normal(n, 1, 3, seed=seed).tanh() * torch.tensor([1.0, 1.0, 0.6]) + torch.tensor([0.0, 0.0, 1.6])
    return 3000 * root + 300 * normal(n, joints, 3, seed=seed + 1)


# ----------------------------------------------------------------------------------- errors, by hand


def test_errors_by_hand() -> None:
    """Predicted (0,0,0), (2,0,0), (0,0,4); true (0,0,0), (1,0,0), (0,3,4): distances 0, 1, 3, mean 4/3.

    Scale: <p, t> = 2 + 16 = 18, <p, p> = 4 + 16 = 20, s = .9. Then (0,0,0), (1.8,0,0), (0,0,3.6): distances 0, .8 and
    |(0, 3, .4)| = sqrt(9.16).
    """
    predicted = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 0, 4]]])
    target = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 3, 4]]])
    assert mpjpe(predicted, target).item() == pytest.approx(4 / 3)
    assert nmpjpe(predicted, target).item() == pytest.approx((0.8 + math.sqrt(9.16)) / 3)
    for metric in METRICS:
        assert metric(predicted, target).shape == ()
        assert metric(predicted, target).dtype == torch.float32
        assert metric(predicted, target.double()).dtype == torch.float64


def test_procrustes_by_hand() -> None:
    """Predicted a line of length 2 along x, (-1,0,0), (0,0,0), (1,0,0); true (5,-2,0), (5,0,0), (5,3,0).

    The true centre is (5, 1/3, 0); centred y: -7/3, -1/3, 8/3. The line is turned to y with s = <x, y> / <x, x> =
    (7/3 + 8/3) / 2 = 5/2: y = -5/2, 0, 5/2. Distances 1/6, 1/3, 1/6, mean 2/9.
    """
    predicted = torch.tensor([[[-1.0, 0, 0], [0, 0, 0], [1, 0, 0]]])
    target = torch.tensor([[[5.0, -2, 0], [5, 0, 0], [5, 3, 0]]])
    assert pmpjpe(predicted, target).item() == pytest.approx(2 / 9)


def test_a_mirrored_pose_is_not_turned_into_its_image() -> None:
    """Axes' unit vectors +-e with three lengths, and their mirror image in x: turning may swap no hand.

    Points +-a_i e_i, a = (1, 2, 3), the target with x negated: the same points with the first pair's names swapped. The
    covariance is diag(-2, 8, 18), all of whose proper rotations reach at most 18 + 8 - 2 = 24 of <p, p> = 28: s = 6/7.
    Identity is one that reaches it: errors: first pair |6/7 + 1| = 13/7, then 2 / 7 and 3 / 7; mean 18/21.
    """
    lengths = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    predicted = torch.cat([lengths, -lengths])[None]
    target = predicted * torch.tensor([-1.0, 1, 1])
    assert pmpjpe(predicted, target).item() == pytest.approx(18 / 21)


def test_errors_are_means_over_poses_each_with_its_own_alignment() -> None:
    predicted, target = normal(5, 6, 3), normal(5, 6, 3, seed=1)
    for metric in METRICS:
        apart = [metric(p[None], t[None]) for p, t in zip(predicted, target, strict=True)]
        torch.testing.assert_close(metric(predicted, target), torch.stack(apart).mean())


# ----------------------------------------------------------------------------------- errors, scipy's


@pytest.mark.parametrize("joints", [4, 17])
def test_procrustes_is_scipys(joints: int) -> None:
    """`align_vectors` gives the best proper rotation; the scale is then that of least squares. `procrustes` works on
    centred poses of norm 1 and may mirror: it agrees where its rotation is proper, and is a lower bound elsewhere."""
    proper = 0
    for seed in range(200):
        predicted, target = normal(joints, 3, seed=seed), normal(joints, 3, seed=seed + 1000)
        if seed % 2:  # near: the best is then a rotation
            target = 2 * (predicted + 0.3 * target) @ rotation(seed).T + 7
        p, t = (predicted - predicted.mean(0)).numpy(), (target - target.mean(0)).numpy()
        turned = Rotation.align_vectors(t, p)[0].apply(p)
        aligned = (turned * t).sum() / (p * p).sum() * turned
        ours = pmpjpe(predicted[None], target[None]).item()
        assert ours == pytest.approx(np.linalg.norm(aligned - t, axis=1).mean(), rel=1e-9)
        theirs, moved, disparity = procrustes(t, p)
        if np.linalg.det(p.T @ t) > 0:
            proper += 1
            assert ours == pytest.approx(np.linalg.norm(theirs - moved, axis=1).mean() * np.linalg.norm(t), rel=1e-9)
        assert disparity * (t * t).sum() <= ((aligned - t) ** 2).sum() * (1 + 1e-9)
    assert 100 <= proper < 200


def test_scale_is_numpys_least_squares() -> None:
    predicted, target = normal(50, 17, 3), normal(50, 17, 3, seed=1)
    expected = []
    for p, t in zip(predicted.numpy(), target.numpy(), strict=True):
        scale = np.linalg.lstsq(p.reshape(-1, 1), t.reshape(-1), rcond=None)[0]
        expected.append(np.linalg.norm(scale * p - t, axis=1).mean())
    assert nmpjpe(predicted, target).item() == pytest.approx(np.mean(expected), rel=1e-12)


# -------------------------------------------------------------------------------- errors, properties


@fast
@given(seed=seeds, scale=st.floats(1e-2, 1e2), far=st.floats(-1e2, 1e2))
def test_what_each_error_forgives(seed: int, scale: float, far: float) -> None:
    pose, other = normal(3, 9, 3, seed=seed), normal(3, 9, 3, seed=seed + 1)
    moved = scale * pose @ rotation(seed).T + far
    assert pmpjpe(moved, pose).item() == pytest.approx(0, abs=1e-6)
    assert pmpjpe(scale * other @ rotation(seed).T + far, pose).item() == pytest.approx(pmpjpe(other, pose).item())
    assert nmpjpe(scale * pose, pose).item() == pytest.approx(0, abs=1e-9)
    assert nmpjpe(scale * other, pose).item() == pytest.approx(nmpjpe(other, pose).item())
    assert mpjpe(pose + 2, pose).item() == pytest.approx(2 * math.sqrt(3))
    for metric in METRICS:  # the target's scale is the error's unit; the order of joints is all one
        assert metric(scale * other, scale * pose).item() == pytest.approx(scale * metric(other, pose).item())
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        assert metric(other[:, order], pose[:, order]).item() == pytest.approx(metric(other, pose).item())


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_degenerate_poses(rows: int) -> None:
    """Points that span a point, a line or a plane. One point goes to the target's mean; the others have several best
    rotations of one error."""
    target = normal(2, 6, 3)
    point = torch.full((2, 6, 3), 0.1)
    to_mean = mpjpe(target.mean(1, keepdim=True).expand(2, 6, 3), target)
    torch.testing.assert_close(pmpjpe(point, target), to_mean)
    torch.testing.assert_close(pmpjpe(torch.zeros(2, 6, 3), target), to_mean)
    assert pmpjpe(target, point).item() == pytest.approx(0, abs=1e-12)
    assert nmpjpe(torch.zeros(2, 6, 3), target).item() == pytest.approx(target.norm(dim=2).mean().item())
    assert pmpjpe(torch.zeros(2, 1, 3), torch.ones(2, 1, 3)).item() == 0
    flat = normal(2, 6, 3, seed=3) @ torch.diag(torch.tensor([1.0, 1.0, 0.0]).double().roll(rows))
    if rows == 1:
        flat = flat * torch.tensor([0.0, 0.0, 1.0]).double()
    turned = 3 * flat @ rotation(1).T - 5
    assert pmpjpe(turned, flat).item() == pytest.approx(0, abs=1e-9)
    assert pmpjpe(turned, target).item() == pytest.approx(pmpjpe(flat, target).item())


@pytest.mark.parametrize("metric", METRICS)
def test_bad_poses(metric: Callable[[Tensor, Tensor], Tensor]) -> None:
    pose = normal(2, 5, 3)
    for value in (math.nan, math.inf):
        broken = pose.clone()
        broken[1, 2, 0] = value
        for pair in ((broken, pose), (pose, broken)):
            with pytest.raises(ValueError, match="not finite"):
                metric(*pair)
    for other in (pose[:1], pose[0], pose[..., :2], pose[:0]):
        with pytest.raises(ValueError, match=r"\(B, J, 3\)"):
            metric(other, pose)
    with pytest.raises(ValueError, match=r"\(B, J, 3\)"):
        metric(pose[:0], pose[:0])


def test_the_rule_of_the_root() -> None:
    """17 joints, the root exact, the 16 others off by 30 mm: a mean over 17 of 30 * 16 / 17, times 17 / 16 is 30."""
    target = centred_camera(seen(4))
    away = torch.nn.functional.normalize(normal(4, 17, 3, seed=5), dim=2)
    away[:, 0] = 0
    predicted = target + 30 * away
    found = errors(predicted, target)
    assert found["mpjpe"] == pytest.approx(30)
    assert mpjpe(predicted, target).item() == pytest.approx(30 * 16 / 17)
    assert found["nmpjpe"] == pytest.approx(nmpjpe(predicted, target).item() * 17 / 16)
    assert found["nmpjpe"] == pytest.approx(nmpjpe(predicted[:, 1:], target[:, 1:]).item())
    assert found["pmpjpe"] == pytest.approx(pmpjpe(predicted, target).item() * 17 / 16)
    with pytest.raises(ValueError, match="origin"):
        errors(predicted, seen(4))
    with pytest.raises(ValueError, match="origin"):
        errors(predicted, target, root=3)
    with pytest.raises(ValueError, match="at least one more"):
        errors(target[:, :1], target[:, :1])


# ---------------------------------------------------------------------------------- camera and mirror


def test_the_turned_camera_by_hand() -> None:
    """Root (0, 3, 4), 5 away. The rotation about x takes (0, .6, .8) to (0, 0, 1): y' = .8 y - .6 z, z' = .6 y + .8 z.

    A joint at root + (1, 1, 0): (1, .8, .6). On the axis, in the origin: nothing turns. Behind, (0, 0, -2): y and z
    change their signs.
    """
    step = torch.tensor([1.0, 1.0, 0.0])
    roots = torch.tensor([[0.0, 3, 4], [0, 0, 7], [0, 0, 0], [0, 0, -2]])
    pose = torch.stack([roots + step, roots], 1)
    expected = torch.tensor([[1, 0.8, 0.6], [1, 1, 0], [1, 1, 0], [1, -1, 0]])
    found = centred_camera(pose, root=1)
    torch.testing.assert_close(found[:, 0], expected)
    assert (found[:, 1] == 0).all()


@fast
@given(seed=seeds, wild=st.booleans())
def test_the_turned_camera_is_the_smallest_rotation(seed: int, wild: bool) -> None:
    """It is scipy's rotation by the angle between the root and the axis, about what is orthogonal to both; for any
    root, also one behind the camera. Twice is once."""
    pose = 1000 * normal(4, 6, 3, seed=seed) if wild else seen(4, 6, seed=seed)
    found = centred_camera(pose, root=2)
    for before, after in zip(pose.numpy(), found.numpy(), strict=True):
        axis = np.cross(before[2], [0, 0, 1])
        angle = math.atan2(np.linalg.norm(axis), before[2, 2])
        turn = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis))
        np.testing.assert_allclose(turn.apply(before) - [0, 0, np.linalg.norm(before[2])], after, atol=1e-6)
    torch.testing.assert_close(centred_camera(found, root=2), found)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(pose, pose), rtol=1e-5, atol=1e-4)
    single = centred_camera(pose.float(), root=2)
    assert single.dtype == torch.float32
    if not wild:
        torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=0.05)


@fast
@given(seed=seeds)
def test_mirroring(seed: int) -> None:
    """Twice is none; distances between joints move with their names; it commutes with the turned camera; x is -x."""
    pose = seen(3, seed=seed)
    found = mirrored(pose, MIRROR)
    assert torch.equal(mirrored(found, MIRROR), pose)
    torch.testing.assert_close(centred_camera(found), mirrored(centred_camera(pose), MIRROR))
    assert torch.equal(found[:, 4], pose[:, 1] * torch.tensor([-1.0, 1, 1]))
    assert torch.equal(found[:, 0, 0], -pose[:, 0, 0])


# --------------------------------------------------------------------------------------- the method


def build(config: Config = SMALL) -> Pose:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    backbone = Backbone(nn.Sequential(*layers), 4, [0.5] * 3, [0.25] * 3, {"stage1": "2"})
    return METHOD(config, backbone, Facts(12, None, {"image": ((3, 8, 8), 0)}))


def batch(joints: int = 4, n: int = 6) -> dict[str, Tensor]:
    images = torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"image": images, "pose": seen(n, joints).float(), "index": torch.arange(n)}


def normalized(poses: Tensor) -> Config:
    mean, std = normalization(poses, root=1)
    return Config(joints=4, root=1, mean=mean, std=std, frozen=0)


def test_the_loss_by_hand() -> None:
    """Differences (1, 2, 2) and (0, 0, 1): squared norms 9 and 1, mean 5."""
    assert pose_loss(torch.tensor([[1.0, 2, 2], [0, 0, 1]]), torch.zeros(2, 3)).item() == 5


def test_the_loss_is_of_normalized_poses() -> None:
    """A naive twin, joint by joint; and the logged error is that of `errors`."""
    data = batch()
    config = normalized(data["pose"])
    method = build(config).eval()
    loss, log = method(data, CLOCK, "model")
    predicted, target = method.predict(data["image"]), centred_camera(data["pose"], 1)
    assert predicted.shape == (6, 4, 3) and (predicted[:, 1] == 0).all()
    total = 0.0
    for p, t in zip(predicted.tolist(), target.tolist(), strict=True):
        for place, joint in enumerate((0, 2, 3)):
            for axis in range(3):
                total += ((p[joint][axis] - t[joint][axis]) / config.std[3 * place + axis]) ** 2
    assert loss.item() == pytest.approx(total / 6, rel=1e-4)
    assert log["mpjpe"].item() == pytest.approx(errors(predicted.detach(), target, root=1)["mpjpe"], rel=1e-5)
    assert not log["mpjpe"].requires_grad
    data["pose"][2, 3, 1] = math.nan
    assert method(data, CLOCK, "model").loss.isnan()


def test_normalization() -> None:
    """Normalized targets have mean 0 and standard deviation 1; a coordinate that never varies keeps std 1."""
    poses = seen(40, 4)
    mean, std = normalization(poses, root=1)
    values = centred_camera(poses, 1)[:, [0, 2, 3]].flatten(1).numpy()
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(std, values.std(0), rtol=1e-9)
    assert normalization(poses[:1].float(), root=1)[1] == (1.0,) * 9
    broken = poses.clone()
    broken[3, 2, 1] = math.nan
    for bad, words in ((broken, "not finite"), (poses[:0], "at least 1"), (poses[0], "N, J, 3")):
        with pytest.raises(ValueError, match=words):
            normalization(bad, root=1)
    with pytest.raises(ValueError, match="above root 4"):
        normalization(poses, root=4)


def test_it_starts_near_the_mean_pose_and_learns() -> None:
    data = batch()
    config = normalized(data["pose"])
    method = build(config)
    nn.init.zeros_(method.head.weight)
    pose = method.eval().predict(data["image"])
    np.testing.assert_allclose(pose[:, [0, 2, 3]].flatten(1).detach(), np.tile(config.mean, (6, 1)), rtol=1e-5)
    method.train()
    optimizer = torch.optim.Adam(method.parameters_of("model"), lr=0.05)
    losses = []
    for _ in range(60):
        step = method(data, CLOCK, "model")
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.item())
    assert losses[0] == pytest.approx(9, rel=1e-3)  # 9 coordinates of variance 1
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("frozen", range(5))
def test_frozen_stages_stay(frozen: int) -> None:
    """ResNet-18: the first stages and their stem have no gradient and keep batch norm's statistics; the others move."""
    torch.manual_seed(0)
    backbone = backbones.build("resnet18", image=(3, 16, 16), mean=[0.5] * 3, std=[0.25] * 3)
    method = METHOD(Config(frozen=frozen), backbone, Facts(12, None, {"image": ((3, 16, 16), 0)}))
    before = copy.deepcopy(backbone.state_dict())
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 3, 16, 16), generator=generator, dtype=torch.uint8)
    method({"image": images, "pose": seen(2)}, CLOCK, "model").loss.backward()
    optimizer = torch.optim.SGD(method.parameters_of("model"), lr=1e-3)
    optimizer.step()
    kept = [f"network.layer{n}." for n in range(1, frozen + 1)] + ["network.conv1.", "network.bn1."] * (frozen > 0)
    held = {id(p) for p in method.parameters_of("model")}
    for name, p in backbone.named_parameters():
        still = name.startswith(tuple(kept))
        assert (p.grad is None) == still and p.requires_grad != still and (id(p) in held) != still, name
    for name, value in backbone.state_dict().items():
        still = name.startswith(tuple(kept)) or name in ("mean", "std")
        assert torch.equal(value, before[name]) == still, name
    assert method.head.weight.grad is not None
    method.eval()
    assert torch.equal(method.predict(images), method.predict(images))


def test_the_normalization_is_part_of_the_state() -> None:
    data = batch()
    trained, fresh = build(normalized(data["pose"])).eval(), build().eval()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.predict(data["image"]), trained.predict(data["image"]))


def test_wrong_options_are_refused() -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"joints": 1}, "method.joints"),
        ({"root": 17}, "method.root"),
        ({"mean": (0.0,) * 51}, "method.mean.* 48; got 51"),
        ({"std": (1.0,) * 3}, "method.std"),
        ({"std": (0.0,) * 48}, "method.std is above 0"),
        ({"std": (math.nan,) * 48}, "method.std is above 0"),
        ({"mean": (math.nan,) * 48}, "method.mean is finite"),
        ({"frozen": -1}, "method.frozen"),
    ]
    for options, words in wrong:
        with pytest.raises(ValueError, match=words):
            Config(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"method\.frozen 3 .* names stage1"):
        build(Config())
    plain = Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, [0.5] * 3, [0.25] * 3)
    facts = Facts(12, None, {"image": ((3, 8, 8), 0)})
    with pytest.raises(ValueError, match="names none: choose 0"):
        METHOD(Config(), plain, facts)
    METHOD(Config(frozen=0), plain, facts)
    with pytest.raises(ValueError, match=r"^pose takes the view image, got left"):
        METHOD(Config(frozen=0), plain, Facts(12, None, {"left": ((3, 8, 8), 0)}))


# ----------------------------------------------------------------------------------------- skeletons


def test_sides() -> None:
    names = ["left_hip", "LHip", "hip_l", "Left Knee", "l_hip", "lAnkle", "hip.left"]
    assert [side(name) for name in names] == ["left"] * 7
    assert [side(name) for name in ("right hip", "RHip", "knee_R")] == ["right"] * 3
    assert [side(name) for name in ("lower back", "root", "Root", "LowerBack", "head", "neck_roll")] == [""] * 6


@pytest.mark.parametrize("channels", [1, 3])
def test_skeletons(channels: int) -> None:
    target = centred_camera(seen(2))
    predicted = target.clone()
    predicted[1, 3] += torch.tensor([0.0, 170.0, 0.0])  # a mean of 10 mm
    images = torch.zeros(2, channels, 12, 8, dtype=torch.uint8)
    figure = skeleton_figure(images, predicted, target, PARENTS, names=JOINTS)
    [axis] = figure.axes
    written = [text.get_text() for text in axis.texts]
    titles = ["true, front", "true, side", "predicted, front", "predicted, side"]
    assert written == [*titles, "left", "right", "0 mm", "10 mm"]
    lines = [c for c in axis.collections if isinstance(c, LineCollection)]
    assert len(lines) == 2 * 6 and all(len(each.get_segments()) == 16 for each in lines)
    first = np.array(lines[0].get_colors())
    np.testing.assert_array_equal(first[:6], [to_rgba(COLOURS[word]) for word in ("right", "left") for _ in range(3)])
    segment = np.array(lines[0].get_segments()[0])  # the right hip, then the pelvis: x to the right, y down, one scale
    step = target[0, 1] - target[0, 0]
    assert (segment[0] - segment[1])[0] / (segment[0] - segment[1])[1] == pytest.approx((step[0] / step[1]).item())
    sideways = np.array(lines[1].get_segments()[0])
    assert (sideways[0] - sideways[1])[0] / (segment[0] - segment[1])[0] == pytest.approx((step[2] / step[0]).item())
    file = io.BytesIO()
    figure.savefig(file)
    assert file.getvalue()[1:4] == b"PNG"
    assert axis.get_ylim()[0] > axis.get_ylim()[1]


def test_skeletons_that_do_not_fit() -> None:
    pose, images = torch.zeros(2, 17, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    skeleton_figure(images, pose, pose, PARENTS)  # all in one point, no names
    with pytest.raises(ValueError, match=r"\(N, J, 3\)"):
        skeleton_figure(images, pose[:1], pose, PARENTS)
    with pytest.raises(ValueError, match="uint8"):
        skeleton_figure(images.float(), pose, pose, PARENTS)
    with pytest.raises(ValueError, match="parents and names"):
        skeleton_figure(images, pose, pose, PARENTS[:-1])
    with pytest.raises(ValueError, match="not finite"):
        skeleton_figure(images, pose * math.nan, pose, PARENTS)
