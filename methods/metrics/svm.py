"""Linear support vector machines on a few labelled samples of each class (low-shot classification).

ReSSL (journal version, section 5.1, Table 11) and SCE (section 4.4, Table 10) on Pascal VOC 2007 with k = 4, 8, 16, 32,
64 and with all samples, the mean of 5 draws. Both follow PCL (J. Li, P. Zhou, C. Xiong, S. Hoi, ICLR 2021), whose code
(github.com/salesforce/PCL) is followed where the texts are silent: features are L2-normalized; k samples are drawn of
each class by itself, so that one of several classes may be drawn more than once and then counts as often; a machine
for each class against all others, with the squared hinge loss, cost .5 and twice the weight on positive samples.

Deviations: that code adds 1e-5 to the norms, and of several costs takes the best on the test data; here the training
data choose. Samples with equal scores are retrieved at once.

Legend: N training samples, M test samples, D features, C classes.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.metrics.precision import average_precision, mean_average_precision
from methods.parts import draw


@dataclass(frozen=True)
class SVM:
    """One machine a class, against all others."""

    costs: tuple[float, ...] = (0.5,)
    """Of misclassification (scikit-learn's C). Several: of each class that with the highest average precision by
    cross-validation on its training samples, and of equals the first."""
    folds: int = 3
    """Of the cross-validation, stratified; fewer where a class has fewer samples, and of one sample the first cost."""
    positive_weight: float = 2.0
    """Of samples of the class, beside 1 of all others."""
    max_iterations: int = 2000
    """Of liblinear's dual coordinate descent; what has not converged by then is taken as it is."""
    points: int | None = None
    """Of recall in the average precision, where samples have several labels; 11: VOC 2007's own. None: the area."""

    def __post_init__(self) -> None:
        if not self.costs or min(self.costs) <= 0 or self.positive_weight <= 0:
            raise ValueError(f"svm: costs and the weight of positive samples are above 0, got {self}")
        if self.folds < 2 or self.max_iterations < 1:
            raise ValueError(f"svm: at least 2 folds and 1 iteration, got {self.folds} and {self.max_iterations}")


def scores(
    train: Tensor, positive: Tensor, test: Tensor, config: SVM, *, known: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Signed distances, times |w|, of test samples from each class's plane.

    Args:
        train: (N, D).
        positive: bool (N, C).
        test: (M, D).
        config: of the machines.
        known: bool (N, C), where a training sample counts for a class. None: everywhere.
        seed: of liblinear and of the folds.

    Returns:
        float64 (M, C) on the CPU.

    Raises:
        ValueError: other lengths, features that are not finite, or a class without positive or negative samples.
    """
    if len(train) != len(positive) or train.shape[1] != test.shape[1]:
        raise ValueError(
            f"features {tuple(train.shape)} and {tuple(test.shape)} beside labels of {len(positive)} samples"
        )
    if not (train.isfinite().all() and test.isfinite().all()):
        raise ValueError("the features hold values that are not finite")
    x, x_test = (F.normalize(features.double(), dim=1).cpu().numpy() for features in (train, test))
    target = positive.cpu().numpy()
    counts = np.ones_like(target) if known is None else known.cpu().numpy()
    columns = []
    for c in range(target.shape[1]):
        rows = counts[:, c]
        y = target[rows, c]
        if y.all() or not y.any():
            told = "no training sample" if not y.any() else "no training sample of the others beside it"
            raise ValueError(f"class {c} has {told}: give more training data")
        columns.append(_fitted(x[rows], y, config, seed).decision_function(x_test))
    return torch.from_numpy(np.stack(columns, 1))


def _fitted(x: np.ndarray, y: np.ndarray, config: SVM, seed: int) -> Any:
    """The machine of one class. x: (N, D), y: bool (N,)."""
    from sklearn.exceptions import ConvergenceWarning  # here: it takes seconds to import
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.svm import LinearSVC

    def machine(cost: float) -> Any:
        return LinearSVC(
            C=cost,
            class_weight={0: 1.0, 1: config.positive_weight},
            dual=True,
            max_iter=config.max_iterations,
            random_state=seed,
        )

    y = y.astype(np.int64)
    folds = min(config.folds, int(y.sum()), int((1 - y).sum()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        best = config.costs[0]
        if len(config.costs) > 1 and folds > 1:
            splits = [*StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y)]
            held = {
                cost: cross_val_predict(machine(cost), x, y, cv=splits, method="decision_function")
                for cost in config.costs
            }
            positive = torch.from_numpy(y == 1)
            found = {cost: average_precision(torch.from_numpy(said), positive) for cost, said in held.items()}
            best = max(found, key=lambda cost: found[cost])  # the first of equals
        return machine(best).fit(x, y)


def drawn(positive: Tensor, shots: int, *, seed: int = 0, run: int = 0) -> Tensor:
    """Rows of `shots` samples of each class, one class behind the other; of a class with fewer all.

    A sample of several classes may occur more than once. Fewer shots are the first of more, of each class.

    Args:
        positive: bool (N, C).
        shots: k, at least 1.
        seed: of the draw.
        run: its number.

    Returns:
        int64 (C * k,) or less.
    """
    rows = []
    for c in range(positive.shape[1]):
        there = positive[:, c].nonzero()[:, 0]
        rows.append(there[draw(seed, run, there, f"low shot {c}", 1)[:, 0].argsort(stable=True)[:shots]])
    return torch.cat(rows)


def low_shot(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    config: SVM,
    *,
    shots: Sequence[int] = (4, 8, 16, 32, 64),
    full: bool = True,
    draws: int = 5,
    train_known: Tensor | None = None,
    test_known: Tensor | None = None,
    seed: int = 0,
    classes: int | None = None,
) -> dict[str, float]:
    """Linear classifiers of k training samples a class, each figure a mean over draws; and one of all of them.

    Args:
        train: (N, D).
        train_labels: int64 (N,); or of samples with several bool (N, C).
        test: (M, D), on the same device.
        test_labels: int64 (M,) or bool (M, C).
        config: of the machines.
        shots: k, each at least 1.
        full: with all training samples too.
        draws: of each k.
        train_known, test_known: with several labels, bool (N, C) and (M, C): where a sample counts for a class. What
            does not count is not drawn. None: everywhere.
        seed: of the draws, of liblinear and of the folds.
        classes: int64 labels are below it; None: the highest label and one.

    Returns:
        Fractions by k: "map_4", of one label a sample "top1_4" (the class with the highest score) before it; and
        "deviation_4", that of the first over the draws (of the population). Of all samples "map_full", likewise.

    Raises:
        ValueError: nothing to do, k or draws below 1, labels out of range or of other kinds, or as of `scores`.
    """
    if not (shots or full) or min(shots, default=1) < 1 or draws < 1:
        raise ValueError(f"low shot: k and draws are at least 1, got {tuple(shots)} and {draws}")
    several = train_labels.dtype == torch.bool
    if several != (test_labels.dtype == torch.bool):
        raise ValueError("low shot: training and test labels are of different kinds")
    if several:
        positive = train_labels if train_known is None else train_labels & train_known
    else:
        highest = int(max(train_labels.max(), test_labels.max()))
        classes = highest + 1 if classes is None else classes
        if highest >= classes or min(train_labels.min(), test_labels.min()) < 0:
            raise ValueError(f"labels lie in 0 to {classes - 1}: low shot needs one for each sample")
        positive, train_known = F.one_hot(train_labels, classes).bool(), None

    true = test_labels.cpu()
    shown = true if several else F.one_hot(true, positive.shape[1]).bool()
    there = test_known.cpu() if several and test_known is not None else None

    def figures(rows: Tensor) -> dict[str, float]:
        known = None if train_known is None else train_known[rows]
        said = scores(train[rows], positive[rows], test, config, known=known, seed=seed)
        top = {} if several else {"top1": (said.argmax(1) == true).double().mean().item()}
        return {**top, "map": mean_average_precision(said, shown, known=there, points=config.points)}

    out: dict[str, float] = {}
    for k in shots:
        found = [figures(drawn(positive, k, seed=seed, run=run)) for run in range(draws)]
        values = torch.tensor([list(one.values()) for one in found])  # (draws, 1 or 2)
        out |= {f"{name}_{k}": mean for name, mean in zip(found[0], values.mean(0).tolist(), strict=True)}
        out[f"deviation_{k}"] = values[:, 0].std(correction=0).item()
    if full:
        all_of_them = figures(torch.arange(len(train), device=train.device))
        out |= {f"{name}_full": value for name, value in all_of_them.items()}
    return out
