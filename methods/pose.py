"""3D pose: regression of a body's joints from one image, on a pretrained backbone (S. Jenni, P. Favaro,
"Self-Supervised Multi-View Synchronization Learning for 3D Pose Estimation", ACCV 2020; as of S. Jenni's thesis on
self-supervised learning, sections 6.2.4 and 6.3, which every reference here means). No released code is known.

View: `image`; the batch holds `pose`, float (B, J, 3): millimetres in the camera's coordinates (x right, y down,
z forward), already `mirrored` where the view is flipped. Its values are finite: nothing is checked here, as that would
hold the host up, and one joint that is NaN makes the loss NaN. Whoever makes batches leaves such poses out.

Target: the camera is turned so that it looks at the root (`centred_camera`), "to virtually center the camera on the
root joint", as images are crops centred on the subject; the root lies then in the origin. Centring before and after
mirroring are the same. A pose that is centred already stays as it is.

Where the text is silent, ours:
- "we freeze the first three residual blocks" means the first three of a ResNet's four stages, with the stem before
  them (`frozen`); ResNet-18 has eight blocks of two convolutions, of which three would end within its second stage.
  Frozen is really frozen, as in `methods.supervised`: no gradient, and batch norm keeps its statistics;
- mean and standard deviation are those of each coordinate of each joint, as in the paper that the thesis cites for it
  (Martinez et al., 2017, arXiv 1705.03098), of the training targets as they are, without their mirrored ones;
- the linear layer starts at N(0, .01), its bias at 0: at the mean pose.

Legend: B batch, C x H x W an image, J joints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.backbones import Backbone
from methods.method import Batch, Clock, Facts, Method, Step
from methods.metrics.pose import mpjpe, nmpjpe, pmpjpe
from methods.supervised import linear, outside


@dataclass(frozen=True)
class Config:
    joints: int = 17
    """n_j, joints with the root: "17 in our experiments on Human3.6M"."""
    root: int = 0
    """The joint that is fixed to zero, at the pelvis."""
    mean: tuple[float, ...] = ()
    """Of the training targets, mm: 3 values for each joint but the root, in order, as of `normalization`. Empty: 0."""
    std: tuple[float, ...] = ()
    """The same of the standard deviation, above 0. Empty: 1."""
    frozen: int = 3
    """Of the backbone's layers, a ResNet's stages, so many from the first on stay as they were pretrained, with the
    stem. 0: all learns."""

    def __post_init__(self) -> None:
        if self.joints < 2:
            raise ValueError(f"method.joints counts the root and at least one more, got {self.joints}")
        if not 0 <= self.root < self.joints:
            raise ValueError(f"method.root is one of the {self.joints} joints, got {self.root}")
        width = 3 * (self.joints - 1)
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, width):
                raise ValueError(f"method.{field}: 3 values for each joint but the root, {width}; got {len(values)}")
        if not all(0 < value < float("inf") for value in self.std):
            raise ValueError("method.std is above 0 and finite")
        if not all(abs(value) < float("inf") for value in self.mean):
            raise ValueError("method.mean is finite")
        if self.frozen < 0:
            raise ValueError(f"method.frozen counts stages from 0, got {self.frozen}")


# --------------------------------------------------------------------------------------------- poses


def centred_camera(pose: Tensor, root: int = 0) -> Tensor:
    """Poses as a camera sees them that is turned, by the smallest rotation, to look at the root; relative to the root.

    The rotation takes r, the root's direction, to e = (0, 0, 1): with v = r x e and c = <r, e> it is
    p + v x p + v x (v x p) / (1 + c) (Rodrigues). A root in the origin has no direction, and nothing is turned; one
    straight behind the camera has many, and the camera turns over its x axis. Near that, rounding grows with 1/(1 + c).

    Args:
        pose: (B, J, 3), x right, y down, z forward.

    Returns:
        (B, J, 3), the root's row exactly 0.
    """
    at = pose[:, root : root + 1]  # (B, 1, 3)
    body, distance = pose - at, at.norm(dim=2, keepdim=True)
    ahead = torch.zeros_like(at)
    ahead[..., 2] = 1.0
    direction = torch.where(distance > 0, at / torch.where(distance > 0, distance, 1.0), ahead)  # r (B, 1, 3)
    axis = torch.linalg.cross(direction, ahead).expand_as(body)  # v
    shared = 1.0 + direction[..., 2:]  # 1 + c (B, 1, 1), in [0, 2]
    behind = shared < 1e-6
    once = torch.linalg.cross(axis, body)
    turned = body + once + torch.linalg.cross(axis, once) / torch.where(behind, 1.0, shared)
    return torch.where(behind, torch.cat([body[..., :1], -body[..., 1:]], 2), turned)


def mirrored(pose: Tensor, mirror: Sequence[int]) -> Tensor:
    """The poses of horizontally flipped images: x negated, and each joint in the place of its mirrored one.

    Args:
        pose: (B, J, 3), x right, whose origin lies in the image's middle, as the camera's.
        mirror: J indices, its own inverse.

    Returns:
        (B, J, 3); of the result, `mirrored` gives `pose` again.
    """
    swapped = pose[:, list(mirror)]
    return torch.cat([-swapped[..., :1], swapped[..., 1:]], 2)


def normalization(poses: Tensor, root: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`Config.mean` and `Config.std` of a training set: of the targets' coordinates, without the root.

    A coordinate that hardly varies (standard deviation below 1e-4, the bound of Martinez et al.'s code) has std 1.

    Args:
        poses: (N, J, 3), as batches hold them.

    Raises:
        ValueError: no pose, another shape, or values that are not finite.
    """
    if poses.dim() != 3 or poses.shape[2] != 3 or not 0 <= root < poses.shape[1] or not len(poses):
        raise ValueError(f"poses to normalize are (N, J, 3), N at least 1, J above root {root}; got {(*poses.shape,)}")
    if not poses.isfinite().all():
        raise ValueError("the training poses hold joints that are not finite: leave those poses out")
    values = _without(centred_camera(poses.double(), root), root).flatten(1)  # (N, 3 (J - 1))
    mean, std = values.mean(0), values.std(0, correction=0)
    return tuple(mean.tolist()), tuple(torch.where(std < 1e-4, 1.0, std).tolist())


