"""Logistic regression on frozen features: what SimCLR, BYOL and ReSSL (section 5, Table 9) use for transfer."""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from methods.metrics.groups import balanced_accuracy
from methods.metrics.precision import mean_average_precision

Metric = Literal["top1", "mean_per_class"]

REGULARIZATIONS = tuple(10.0**power for power in range(2, -7, -1))
"""Nine L2 strengths, 100 to 1e-6. SimCLR searches 45, log-spaced from 1e-6 to 1e5: `numpy.logspace(5, -6, 45)`."""


def logistic(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    regularizations: Sequence[float] = REGULARIZATIONS,
    validation: float = 0.1,
    seed: int = 0,
    max_iterations: int = 200,
    metric: Metric = "top1",
) -> dict[str, float]:
    """Multinomial logistic regression by L-BFGS; the L2 strength is chosen on a validation split, then all is used.

    Minimizes the sum of the samples' cross entropies + regularization / 2 * |W|^2 (scikit-learn's C is its inverse);
    the bias is free. Features are not standardized: the papers name no such step. All are divided by one number, the
    root mean squared norm of the training features, so that a strength means the same for any network and for raw
    pixels: it is the search over strengths, shifted. No augmentation, as in the papers. The strengths are tried
    from the strongest on, each started from the one before; of equal validation accuracies the strongest wins. Neither
    ReSSL nor SimCLR gives the split's share or the number of iterations: both are arguments. ReSSL also selects a
    learning rate, which L-BFGS does not have.

    Args:
        train: (N, D).
        train_labels: int64 (N,), at least two samples a class.
        test: (M, D).
        test_labels: int64 (M,).
        regularizations: L2 strengths above 0; one alone is taken without a search.
        validation: the split's share of the training samples, stratified by class.
        seed: of the split.
        max_iterations: L-BFGS iterations of each fit.
        metric: what the strength is chosen by: the share of samples that are recognized, or its mean over the classes.

    Returns:
        "top1" and "mean_per_class" (over the classes that the test set has) on the test set and "validation_top1" (or
        "validation_mean_per_class"), fractions; "regularization", the strength chosen; "converged", 1 or 0: whether
        the final fit ended before `max_iterations`.
    """
    from sklearn.exceptions import ConvergenceWarning  # here: it takes seconds to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    x, y, x_test, y_test = (v.detach().cpu().numpy() for v in (train.float(), train_labels, test.float(), test_labels))
    x, x_test = _scaled(x, x_test)
    fit_rows, held_rows = train_test_split(np.arange(len(y)), test_size=validation, stratify=y, random_state=seed)
    model = LogisticRegression(max_iter=max_iterations, warm_start=True)

    def figures(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        said, true = torch.from_numpy(model.predict(x)), torch.from_numpy(y)
        mean = balanced_accuracy(said, true, int(true.max()) + 1)
        return {"top1": (said == true).double().mean().item(), "mean_per_class": mean}

    found: dict[float, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # returned instead
        for strength in sorted(regularizations, reverse=True):
            model.set_params(C=1.0 / strength).fit(x[fit_rows], y[fit_rows])
            found[strength] = figures(x[held_rows], y[held_rows])[metric]
        best = max(found, key=lambda strength: found[strength])  # the first of equals: the strongest
        model.set_params(C=1.0 / best, warm_start=False).fit(x, y)
    return {
        **figures(x_test, y_test),
        "regularization": best,
        f"validation_{metric}": found[best],
        "converged": float(model.n_iter_.max() < max_iterations),
    }


def _scaled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.float32(float(np.sqrt(np.square(train).sum(1).mean())) or 1.0)
    return train / scale, test / scale


def logistic_several(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    train_known: Tensor | None = None,
    test_known: Tensor | None = None,
    regularizations: Sequence[float] = REGULARIZATIONS,
    validation: float = 0.1,
    seed: int = 0,
    max_iterations: int = 200,
    points: int | None = 11,
) -> dict[str, float]:
    """`logistic` of samples with several labels: a classifier for each class, and mean average precision.

    One strength for all classes, by the mean average precision on a validation split that is drawn at random.

    Args:
        train, test, regularizations, validation, seed, max_iterations: as of `logistic`.
        train_labels: bool (N, C).
        test_labels: bool (M, C).
        train_known, test_known: bool (N, C) and (M, C), where a sample counts for a class. None: everywhere.
        points: of recall in the average precision; 11: VOC 2007's (SCE, section 4.4). None: the area.

    Returns:
        "map" on the test set and "validation_map", fractions; "regularization" and "converged", as of `logistic`.

    Raises:
        ValueError: a class without positive or negative samples in the part that is fitted to.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    x, x_test = _scaled(*(features.detach().float().cpu().numpy() for features in (train, test)))
    target, true = train_labels.cpu(), test_labels.cpu()
    known, counted = (
        torch.ones_like(labels) if given is None else given.cpu()
        for labels, given in ((target, train_known), (true, test_known))
    )
    rows, held = train_test_split(np.arange(len(x)), test_size=validation, random_state=seed)
    for c in range(target.shape[1]):
        there = target[rows, c][known[rows, c]]
        if there.all() or not there.any():
            raise ValueError(f"class {c} has samples of one kind alone to fit to: give more training data")

    def models() -> list[LogisticRegression]:
        return [LogisticRegression(max_iter=max_iterations, warm_start=True) for _ in range(target.shape[1])]

    def fitted(machines: list[LogisticRegression], strength: float, part: np.ndarray) -> list[LogisticRegression]:
        for c, machine in enumerate(machines):
            of = part[known[part, c].numpy()]
            machine.set_params(C=1.0 / strength).fit(x[of], target[of, c].numpy())
        return machines

    def figure(machines: list[LogisticRegression], x: np.ndarray, positive: Tensor, known: Tensor) -> float:
        said = torch.from_numpy(np.stack([machine.decision_function(x) for machine in machines], 1))
        return mean_average_precision(said, positive, known=known, points=points)

    found: dict[float, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # returned instead
        machines = models()
        for strength in sorted(regularizations, reverse=True):
            found[strength] = figure(fitted(machines, strength, rows), x[held], target[held], known[held])
        best = max(found, key=lambda strength: found[strength])  # the first of equals: the strongest
        machines = fitted(models(), best, np.arange(len(x)))
    return {
        "map": figure(machines, x_test, true, counted),
        "regularization": best,
        "validation_map": found[best],
        "converged": float(max(int(machine.n_iter_.max()) for machine in machines) < max_iterations),
    }
