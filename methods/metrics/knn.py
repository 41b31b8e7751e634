"""Weighted nearest neighbours (Wu, Xiong, Yu, Lin; CVPR 2018, arXiv 1805.01978, section 3.4)."""

import torch
from torch import Tensor

from methods.metrics.retrieval import neighbours


@torch.no_grad()
def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
) -> dict[str, float]:
    """Each of the k nearest training samples votes for its class with the weight exp(cosine / temperature).

    Cosine of L2-normalized features as they are: neither centred nor whitened. Nothing is left to chance: of equal
    similarities the lower index is the nearer, of equal votes the lower class wins, and votes are added as integers.
    The paper's k is 200; here 20 is the default, which suits training sets of some thousands too.

    Args:
        train: (N, D).
        train_labels: int64 (N,).
        test: (M, D), on the same device.
        test_labels: int64 (M,).
        k: at most N.
        temperature: tau > 0.
        classes: labels are below it; None: the highest label and one.

    Returns:
        Fractions: "top1", and "top5" where there are more than 5 classes.

    Raises:
        ValueError: k above N, temperature not above 0, labels out of range, features that are not finite.
    """
    if temperature <= 0:
        raise ValueError(f"knn's temperature is above 0, got {temperature}")
    highest = int(max(train_labels.max(), test_labels.max()))
    classes = highest + 1 if classes is None else classes
    if highest >= classes or min(train_labels.min(), test_labels.min()) < 0:
        raise ValueError(f"labels lie in 0 to {classes - 1}: kNN needs one for each sample")
    index, similarity = neighbours(test, train, k=k)  # (M, k)
    weight = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest votes 1: the same ratios
    votes = torch.zeros(len(test), classes, dtype=torch.int64, device=test.device)
    votes.scatter_add_(1, train_labels[index], (weight * 2.0**40).long())  # integers: any order, the same sum
    ranked = votes.argsort(dim=1, descending=True, stable=True)  # (M, classes)
    right = ranked == test_labels[:, None]
    return {f"top{n}": right[:, :n].any(1).double().mean().item() for n in (1, 5) if n == 1 or classes > n}
