"""Labels that are learned: noise on them, and orders in which a batch's parts have the same ones.

S. Jenni's thesis on self-supervised learning, chapter 8 (S. Jenni, P. Favaro, "Deep Bilevel Learning", ECCV 2018). All
is a function of (seed, epoch, index): the same on every rank, and again after a restart.

Legend: N samples, B global batch, k parts.
"""

import torch
from torch import Tensor

from methods.parts import draw
from pipelines.errors import UserError


def by_class(order: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`order` (N,), rows of `label` (N,), sorted by class and else as it was; each one's place within its class, from
    0; and the size of its class: int64 (N,) each."""
    rows = order[label[order].argsort(stable=True)]
    counts = label.bincount()
    size = counts.repeat_interleave(counts)
    return rows, torch.arange(len(label)) - (counts.cumsum(0) - counts).repeat_interleave(counts), size


def uniform_noise(label: Tensor, index: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """A share of each class's labels replaced by uniform ones of the other classes (section 8.4.3).

    Args:
        label: int64 (N,), the true ones.
        index: int64 (N,), the samples' positions in the dataset.
        share: pi, in [0, 1]; of n samples of a class exactly round(pi n) are changed.

    Returns:
        int64 (N,).

    Raises:
        UserError: a share out of range, or noise where there is one class alone.
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of noisy labels lies in [0, 1], got {share}")
    if share and classes < 2:
        raise UserError("labels of one class alone cannot be made noisy: there is no other")
    u = draw(seed, 0, index, "label noise", 2).double()
    rows, place, size = by_class(u[:, 0].argsort(stable=True), label)
    changed = rows[place < (share * size.double()).round()]
    out = label.clone()
    out[changed] = (label[changed] + 1 + (u[changed, 1] * (classes - 1)).long()) % classes
    return out


def balanced(label: Tensor, index: Tensor, parts: int, batch_size: int, seed: int, epoch: int) -> Tensor:
    """Rows of an epoch in whole batches, each of `parts` parts, one behind the other, with identical label counts
    (section 8.3).

    Samples of a class are taken in tuples of k, one for each part; what is left of a class, and of the tuples that
    fill no batch, is not used in this epoch.

    Args:
        label: int64 (N,), the labels that are learned.
        index: int64 (N,), the samples' positions in the dataset.
        parts: k.

    Returns:
        int64 (steps * B,), each row at most once; steps depend on the label counts alone.

    Raises:
        UserError: parts that do not divide the batch, or labels too rare for a single batch.
    """
    if parts < 1 or batch_size % parts:
        raise UserError(f"{parts} parts do not divide a batch of {batch_size}: give --batch-size a multiple of them")
    u = draw(seed, epoch, index, "balanced", 2)
    rows, place, size = by_class(u[:, 0].argsort(stable=True), label)
    tuples = rows[place < size // parts * parts].view(-1, parts)  # of one class each
    tuples = tuples[u[tuples[:, 0], 1].argsort(stable=True)]
    steps = len(tuples) * parts // batch_size
    if not steps:
        raise UserError(
            f"labels are too rare to balance: {parts} of a class are taken together, and {len(tuples)} such groups do "
            f"not fill a batch of {batch_size}; give fewer --method.parts, a smaller --batch-size or more data"
        )
    return tuples[: steps * batch_size // parts].view(steps, -1, parts).transpose(1, 2).flatten()
