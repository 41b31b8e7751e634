"""The protocol `pose`: 3D joints from one image, learned on top of a run's backbone and beside a random one (S. Jenni's
thesis on self-supervised learning, section 6.2.4).

Training sees a moment through a camera that is drawn for each epoch; every camera of each test moment is evaluated, in
crops that are centred and not mirrored. Figures are in millimetres, as `methods.pose.errors` counts them.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from methods import pose
from methods.metrics.skeleton import skeleton_figure
from methods.optim import Optimizer
from methods.takes import Background, TakeView
from pipelines.errors import UserError
from pipelines.feed import Piece
from pipelines.pictures import Result, png, spaced
from pipelines.sources import read_take
from pipelines.takes import InspectTakes, MakeMoments
from pipelines.transfer import built, derived, weights_after

if TYPE_CHECKING:
    from pipelines.evaluate import Part, Ready

ADAMW = Optimizer("adamw", lr=1e-4, scaling="none", weight_decay=1e-4, final_lr=1e-7)


@dataclass(frozen=True)
class Posing:
    """Of `pose`. Defaults: section 6.3.1, whose 200,000 iterations are given as epochs of the labelled moments."""

    frozen: int = 3
    """Stages of the backbone, from the first on, that stay as they were pretrained, with the stem."""
    background: Background | None = None
    """What becomes of it. None: removed, or kept, as in pretraining; where it was substituted removed."""
    every: int = 1
    """Each so many-th test moment is evaluated (Human3.6M: 64)."""
    pictures: int = 6
    """Test images in the picture, evenly spaced."""
    optimizer: Optimizer = ADAMW
    batch_size: int = 16
    epochs: int = 50

    def __post_init__(self) -> None:
        if self.every < 1 or self.pictures < 1:
            raise ValueError("posing.every and posing.pictures are at least 1")


def run_pose(ready: "Ready", of: str) -> Result:
    """3D joints from one image, with frozen first blocks: MPJPE, NMPJPE and PMPJPE in millimetres."""
    it, chosen = ready.subject, ready.options.posing
    if it.recipe is None or ready.options.data.media != "take":
        raise UserError("pose is for runs of takes, as multiview's")
    views = [view for view in it.recipe.views_used.values() if isinstance(view, TakeView)]
    view = dataclasses.replace(
        views[0].plain(),
        name="image",
        role="anchor",
        cameras="one",
        flip=0.5,
        background=chosen.background or ("keep" if views[0].background == "keep" else "remove"),
    )
    targets = labelled(ready, view)
    mean, std = pose.normalization(targets)
    config = pose.Config(joints=targets.shape[1], mean=mean, std=std, frozen=chosen.frozen)
    recipe = derived(ready, it.recipe, config, {"image": view}, chosen)
    method = built(ready, recipe, weights_after(ready, "pose", of, recipe)).eval()
    there = moments(ready, "test", view.plain(), chosen.every)
    if not there:
        raise UserError("there is no test moment whose joints are known: give --data.pose, or other takes")
    images, rows, predicted, true = estimated(ready, method, view.plain(), there)
    figures: dict[str, Any] = {**pose.errors(predicted, true), "labels": len(targets), "images": len(true)}
    stored = read_take(ready.source("test"), there[0][0], ready.options.data.pose)
    figure = skeleton_figure(images, predicted[rows], true[rows], stored.parents, names=stored.joints)
    return figures, {"": png(figure)}


def labelled(ready: "Ready", view: TakeView) -> Tensor:
    """The joints (N, J, 3) of the training moments by every camera."""
    source, data = ready.source("train"), ready.options.data
    found = []
    for number, good in moments(ready, "train", view, 1):
        stored = read_take(source, number, data.pose)
        found += [joints[good] for joints in stored.pose if joints is not None]
    if not found:
        raise UserError("there is no training moment whose joints are known: give --data.pose, or other takes")
    return torch.from_numpy(np.concatenate(found))


def moments(ready: "Ready", part: "Part", view: TakeView, every: int) -> list[tuple[int, np.ndarray]]:
    """The usable moments of a part: the take's number, and their frames."""
    source = ready.source(part)
    look = InspectTakes(source, ready.options.data, {"image": view})
    out = []
    for number, rows in ready.runs(part, ready.wanted(part)[::every], most=1 << 30):
        found = look([Piece(number, rows)])
        good = found["index"][found["bad"] == ""] - source.groups[number].first
        if len(good):
            out.append((number, good))
    return out


@torch.no_grad()
def estimated(
    ready: "Ready", method: pose.Pose, view: TakeView, there: list[tuple[int, np.ndarray]]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predicted and true joints (N, J, 3) of `moments`, each camera's in turn; before them the images of a picture,
    uint8 (n, C, S, S), and which of the N they are."""
    source, data = ready.source("test"), ready.options.data
    images, predicted, true = [], [], []
    count = sum(len(good) * len(source.takes[number].cameras) for number, good in there)
    rows, done = spaced(count, ready.options.posing.pictures), 0
    for number, good in there:
        for camera in range(len(source.takes[number].cameras)):
            stage = MakeMoments(source, data, {"image": view}, ready.options.seed, 0, camera)
            for some in np.array_split(good, -(-len(good) // 64)):
                batch = stage([Piece(number, some)])
                seen = torch.from_numpy(batch["image"])
                images.append(seen[rows[(rows >= done) & (rows < done + len(seen))] - done])
                done += len(seen)
                predicted.append(method.predict(seen))
                true.append(pose.centred_camera(torch.from_numpy(batch["pose"])))
    return torch.cat(images), rows, torch.cat(predicted), torch.cat(true)
