"""Frechet Inception Distance (Heusel et al., NeurIPS 2017, arXiv 1706.08500) and Inception Score (Salimans et al.,
NeurIPS 2016, arXiv 1606.03498), of whatever features and class probabilities they are given.

Both say more of the network than of the images when the network is another one: figures of two extractors can't be
compared, and their names are to stand beside them.

Legend: N and M samples, D features, K classes.
"""

import torch
from torch import Tensor


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, factor2: Tensor | None = None) -> float:
    """Squared Frechet distance of two Gaussians: |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)), at least 0.

    With C = F F^T from the eigenvalues of C, the last trace is the sum of the singular values of F1^T F2, which is
    D x D, real and never negative: nothing is inverted, no square root of a product is taken, and covariances
    without full rank (fewer samples than features) are as good as others. Eigenvalues below D * 2^-52 of the largest
    are rounding, and count as 0. Computed in float64.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: (D, D), symmetric, no eigenvalue below 0.
        factor2: `factor(cov2)`, where many are compared with one.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a matrix that is no covariance.
    """
    m1, c1, m2, c2 = (x.detach().double() for x in (mean1, cov1, mean2, cov2))
    if not (m1.shape == m2.shape and c1.shape == c2.shape == (len(m1), len(m1))):
        shapes = ", ".join(str(tuple(x.shape)) for x in (m1, c1, m2, c2))
        raise ValueError(f"means (D,) and covariances (D, D) of one D are compared, got {shapes}")
    if not all(x.isfinite().all() for x in (m1, c1, m2, c2)):
        raise ValueError("the means or covariances hold values that are not finite")
    overlap = torch.linalg.svdvals(factor(c1).T @ (factor(c2) if factor2 is None else factor2)).sum()
    distance = (m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * overlap
    return max(distance.item(), 0.0)  # of equal Gaussians rounding may leave less


def factor(covariance: Tensor) -> Tensor:
    """F (D, rank) with F F^T = covariance (D, D), of float64."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    floor = len(values) * torch.finfo(torch.float64).eps * values.abs().max()
    if values.min() < -1e6 * floor:
        raise ValueError(f"a covariance has no eigenvalue below 0, this matrix has {values.min().item():g}")
    kept = values > floor
    return vectors[:, kept] * values[kept].sqrt()


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> mean (D,) and covariance (D, D) in float64, the latter divided by N - 1 as in the authors' code.

    Raises:
        ValueError: not of two dimensions, fewer than 2 samples, or values that are not finite.
    """
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"features are (N, D) of at least 2 samples, got {tuple(features.shape)}")
    x = features.detach().double()
    mean = x.mean(0)
    centred = x - mean
    covariance = centred.T @ centred / (len(x) - 1)
    if not covariance.isfinite().all():
        raise ValueError("features hold values that are not finite")
    return mean, covariance


def fid(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians with the moments of two sets of features (N, D) and (M, D).

    It is 0 for equal moments, and biased upwards by few samples: compare figures of equal N and M alone.

    Raises:
        ValueError: as `moments` and `frechet_distance`.
    """
    return frechet_distance(*moments(features_a), *moments(features_b))


def inception_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp of the mean over samples of KL(p(y|x) || p(y)), in nats: 1 where all predictions are equal, K at most.

    p(y) is the mean of p(y|x) over the split. The samples are taken in their order, in parts of as equal sizes as
    N allows. KL is the entropy of the mean less the mean of the entropies.

    Args:
        probabilities: (N, K), each row at least 0 and of sum 1.
        splits: parts, 1 to N. The authors' code: 10.

    Returns:
        Mean over the splits, and their deviation (divided by the number of splits, as in the authors' code).

    Raises:
        ValueError: rows that are no probabilities, or splits out of range.
    """
    if probabilities.dim() != 2 or not 1 <= splits <= len(probabilities):
        raise ValueError(
            f"{splits} splits of probabilities {tuple(probabilities.shape)}: give (N, K) and 1 to N splits"
        )
    p = probabilities.detach().double()
    if not (p.min() >= 0 and (p.sum(1) - 1).abs().max() < 1e-3):  # false for values that are not finite, too
        raise ValueError("each row holds probabilities: at least 0, and 1 in sum")
    scores = torch.stack(
        [
            (torch.special.entr(part.mean(0)).sum() - torch.special.entr(part).sum(1).mean()).exp()
            for part in p.tensor_split(splits)
        ]
    )
    return scores.mean().item(), scores.std(correction=0).item()
