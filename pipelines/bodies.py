"""Synthetic takes: an articulated body that moves, seen by four calibrated cameras that stand still.

The skeleton has Human3.6M's 17 joints in its order. Lengths are millimetres. The world is z up with the floor at 0; a
body's own axes are x to its right, y forward, z up. Angles of joints are smooth random functions of time, with a gait
of random strength on top; the body turns and walks about. A foot always touches the floor. Frames are taken for 12.5 a
second: a gait's period is 14 to 22 frames.

A picture is made of capsules (limbs, trunk, head, and markers that tell front from back: face, chest, toes), each
with its projected radius and a shading by height and side, drawn from the farthest to the nearest. Left and right limbs
of a body look alike. A subject is a body's proportions and colours.

Legend: F frames, J = 17 joints, S pixels a side, P capsules.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from pipelines.cameras import Camera
from pipelines.motions import smooth

JOINTS = (
    *("hip", "right hip", "right knee", "right foot", "left hip", "left knee", "left foot", "spine", "thorax"),
    *("neck", "head", "left shoulder", "left elbow", "left wrist", "right shoulder", "right elbow", "right wrist"),
)
"""Human3.6M's usual 17; `neck` is its Neck/Nose."""
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
MIRROR = (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13)
"""Joint j of a mirrored picture is joint MIRROR[j] of the body."""

CAMERAS = ("camera0", "camera1", "camera2", "camera3")
DISTANCE, FIELD, AIM, WANDER = 5500.0, 4000.0, 950.0, 900.0
"""Of the cameras from the middle; side of what they show there; height at which they look; how far a body goes from the
middle along either side of the room, far enough that no place hides its background for half of a take. mm."""

_REST = np.array(
    [
        *((0, 0, 0), (125, 0, -20), (0, 0, -440), (0, 0, -430), (-125, 0, -20), (0, 0, -440), (0, 0, -430)),
        *((0, 0, 235), (0, 0, 250), (0, 40, 120), (0, -15, 115)),
        *((-165, 0, -10), (0, 0, -285), (0, 0, -250), (165, 0, -10), (0, 0, -285), (0, 0, -250)),
    ],
    np.float64,
)
"""From a joint's parent to it, standing with the arms down."""


class Subject(NamedTuple):
    bones: np.ndarray  # float64 (J, 3), as `_REST`
    girth: float  # factor of all radii
    colours: np.ndarray  # float32 (7, 3) in [0, 1]: skin, hair, shirt, sleeves, trousers, shoes, chest marker


def subject(rng: np.random.Generator) -> Subject:
    """Left and right are alike."""
    stature = rng.uniform(0.9, 1.08)
    factors = rng.uniform(0.92, 1.08, len(JOINTS))
    factors = (factors + factors[list(MIRROR)]) / 2
    skin = rng.uniform(0.3, 0.95) * np.array([1.0, 0.8, 0.66])
    clothes = rng.uniform(0.08, 0.95, (5, 3))
    sleeves = clothes[0] if rng.uniform() < 0.6 else skin
    colours = np.stack([skin, 0.5 * clothes[1], clothes[0], sleeves, clothes[2], 0.6 * clothes[3], 1 - clothes[0]])
    return Subject(_REST * (stature * factors)[:, None], rng.uniform(0.88, 1.2), colours.astype(np.float32))


