"""Logistic regression on frozen features: what SimCLR, BYOL and ReSSL (section 5, Table 9) use for transfer."""

import warnings
from collections.abc import Sequence

import numpy as np
from torch import Tensor

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

    Returns:
        "top1" on the test set and "validation_top1", fractions; "regularization", the strength chosen;
        "converged", 1 or 0: whether the final fit ended before `max_iterations`.
    """
    from sklearn.exceptions import ConvergenceWarning  # here: it takes seconds to import
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    x, y, x_test, y_test = (v.detach().cpu().numpy() for v in (train.float(), train_labels, test.float(), test_labels))
    scale = float(np.sqrt(np.square(x).sum(1).mean())) or 1.0
    x, x_test = x / np.float32(scale), x_test / np.float32(scale)
    fit_rows, held_rows = train_test_split(np.arange(len(y)), test_size=validation, stratify=y, random_state=seed)
    model = LogisticRegression(max_iter=max_iterations, warm_start=True)
    found: dict[float, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # returned instead
        for strength in sorted(regularizations, reverse=True):
            model.set_params(C=1.0 / strength).fit(x[fit_rows], y[fit_rows])
            found[strength] = float(model.score(x[held_rows], y[held_rows]))
        best = max(found, key=lambda strength: found[strength])  # the first of equals: the strongest
        model.set_params(C=1.0 / best, warm_start=False).fit(x, y)
    return {
        "top1": float(model.score(x_test, y_test)),
        "regularization": best,
        "validation_top1": found[best],
        "converged": float(model.n_iter_.max() < max_iterations),
    }