def _without(pose: Tensor, root: int) -> Tensor:
    """(B, J, 3) -> (B, J - 1, 3)."""
    return torch.cat([pose[:, :root], pose[:, root + 1 :]], 1)


# -------------------------------------------------------------------------------------- loss, errors


def pose_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """L_pose = 1/N sum_i ||P(x_i) - y_i||^2 (section 6.2.4): the squared norm is a sum over coordinates, not a mean.

    Args:
        predicted, target: (B, D), normalized.
    """
    return (predicted - target).square().sum(1).mean()


def errors(predicted: Tensor, target: Tensor, root: int = 0) -> dict[str, float]:
    """`mpjpe`, `nmpjpe` and `pmpjpe` in millimetres, as the thesis counts them (Tables 6.1 and 6.2).

    "We effectively only regress the 16 remaining joints and correct this in evaluation metrics by scaling the
    per-joint errors by 17/16": each metric is a mean over all J joints, with the root that is fixed to zero, times
    J / (J - 1). Of MPJPE and NMPJPE, to which the root adds 0, that is the mean over the other joints. The Procrustes
    alignment is over all joints; it may move the root, whose distance then counts, and the factor is the same (ours:
    the text names one factor).

    Args:
        predicted, target: (B, J, 3), millimetres, the root in the origin: as `Pose.predict` and `centred_camera` give.

    Raises:
        ValueError: as `methods.metrics.pose.mpjpe`, a single joint, or a root that is not in the origin.
    """
    figures = {"mpjpe": mpjpe, "nmpjpe": nmpjpe, "pmpjpe": pmpjpe}
    found = {name: float(figure(predicted, target)) for name, figure in figures.items()}
    joints = target.shape[1]
    if joints < 2 or not 0 <= root < joints:
        raise ValueError(f"errors need the root and at least one more joint, got {joints} and root {root}")
    if predicted[:, root].any() or target[:, root].any():
        raise ValueError(f"joint {root} is not in the origin: give targets through centred_camera, with their root")
    return {name: value * joints / (joints - 1) for name, value in found.items()}


# -------------------------------------------------------------------------------------------- method


class Pose(Method):
    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, backbone: Backbone, facts: Facts) -> None:
        super().__init__()
        if "image" not in facts.views:
            raise ValueError(f"pose takes the view image, got {', '.join(facts.views)}")
        stages = [name for name in backbone.layers if name != "stem"]
        if config.frozen > len(stages):
            there = f"names {', '.join(stages)}" if stages else "names none: choose 0"
            raise ValueError(f"method.frozen {config.frozen} is more than the backbone's stages; it {there}")
        self.config = config
        self.backbone = backbone
        self.first = "" if config.frozen == len(stages) else stages[config.frozen]  # layer that learns
        others = config.joints - 1
        self.head = linear(backbone.dim, 3 * others)  # omega_p
        mean, std = config.mean or [0.0] * 3 * others, config.std or [1.0] * 3 * others
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(others, 3))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(others, 3))
        self.train()

    def frozen(self) -> list[nn.Module]:
        if not self.config.frozen:
            return []
        return outside(self.backbone, self.first, "") if self.first else list(self.backbone.modules())

    def regress(self, images: Tensor) -> Tensor:
        """P: uint8 (B, C, H, W) -> normalized (B, J - 1, 3), float32 under autocast too."""
        return self.head(self.backbone(images)).float().unflatten(1, (-1, 3))

    def unnormalized(self, values: Tensor) -> Tensor:
        """Normalized (B, J - 1, 3) -> (B, J, 3), millimetres, the root in the origin."""
        pose, root = values * self.std + self.mean, self.config.root
        return torch.cat([pose[:, :root], torch.zeros_like(pose[:, :1]), pose[:, root:]], 1)

    def predict(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, J, 3), millimetres from the root, axes as of `centred_camera`. Call it in eval
        mode: else batch norm takes the batch's statistics."""
        return self.unnormalized(self.regress(images))

    def forward(self, batch: Batch, clock: Clock, turn: str) -> Step:
        target = centred_camera(batch["pose"].float(), self.config.root)  # (B, J, 3)
        values = self.regress(batch["image"])  # (B, J - 1, 3)
        wanted = (_without(target, self.config.root) - self.mean) / self.std
        distance = (self.unnormalized(values.detach()) - target).norm(dim=2)  # (B, J), of the root 0
        error = distance.sum(1).mean() / (self.config.joints - 1)  # as of `errors`
        return Step(pose_loss(values.flatten(1), wanted.flatten(1)), {"mpjpe": error})


METHOD = Pose