def _wander(frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(F, count) smooth functions in [-1, 1]: three sines each, with periods of 16 to 70 frames."""
    period = rng.uniform(16, 70, (3, count))
    share = rng.dirichlet([1.0, 1.0, 1.0], count).T
    time = np.arange(frames)[:, None, None]
    return (share * np.sin(2 * np.pi * (time / period + rng.uniform(size=(3, count))))).sum(1)


def move(body: Subject, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A take's motion -> joints in the world (F, J, 3), mm, and the joints' axes (F, J, 3, 3), as columns.

    A joint's angles turn the bones that begin there.
    """
    gait = rng.uniform(0, 1) * (rng.uniform() < 0.75)
    cycle = 2 * np.pi * (np.arange(frames) / rng.uniform(14, 22) + rng.uniform())
    noise = iter(_wander(frames, 40, rng).T)
    lift = rng.uniform(0, 110, 2)  # of each arm, on average
    squat = rng.uniform(0, 60) * (rng.uniform() < 0.4) * (0.5 + 0.5 * next(noise))

    angles = np.zeros((frames, len(JOINTS), 3))  # degrees about x, y, z of the parent's axes
    for side, hip, shoulder in ((1, 1, 14), (-1, 4, 11)):
        step = np.sin(cycle + (0 if side == 1 else np.pi))
        bend = np.maximum(0, np.cos(cycle + (0 if side == 1 else np.pi)))
        angles[:, hip, 0] = 8 + 30 * gait * step + (1 - 0.6 * gait) * 18 * next(noise) + squat
        angles[:, hip, 1] = -side * (7 + 9 * next(noise))
        angles[:, hip, 2] = -side * (6 + 14 * next(noise))
        angles[:, hip + 1, 0] = -(12 + 50 * gait * bend + 10 * next(noise) + 1.8 * squat)
        raised = lift[0 if side == 1 else 1]
        angles[:, shoulder, 0] = -28 * gait * step + 45 * next(noise) + 0.7 * raised
        angles[:, shoulder, 1] = -side * (22 + 16 * next(noise) + 0.4 * raised)
        angles[:, shoulder, 2] = side * 35 * next(noise)
        angles[:, shoulder + 1, 0] = 60 + 50 * next(noise)
    angles[:, 7] = np.stack([-6 - 0.4 * squat + 9 * next(noise), 7 * next(noise), 10 * next(noise)], 1)
    angles[:, 8] = np.stack([-4 + 8 * next(noise), 6 * next(noise), 12 * next(noise)], 1)
    angles[:, 9] = np.stack([10 * next(noise), 10 * next(noise), 30 * next(noise)], 1)
    angles[:, 0, 2] = rng.uniform(0, 360) + rng.uniform(-3, 3) * np.arange(frames) + 40 * next(noise)

    local = Rotation.from_euler("zyx", angles.reshape(-1, 3)[:, ::-1], degrees=True).as_matrix()
    axes = local.reshape(frames, len(JOINTS), 3, 3).copy()
    joints = np.zeros((frames, len(JOINTS), 3))
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            axes[:, joint] = axes[:, parent] @ axes[:, joint]
            joints[:, joint] = joints[:, parent] + axes[:, parent] @ body.bones[joint]
    path = np.stack([next(noise), next(noise)], 1)
    joints[:, :, :2] += (WANDER * path / np.abs(path).max(0))[:, None]
    joints[:, :, 2] += 70 - joints[:, [3, 6], 2].min(1, keepdims=True)
    return joints, axes


def rig(size: int, rng: np.random.Generator, angle: float = 30.0) -> dict[str, Camera]:
    """Four cameras on a circle round the middle, `angle` degrees from each other but for up to 5, 1.2 to 2 m high."""
    cameras = {}
    for i, name in enumerate(CAMERAS):
        azimuth = np.radians(45 + angle * i + rng.uniform(-5, 5))
        place = np.array([DISTANCE * np.cos(azimuth), DISTANCE * np.sin(azimuth), rng.uniform(1200, 2000)])
        forward = np.array([0, 0, AIM]) - place
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        focal = size * DISTANCE / FIELD
        matrix = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
        cameras[name] = Camera(matrix, np.zeros(5), rotation, -rotation @ place, (size, size))
    return cameras


def room(size: int, rng: np.random.Generator) -> np.ndarray:
    """A background: float32 (S, S, 3) in [0, 1], a wall, a floor and what stands before them."""
    picture = np.empty((size, size, 3))
    horizon = round(size * rng.uniform(0.42, 0.6))
    for part, nodes in ((slice(0, horizon), 7), (slice(horizon, size), 12)):
        stain = smooth(rng.uniform(-0.5, 0.5, (nodes, nodes)), size)[part, :, None]
        picture[part] = rng.uniform(0.25, 0.8, 3) + 0.3 * stain
    for _ in range(rng.integers(3, 7)):
        left, top = rng.uniform(-0.1, 0.95, 2) * size
        width, height = rng.uniform(0.06, 0.3, 2) * size
        shade = rng.uniform(0.1, 0.9, 3) + 0.1 * smooth(rng.uniform(-1, 1, (9, 9)), size)[..., None]
        cut = np.s_[max(0, int(top)) : max(0, int(top + height)), max(0, int(left)) : max(0, int(left + width))]
        picture[cut] = shade[cut]
    return picture.clip(0, 1).astype(np.float32)


class Capsules(NamedTuple):
    ends: np.ndarray  # float64 (F, P, 2, 3), mm, world
    radii: np.ndarray  # float64 (P, 2), mm
    colours: np.ndarray  # float32 (P, 3)


_LIMBS = (  # joint, joint, radius at each, colour (as in `Subject`)
    *((1, 2, 88, 62, 4), (2, 3, 60, 42, 4), (4, 5, 88, 62, 4), (5, 6, 60, 42, 4), (1, 4, 95, 95, 4)),
    *((0, 7, 118, 118, 2), (7, 8, 122, 118, 2), (11, 14, 72, 72, 2), (8, 9, 55, 52, 0), (9, 10, 88, 80, 1)),
    *((11, 12, 56, 46, 3), (12, 13, 43, 34, 0), (14, 15, 56, 46, 3), (15, 16, 43, 34, 0)),
    *((13, 13, 46, 46, 0), (16, 16, 46, 46, 0)),
)
_MARKS = (  # joint, place of each end in the joint's axes, radius, colour
    *((3, (0, 0, -20), (0, 150, -40), 40, 5), (6, (0, 0, -20), (0, 150, -40), 40, 5)),
    *((9, (0, 42, 48), (0, 42, 62), 72, 0), (7, (0, 92, 120), (0, 92, 190), 45, 6)),
)


def capsules(body: Subject, joints: np.ndarray, axes: np.ndarray) -> Capsules:
    first, second, *_ = zip(*_LIMBS, strict=True)
    limbs = np.stack([joints[:, first], joints[:, second]], 2)
    marks = [
        np.stack([joints[:, joint] + axes[:, joint] @ np.array(end) for end in (one, other)], 1)
        for joint, one, other, *_ in _MARKS
    ]
    radii = [limb[2:4] for limb in _LIMBS] + [(mark[3], mark[3]) for mark in _MARKS]
    colour = [limb[4] for limb in _LIMBS] + [mark[4] for mark in _MARKS]
    return Capsules(
        np.concatenate([limbs, np.stack(marks, 1)], 1), np.array(radii) * body.girth, body.colours[np.array(colour)]
    )


_LIGHT = np.array([0.35, 0.2, 0.91])  # towards it, in the world


def render(shapes: Capsules, camera: Camera, background: np.ndarray) -> np.ndarray:
    """What an undistorted camera sees before `background` (S, S, 3) -> uint8 (F, S, S, 3)."""
    frames, size = len(shapes.ends), len(background)
    depth = camera.to_camera(shapes.ends)[..., 2]  # (F, P, 2)
    ends = camera.project(shapes.ends).astype(np.float32)  # (F, P, 2, 2)
    radii = (camera.matrix[0, 0] * shapes.radii / depth).astype(np.float32)
    order = np.argsort(-depth.mean(2), 1)
    ends, radii = (np.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), 1) for x in (ends, radii))
    colours = shapes.colours[order]  # (F, P, 3)

    reach = radii.max(2)[..., None] + 1
    low = np.floor(ends.min(2) - reach).astype(int)  # (F, P, 2), of the window that holds a capsule
    extent = np.ceil(ends.max(2) + reach).astype(int) - low
    pad = min(int(extent.max()), size)
    stride = size + 2 * pad
    canvas = np.pad(background, ((pad, pad), (pad, pad), (0, 0)), "edge")
    canvas = np.broadcast_to(canvas.reshape(1, -1, 3), (frames, stride**2, 3)).copy()
    light = (camera.rotation @ _LIGHT).astype(np.float32)
    for i in range(ends.shape[1]):
        width, height = np.minimum(extent[:, i].max(0), pad)
        column = low[:, i, 0, None].clip(-pad, size) + np.arange(width)  # (F, w); wholly outside where it is clipped
        row = low[:, i, 1, None].clip(-pad, size) + np.arange(height)
        place = ((row + pad) * stride)[:, :, None] + (column + pad)[:, None, :]
        (ax, ay), (bx, by) = np.moveaxis(ends[:, i], 0, -1)[..., None, None]
        dx = (column + np.float32(0.5))[:, None, :].astype(np.float32) - ax
        dy = (row + np.float32(0.5))[:, :, None].astype(np.float32) - ay
        lx, ly = bx - ax, by - ay
        along = ((dx * lx + dy * ly) / np.maximum(lx**2 + ly**2, 1e-6)).clip(0, 1)
        ra, rb = radii[:, i].T[..., None, None]
        radius = ra + along * (rb - ra)
        ex, ey = (dx - along * lx) / radius, (dy - along * ly) / radius
        square = ex**2 + ey**2
        facing = light[0] * ex + light[1] * ey - light[2] * np.sqrt((1 - square).clip(0))
        shade = 0.6 + 0.4 * facing.clip(0, 1) - 0.15 * square.clip(0, 1)
        cover = ((1 - np.sqrt(square)) * radius + 0.5).clip(0, 1)
        which = np.arange(frames)[:, None, None]
        under = canvas[which, place]
        canvas[which, place] = under + cover[..., None] * (shade[..., None] * colours[:, i, None, None] - under)
    pixels = canvas.reshape(frames, stride, stride, 3)[:, pad : pad + size, pad : pad + size]
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)
