"""Errors of 3D poses: MPJPE and its variants that forgive scale, or scale, rotation and translation.

"We adopt the established metrics" (S. Jenni's thesis on self-supervised learning, section 6.3). Each is a plain mean
over all joints and all poses that it is given, in their unit: what leaves the root out is `methods.pose.errors`.
Computed in float64; the result is float32, or float64 where an input is.

Legend: B poses, J joints.
"""

import torch
from torch import Tensor


def _checked(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    if predicted.shape != target.shape or predicted.dim() != 3 or predicted.shape[2] != 3 or not predicted.numel():
        shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        raise ValueError(f"predicted and target poses are both (B, J, 3), with at least one joint; got {shapes}")
    if not (predicted.isfinite().all() and target.isfinite().all()):
        raise ValueError("the poses hold joints that are not finite: leave those poses out")
    double = torch.float64 in (predicted.dtype, target.dtype)
    return predicted.double(), target.double(), torch.float64 if double else torch.float32


def _mean_distance(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted - target).norm(dim=2).mean()


def _ratio(numerator: Tensor, denominator: Tensor, least: Tensor) -> Tensor:
    """(B,) each; 0 where the denominator is at most `least`."""
    usable = denominator > least
    return torch.where(usable, numerator / torch.where(usable, denominator, 1.0), 0.0)


@torch.no_grad()
def mpjpe(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean per joint prediction error: the mean Euclidean distance of a joint to its true place.

    Args:
        predicted, target: (B, J, 3), in the same unit and coordinates.

    Returns:
        Scalar, in that unit.

    Raises:
        ValueError: other shapes, nothing to compare, or values that are not finite.
    """
    predicted, target, dtype = _checked(predicted, target)
    return _mean_distance(predicted, target).to(dtype)


@torch.no_grad()
def nmpjpe(predicted: Tensor, target: Tensor) -> Tensor:
    """Normalized MPJPE: "the predicted joints are aligned to the ground truth in a least-squares sense with respect to
    the scale" (section 6.3). For each pose s = <predicted, target> / <predicted, predicted>.

    Nothing is moved or turned: both are given relative to the same point, as the root. The scale of least squares may
    be negative. A prediction whose joints all lie in the origin has no scale, and stays there.

    Args, Returns, Raises: as `mpjpe`.
    """
    predicted, target, dtype = _checked(predicted, target)
    square = predicted.square().sum((1, 2))
    scale = _ratio((predicted * target).sum((1, 2)), square, torch.zeros_like(square))  # (B,)
    return _mean_distance(scale[:, None, None] * predicted, target).to(dtype)


@torch.no_grad()
def pmpjpe(predicted: Tensor, target: Tensor) -> Tensor:
    """Procrustes MPJPE: each prediction is moved, turned and scaled to its target by least squares, never mirrored.

    The closed form of Umeyama (1991, Eq. 34 to 43), with the reflection turned back; the scale is 0 or more. Section
    6.3 names scale and rotation; that the translation is fitted too is the established metric.

    A prediction whose joints all lie in one point has no scale or rotation: it goes to the target's mean, as does the
    prediction for a target whose joints all lie in one point, where the error is thus 0. Joints on one line, or in
    one plane, leave several best rotations; all have the same squared error, and the SVD's is taken.

    Args, Returns, Raises: as `mpjpe`.
    """
    predicted, target, dtype = _checked(predicted, target)
    centre = target.mean(1, keepdim=True)  # (B, 1, 3)
    source, goal = predicted - predicted.mean(1, keepdim=True), target - centre
    u, singular, v = torch.linalg.svd(source.mT @ goal)  # (B, 3, 3), (B, 3), (B, 3, 3): u diag(singular) v
    sign = torch.ones_like(singular)
    sign[:, 2] = torch.det(u @ v).sign()
    rounding = 1e-24 * predicted.square().sum((1, 2))  # of one point's mean, squared
    scale = _ratio((singular * sign).sum(1), source.square().sum((1, 2)), rounding)  # (B,)
    aligned = scale[:, None, None] * (source @ (u * sign[:, None, :]) @ v) + centre
    return _mean_distance(aligned, target).to(dtype)
