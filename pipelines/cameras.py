"""Calibrated cameras: `read_calibration("calibration.toml")["cam_01"].project(points)`.

A point X of the world, in the calibration's unit, lies at R X + t in the camera's coordinates (x right, y down,
z forward), and there at the pixel that `Camera.project` gives: OpenCV's model with the radial coefficients k1, k2, k3
and the tangential p1, p2. Pixels are those of a frame of the calibration's size: other frames are scaled to it, or the
camera to them by `Camera.resized`.

Legend: N points, F frames, J joints, K keypoints of a frame.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from pipelines.errors import UserError


@dataclass(frozen=True)
class Camera:
    matrix: np.ndarray
    """K, float64 (3, 3), in pixels."""
    distortion: np.ndarray
    """float64 (5,): k1, k2, p1, p2, k3."""
    rotation: np.ndarray
    """R, float64 (3, 3)."""
    translation: np.ndarray
    """t, float64 (3,), in the calibration's unit."""
    size: tuple[int, int]
    """Width and height in pixels."""

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World (..., 3) -> camera coordinates (..., 3)."""
        return points @ self.rotation.T + self.translation

    def project(self, points: np.ndarray) -> np.ndarray:
        """World (..., 3) -> pixels (..., 2); NaN for what is not in front of the camera."""
        x, y, z = np.moveaxis(self.to_camera(points), -1, 0)
        z = np.where(z > 0, z, np.nan)
        x, y = x / z, y / z
        k1, k2, p1, p2, k3 = self.distortion
        square = x**2 + y**2
        radial = 1 + square * (k1 + square * (k2 + square * k3))
        u = x * radial + 2 * p1 * x * y + p2 * (square + 2 * x**2)
        v = y * radial + p1 * (square + 2 * y**2) + 2 * p2 * x * y
        return np.stack([u, v, np.ones_like(u)], -1) @ self.matrix[:2].T

    def resized(self, width: int, height: int) -> "Camera":
        """The same camera, whose frames are resized to width x height pixels."""
        scale = np.array([width / self.size[0], height / self.size[1], 1.0])
        return replace(self, matrix=self.matrix * scale[:, None], size=(width, height))

    def entry(self) -> dict[str, list]:
        """What `camera` reads: the table of a calibration file."""
        return {
            "size": list(self.size),
            "matrix": self.matrix.tolist(),
            "distortions": self.distortion.tolist(),
            "rotation": Rotation.from_matrix(self.rotation).as_rotvec().tolist(),
            "translation": self.translation.tolist(),
        }


def camera(entry: Mapping[str, object], where: str) -> Camera:
    """A camera from a table with `size` (width, height), `matrix` (3 x 3), `distortions` (up to k1, k2, p1, p2, k3;
    may be absent), `rotation` (a Rodrigues vector, or 3 x 3) and `translation`. `where` is named in errors.

    Raises:
        UserError: a key is missing or of a wrong shape, a fisheye lens.
    """
    if entry.get("fisheye"):
        raise UserError(f"{where} is a fisheye lens: only the usual model of lenses is known; undistort its frames")

    def numbers(key: str, *shapes: tuple[int, ...]) -> np.ndarray:
        try:
            values = np.array(entry[key], np.float64)
        except KeyError:
            raise UserError(f"{where} has no {key}: a camera needs size, matrix, rotation and translation") from None
        except (TypeError, ValueError):
            raise UserError(f"{where}: {key} is not made of numbers") from None
        if values.shape not in shapes or not np.isfinite(values).all():
            shown = " or ".join(" x ".join(map(str, shape)) for shape in shapes)
            raise UserError(f"{where}: {key} is {shown} finite numbers")
        return values

    given = numbers("distortions", *((n,) for n in range(6))) if "distortions" in entry else np.zeros(5)
    rotation = numbers("rotation", (3,), (3, 3))
    if rotation.ndim == 1:
        rotation = Rotation.from_rotvec(rotation).as_matrix()
    elif not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise UserError(f"{where}: rotation is not a rotation matrix: R R' is not 1, or it mirrors")
    width, height = numbers("size", (2,))
    distortion = np.concatenate([given, np.zeros(5 - len(given))])
    return Camera(
        numbers("matrix", (3, 3)), distortion, rotation, numbers("translation", (3,)), (int(width), int(height))
    )


def read_tables(path: str | Path) -> dict[str, dict]:
    """The tables of a TOML file, but that called `metadata`."""
    file = Path(path).expanduser()
    try:
        content = tomllib.loads(file.read_text())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not TOML: {error}") from error
    return {name: table for name, table in content.items() if name != "metadata" and isinstance(table, dict)}


def read_calibration(path: str | Path) -> dict[str, Camera]:
    """A TOML file with one table a camera, of the keys that `camera` names -> cameras by the tables' names.

    Raises:
        UserError: no such file, not TOML, no cameras, or one that `camera` refuses.
    """
    cameras = {name: camera(table, f"{path}, camera {name}") for name, table in read_tables(path).items()}
    if not cameras:
        raise UserError(f"{path} holds no cameras: one table a camera, as [cam_01]")
    return cameras


def boxes(pixels: np.ndarray, margin: float = 1.25) -> np.ndarray:
    """Pixels of joints (F, J, 2) -> float64 (F, 3): centre x, y and side of a square round them; NaN without joints.

    The side is `margin` (ours) times the longer extent: joints lie within the body.
    """
    found = np.isfinite(pixels).all(-1, keepdims=True)
    low = np.where(found, pixels, np.inf).min(1)
    high = np.where(found, pixels, -np.inf).max(1)
    some = found.any(1)
    low, high = np.where(some, low, np.nan), np.where(some, high, np.nan)
    return np.concatenate([(low + high) / 2, margin * (high - low).max(-1, keepdims=True)], -1)


def subject_boxes(keypoints: np.ndarray) -> np.ndarray | None:
    """Keypoints (F, K, 3): x, y in pixels, confidence -> float32 (F, 3): `boxes` of those that were found.

    Found is a keypoint of a confidence above 0 and of finite x and y. A frame without two of them apart has no box of
    its own and takes that of the nearest frame in time that has, of two the earlier (ours). None where none has.
    """
    return nearest_boxes(boxes(np.where(keypoints[..., 2:] > 0, keypoints[..., :2].astype(np.float64), np.nan)))


def nearest_boxes(found: np.ndarray) -> np.ndarray | None:
    """Boxes (F, 3) -> float32 (F, 3): where one is empty or not finite, that of the nearest frame in time that has one,
    of two the earlier (ours). None where none has."""
    own = np.flatnonzero(np.isfinite(found).all(1) & (found[:, 2] > 0))
    if not len(own):
        return None
    frame = np.arange(len(found))
    after = np.searchsorted(own, frame).clip(max=len(own) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(frame - own[before] <= own[after] - frame, own[before], own[after])
    return found[nearest].astype(np.float32)
