"""Weighted nearest neighbours (Wu, Xiong, Yu, Lin; CVPR 2018, arXiv 1805.01978, section 3.4), and each sample among all
others of its set (S. Jenni's thesis on self-supervised learning, section 4.4, Figure 4.6).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.metrics.retrieval import neighbours, standardized

_CELLS = 2**24  # votes held at once


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


@torch.no_grad()
def knn_loocv(
    features: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10, 20, 50, 100, 200),
    temperature: float | None = None,
    standardize: bool = True,
    classes: int | None = None,
) -> dict[str, float]:
    """Leave-one-out cross-validation: each sample is classified by its k nearest among all others of the same set.

    The thesis: "The features are standardized, and cosine similarity is used" (section 4.4). How neighbours vote it
    does not say: here each has one vote, and of equal votes the lower class wins (ours); nor does it print its k. Its
    features are of five crops, one behind the other. Memory is bounded: neither all similarities nor all votes are
    held at once.

    Args:
        features: (N, D).
        labels: int64 (N,), on the same device.
        ks: numbers of neighbours, each at least 1; those above N - 1 are left out.
        temperature: tau > 0: a vote weighs exp(cosine / tau), as of `knn`. None: 1.
        standardize: subtract each dimension's mean over the set and divide by its deviation, first.
        classes: labels are below it; None: the highest label and one.

    Returns:
        Fractions "top1_1", "top1_5" and so on, by k.

    Raises:
        ValueError: no k from 1 to N - 1, one below 1, a temperature not above 0, labels out of range or of another
            number, or features that are not finite.
    """
    fitting = sorted(k for k in set(ks) if k < len(features))
    if not fitting or fitting[0] < 1:
        raise ValueError(f"k = {tuple(ks)} neighbours of each of {len(features)} among all others: choose from 1 on")
    if temperature is not None and temperature <= 0:
        raise ValueError(f"knn's temperature is above 0, got {temperature}")
    if len(labels) != len(features):
        raise ValueError(f"{len(features)} features and {len(labels)} labels: kNN needs one for each sample")
    classes = int(labels.max()) + 1 if classes is None else classes
    if int(labels.max()) >= classes or int(labels.min()) < 0:
        raise ValueError(f"labels lie in 0 to {classes - 1}: kNN needs one for each sample")
    if standardize:
        features, _ = standardized(features, features)
    index, similarity = neighbours(features, features, k=fitting[-1], same=True)  # (N, k)
    weight = torch.ones_like(similarity)
    if temperature is not None:
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
    right = dict.fromkeys(fitting, 0)
    for rows in torch.arange(len(features), device=features.device).split(max(_CELLS // classes, 1)):
        votes = torch.zeros(len(rows), classes, dtype=torch.int64, device=features.device)
        before = 0
        for k in fitting:
            near = index[rows, before:k]
            votes.scatter_add_(1, labels[near], (weight[rows, before:k] * 2.0**40).long())  # as of `knn`
            right[k] += int((votes.argmax(1) == labels[rows]).sum())  # of equals the lower class
            before = k
    return {f"top1_{k}": n / len(features) for k, n in right.items()}
