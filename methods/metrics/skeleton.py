"""A picture of predicted and true skeletons beside their images, as Figure 6.3 of S. Jenni's thesis shows them.

Legend: N images, J joints.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"left": "tab:blue", "right": "tab:red", "": "0.25"}
"""Of limbs by their side; the last is the middle's."""


def side(joint: str) -> str:
    """ "left" or "right" where a joint's name says so (`left_hip`, `LHip`, `hip_l`, `Right wrist`), else empty."""
    for word in ("left", "right"):
        letter = f"[{word[0]}{word[0].upper()}]"
        if re.search(rf"^(?i:{word})|(?i:[ _.-]{word})$|^{letter}(?=[A-Z _.-])|[ _.-]{letter}$", joint):
            return word
    return ""


def skeleton_figure(
    images: Tensor,
    predicted: Tensor,
    target: Tensor,
    parents: Sequence[int],
    *,
    names: Sequence[str] | None = None,
) -> "Figure":
    """A row an image: the image, its true skeleton from the front and from the side, then the predicted one.

    The front is the camera's own sight without perspective: x to the right, y down. The side is that from the camera's
    right: z, away from the camera, to the right, y down. All four of a row have one scale, which differs by row. The
    true skeleton lies pale behind the predicted one, and below that stands its mean distance (MPJPE, all joints).

    Args:
        images: uint8 (N, C, H, W), C = 1 or 3.
        predicted, target: (N, J, 3), millimetres from the root; x right, y down, z forward.
        parents: of each joint the index of the one it hangs on, negative where there is none.
        names: of the joints; limbs that lead to one on the left are blue, on the right red. None: all are gray.

    Raises:
        ValueError: shapes or indices that do not fit, no image, or values that are not finite.
    """
    from matplotlib.collections import LineCollection  # here: training never draws, and it takes a second to import
    from matplotlib.figure import Figure

    _check(images, predicted, target, parents, names)
    n, joints = target.shape[:2]
    sides = [side(name) for name in names] if names else [""] * joints
    limbs = [(joint, parent) for joint, parent in enumerate(parents) if parent >= 0]
    colours = [COLOURS[sides[joint]] for joint, _ in limbs]
    true, found = target.detach().double().cpu(), predicted.detach().double().cpu()
    both = torch.cat([true, found], 1)  # (N, 2 J, 3)
    low, high = both.amin(1), both.amax(1)  # (N, 3)
    half = ((high - low).amax(1) / 2).clamp(min=1e-6)[:, None, None]
    flat = [((pose - (low + high)[:, None] / 2) / half).numpy() for pose in (true, found)]  # in [-1, 1]
    distance = (found - true).norm(dim=2).mean(1)

    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    width, panel, gap, head = images.shape[3] / images.shape[2] * 1.6, 1.6, 0.08, 0.3  # inches; panels are square
    foot = 0.2
    across, down = width + 4 * (panel + gap) + 2 * gap, panel + foot
    figure = Figure(figsize=(across, head + n * down), dpi=120)
    axis = figure.add_axes((0, 0, 1, 1))  # one: many axes take seconds
    axis.set_axis_off()
    lefts = [width + 2 * gap + i * (panel + gap) for i in range(4)]
    for i, title in enumerate(("true, front", "true, side", "predicted, front", "predicted, side")):
        axis.text(lefts[i] + panel / 2, head - 0.05, title, fontsize=8, ha="center", va="bottom")
    if any(sides):
        for i, word in enumerate(("left", "right")):
            axis.text(gap + 0.45 * i, head - 0.05, word, color=COLOURS[word], fontsize=8, ha="left", va="bottom")
    for row in range(n):
        top = head + row * down
        axis.imshow(
            pictures[row], cmap="gray", vmin=0, vmax=255, extent=(gap, gap + width, top + panel, top), aspect="auto"
        )
        for i, left in enumerate(lefts):
            axes = [0, 1] if i % 2 == 0 else [2, 1]  # x or z to the right, y down
            middle = (left + panel / 2, top + panel / 2)
            for pose, pale in ((flat[0], i >= 2), *([(flat[1], False)] if i >= 2 else [])):
                points = 0.46 * panel * pose[row][:, axes] + middle  # (J, 2)
                lines = [(points[joint], points[parent]) for joint, parent in limbs]
                inks = ["0.75"] * len(limbs) if pale else colours
                axis.add_collection(LineCollection(lines, colors=inks, linewidths=1.8, capstyle="round"), autolim=False)
                dots = "0.75" if pale else [COLOURS[s] for s in sides]
                axis.scatter(points[:, 0], points[:, 1], s=5, c=dots, zorder=2)
        centre, below = (lefts[2] + lefts[3] + panel) / 2, f"{float(distance[row]):.0f} mm"
        axis.text(centre, top + panel + 0.01, below, fontsize=7, ha="center", va="top")
    axis.set(xlim=(0, across), ylim=(head + n * down, 0))
    return figure


def _check(
    images: Tensor, predicted: Tensor, target: Tensor, parents: Sequence[int], names: Sequence[str] | None
) -> None:
    if predicted.shape != target.shape or target.dim() != 3 or target.shape[2] != 3 or not target.numel():
        shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        raise ValueError(f"skeletons to draw are both (N, J, 3), with at least one joint; got {shapes}")
    if images.dim() != 4 or len(images) != len(target) or images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
        raise ValueError(f"images beside {len(target)} skeletons are uint8 (N, 1 or 3, H, W); got {(*images.shape,)}")
    joints = target.shape[1]
    if len(parents) != joints or max(parents) >= joints or (names is not None and len(names) != joints):
        raise ValueError(f"parents and names are given for each of {joints} joints, and a parent is one of them")
    if not (predicted.isfinite().all() and target.isfinite().all()):
        raise ValueError("the skeletons hold joints that are not finite: leave them out")
