"""Average precision, as Pascal VOC counts it.

Legend: N samples, C classes.
"""

import numpy as np
import torch
from torch import Tensor


def average_precision(scores: Tensor, positive: Tensor, *, points: int | None = None) -> float:
    """Precision, averaged over recall; of samples with equal scores all are retrieved at once.

    At a recall it is the highest precision at this recall or a higher one (VOC's interpolation). Without it the figure
    is scikit-learn's `average_precision_score`, which is never higher.

    Args:
        scores: (N,), higher where the class is rather there.
        positive: bool (N,).
        points: 11: the mean at the recalls 0, .1, ..., 1 (VOC 2007's own). None: the area (VOC's since 2010).

    Returns:
        A fraction.

    Raises:
        ValueError: no positive sample, scores that are not finite, or fewer than two points.
    """
    from sklearn.metrics import precision_recall_curve  # here: it takes seconds to import

    if not positive.any():
        raise ValueError("average precision of a class without a positive sample is not defined")
    if not scores.isfinite().all():
        raise ValueError("average precision needs scores that are finite")
    if points is not None and points < 2:
        raise ValueError(f"average precision is taken at 2 points of recall or more, got {points}")
    precision, recall, _ = precision_recall_curve(positive.cpu().numpy(), scores.double().cpu().numpy())
    highest = np.maximum.accumulate(precision[:-1])  # by falling recall; the last point, (1, 0), is no retrieval
    if points is None:
        return float(-np.diff(recall) @ highest)
    # of each point the last entry whose recall is not below it; rounded, as k / n may fall short of the same fraction
    place = (recall[:-1].round(9) >= np.linspace(0, 1, points).round(9)[:, None]).sum(1) - 1
    return float(highest[place].mean())


def mean_average_precision(
    scores: Tensor, positive: Tensor, *, known: Tensor | None = None, points: int | None = None
) -> float:
    """The mean of `average_precision` over the classes that have a positive sample.

    Args:
        scores: (N, C).
        positive: bool (N, C).
        known: bool (N, C), where a sample counts for a class. None: everywhere.
        points: as of `average_precision`.

    Raises:
        ValueError: other shapes, no positive sample of any class, or as of `average_precision`.
    """
    known = torch.ones_like(positive) if known is None else known
    if not scores.shape == positive.shape == known.shape:
        raise ValueError(f"scores of shape {tuple(scores.shape)} beside labels of {tuple(positive.shape)}")
    counted = [c for c in range(positive.shape[1]) if (positive & known)[:, c].any()]
    if not counted:
        raise ValueError("no class has a positive sample")
    rows = [known[:, c] for c in counted]
    found = [average_precision(scores[r, c], positive[r, c], points=points) for r, c in zip(rows, counted, strict=True)]
    return sum(found) / len(found)
