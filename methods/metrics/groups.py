"""Figures over samples that come in groups, as clips of a video or videos of a sequence.

Samples of one group are not independent: intervals resample whole groups, and what is tested shares none with what it
was fitted to.

Legend: N samples, G groups, K classes, D features, R resamples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from methods.parts import draw

_CELLS = 2**23  # random numbers held at once
_DEPTHS = (1, 2, 3, 4, 6, 8, 12)  # of the trees that know the length alone
_FOLDS = 5


def _check(target: Tensor, classes: int, **others: Tensor) -> None:
    for name, column in others.items():
        if column.shape != target.shape:
            raise ValueError(f"{name} of shape {tuple(column.shape)} beside target of {tuple(target.shape)}")
    if target.dim() != 1 or not len(target):
        raise ValueError(f"one target for each of at least one sample, got shape {tuple(target.shape)}")
    if int(target.min()) < 0 or int(target.max()) >= classes:
        raise ValueError(f"targets lie in 0 to {classes - 1}, got {int(target.min())} to {int(target.max())}")


def balanced_accuracy(predicted: Tensor, target: Tensor, classes: int) -> float:
    """The mean over classes of the share of their samples that is recognized: 1 / K by any constant answer.

    Classes without samples are left out, as in scikit-learn.

    Args:
        predicted: int64 (N,).
        target: int64 (N,), in 0 ... classes - 1.
        classes: K.

    Raises:
        ValueError: other shapes, no samples, or targets out of range.
    """
    _check(target, classes, predicted=predicted)
    total = torch.bincount(target, minlength=classes)
    right = torch.bincount(target[predicted == target], minlength=classes)
    there = total > 0
    return float((right[there].double() / total[there]).mean())


@torch.no_grad()
def balanced_interval(
    predicted: Tensor,
    target: Tensor,
    group: Tensor,
    classes: int,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Balanced accuracy with its percentile bootstrap interval over groups (Efron): G groups are drawn with
    replacement, each whole, and the figure is taken of what they hold.

    Args:
        predicted, target: int64 (N,), as of `balanced_accuracy`.
        group: int64 (N,), the same number for samples of one group.
        classes: K.
        level: share of the resamples' figures that lies within, in (0, 1).
        resamples: R.
        seed: of the draws; the interval is a function of it.

    Returns:
        The figure, and the interval's lower and upper end.

    Raises:
        ValueError: as of `balanced_accuracy`; fewer than two groups; `level` or `resamples` out of range.
    """
    _check(target, classes, predicted=predicted, group=group)
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level lies in (0, 1) and resamples is at least 1, got {level} and {resamples}")
    number, place = group.unique(return_inverse=True)
    if len(number) < 2:
        raise ValueError("an interval over groups needs at least two of them")
    cell = place * classes + target  # of (G, K)
    count = len(number) * classes
    total = torch.bincount(cell, minlength=count).view(-1, classes).double()
    right = torch.bincount(cell[predicted == target], minlength=count).view(-1, classes).double()
    figures = []
    for rows in torch.arange(resamples, device=group.device).split(max(_CELLS // len(number), 1)):
        chosen = (draw(seed, 0, rows, "bootstrap", len(number)).double() * len(number)).long()  # (rows, G)
        times = torch.zeros(chosen.shape, dtype=torch.float64, device=chosen.device)
        times.scatter_add_(1, chosen, torch.ones_like(times))
        seen = times @ total  # (rows, K)
        recall = torch.where(seen > 0, times @ right / seen.clamp(min=1), 0.0)
        figures.append(recall.sum(1) / (seen > 0).sum(1))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=group.device)
    low, high = torch.cat(figures).quantile(ends).tolist()
    return balanced_accuracy(predicted, target, classes), low, high


def chance_by_length(
    train_length: Tensor,
    train_target: Tensor,
    test_length: Tensor,
    test_target: Tensor,
    classes: int,
    *,
    train_group: Tensor | None = None,
) -> float:
    """Balanced accuracy on test of a classifier that knows nothing but each sample's length: what a network has to beat
    where classes have different lengths.

    A decision tree on the length with classes of equal weight, so that each of its ranges answers the class with the
    highest p(length | class): the best there is for balanced accuracy. Its depth is that of the highest balanced
    accuracy by cross-validation in five folds of the training samples, and of equals the least.

    Args:
        train_length: (N,), any real type; frames, for instance.
        train_target: int64 (N,), in 0 ... classes - 1.
        test_length, test_target: the same of M samples.
        classes: K.
        train_group: int64 (N,); folds share no group. None: each sample is its own. Give the videos where a target is
            the video's, not drawn for each sample.

    Returns:
        The figure, but never below that of a constant answer, 1 / (classes among the test's targets).

    Raises:
        ValueError: as of `balanced_accuracy`, or fewer than two training samples or groups.
    """
    from sklearn.model_selection import GroupKFold, cross_val_predict  # here: it takes seconds to import
    from sklearn.tree import DecisionTreeClassifier

    group = torch.arange(len(train_target)) if train_group is None else train_group
    _check(train_target, classes, train_length=train_length, train_group=group.to(train_target.device))
    _check(test_target, classes, test_length=test_length)
    folds = min(_FOLDS, len(group.unique()))
    if folds < 2:
        raise ValueError("the length's classifier is cross-validated: give at least two training samples or groups")
    x, x_test = (length.double().cpu().numpy()[:, None] for length in (train_length, test_length))
    y, groups = train_target.cpu().numpy(), group.cpu().numpy()
    splits = [*GroupKFold(folds, shuffle=True, random_state=0).split(x, y, groups)]

    def tree(depth: int) -> DecisionTreeClassifier:
        return DecisionTreeClassifier(max_depth=depth, class_weight="balanced", random_state=0)

    held = {depth: torch.from_numpy(cross_val_predict(tree(depth), x, y, cv=splits)) for depth in _DEPTHS}
    figures = {depth: balanced_accuracy(said, train_target.cpu(), classes) for depth, said in held.items()}
    best = max(figures, key=lambda depth: figures[depth])  # of equals the first
    said = torch.from_numpy(tree(best).fit(x, y).predict(x_test))
    return max(balanced_accuracy(said, test_target.cpu(), classes), 1 / len(test_target.unique()))


def leave_one_group_out(
    features: Tensor, label: Tensor, group: Tensor, fit_predict: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Every sample's class as said by what was fitted to all groups but its own.

    Args:
        features: (N, D).
        label: int64 (N,).
        group: int64 (N,).
        fit_predict: features (M, D) and labels (M,) to fit to, and other features (P, D) -> their classes, int64 (P,).

    Returns:
        int64 (N,).

    Raises:
        ValueError: other lengths, fewer than two groups, or an answer of another shape.
    """
    if not len(features) == len(label) == len(group):
        raise ValueError(f"{len(features)} features, {len(label)} labels and {len(group)} groups: give one a sample")
    numbers = group.unique()
    if len(numbers) < 2:
        raise ValueError("leaving one group out needs at least two of them")
    predicted = torch.empty_like(label)
    for number in numbers:
        out = group == number
        said = fit_predict(features[~out], label[~out], features[out])
        if said.shape != label[out].shape:
            raise ValueError(f"fit_predict said {tuple(said.shape)} of {int(out.sum())} samples")
        predicted[out] = said.to(predicted)
    return predicted
