"""Labels that are learned: noise on them, and orders in which a batch's parts have the same ones.

S. Jenni's thesis on self-supervised learning, chapter 8 (S. Jenni, P. Favaro, "Deep Bilevel Learning", ECCV 2018). All
is a function of (seed, epoch, index): the same on every rank, and again after a restart.

Legend: N samples, B global batch, k parts.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from methods.parts import draw
from pipelines.errors import UserError
from pipelines.sources import Data, Source, read_labels
from pipelines.storage import Folder

FILE = "labels.parquet"
"""In a run's folder, where labels are noisy: `index`, `label` (what is learned) and `true_label` of each usable row."""


@dataclass(frozen=True)
class Balance:
    """Of a batch."""

    parts: int
    """k, with identical label counts."""
    validation_ratio: float = 0.0
    """Share of each class's samples, in [0, 1], that the first part is made of, and no other. 0: there are none."""


def by_class(order: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`order` (M,), some rows of `label` (N,), sorted by class and else as it was; each one's place within its class,
    from 0; and the size of its class: int64 (M,) each."""
    rows = order[label[order].argsort(stable=True)]
    counts = label[rows].bincount()
    size = counts.repeat_interleave(counts)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return rows, torch.arange(len(rows), device=label.device) - first, size


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


def balanced(label: Tensor, index: Tensor, balance: Balance, batch_size: int, seed: int, epoch: int) -> Tensor:
    """Rows of an epoch in whole batches, each of k parts, one behind the other, with identical label counts (section
    8.3).

    Samples of a class are taken in tuples of k, one for each part; what is left of a class, and of the tuples that
    fill no batch, is not used in this epoch. Those that only validate, the same ones in all epochs, are the first of
    tuples of k - 1 others, and come as often as there are tuples.

    Args:
        label: int64 (N,), the labels that are learned.
        index: int64 (N,), the samples' positions in the dataset.

    Returns:
        int64 (steps * B,), each row at most once but for those that only validate; steps depend on the label counts
        alone.

    Raises:
        UserError: parts that do not divide the batch, or labels too rare for a single batch or to validate.
    """
    parts = balance.parts
    if parts < 1 or batch_size % parts:
        raise UserError(f"{parts} parts do not divide a batch of {batch_size}: give --batch-size a multiple of them")
    u = draw(seed, epoch, index, "balanced", 2)
    order = u[:, 0].argsort(stable=True)
    if balance.validation_ratio:
        held = validating(label, index, balance.validation_ratio, seed)[order]
        trained = in_tuples(order[~held], label, parts - 1)
        tuples = torch.cat([partners(trained[:, 0], order[held], label)[:, None], trained], 1)
    else:
        tuples = trained = in_tuples(order, label, parts)
    tuples = tuples[u[trained[:, 0], 1].argsort(stable=True)]
    steps = len(tuples) * parts // batch_size
    if not steps:
        raise UserError(
            f"labels are too rare to balance: {parts} of a class are taken together, and {len(tuples)} such groups do "
            f"not fill a batch of {batch_size}; give fewer --method.parts, a smaller --batch-size or more data"
        )
    return tuples[: steps * batch_size // parts].view(steps, -1, parts).transpose(1, 2).flatten()


def too_rare(balance: Balance | None, label: np.ndarray, usable: np.ndarray, noisy: Tensor | None) -> list[int]:
    """Classes of which samples are there, but too few to be once in each part that trains: they are never learned."""
    if balance is None:
        return []
    learned = torch.from_numpy(label) if noisy is None else noisy[torch.from_numpy(usable)]
    counts = learned.bincount()
    trained = counts - (balance.validation_ratio * counts.double()).round().long()
    needed = balance.parts - (balance.validation_ratio > 0)
    return ((counts > 0) & (trained < needed)).nonzero()[:, 0].tolist()


def digest(usable: np.ndarray, label: np.ndarray) -> str:
    """SHA-256 of which rows are usable, and of their labels."""
    return hashlib.sha256(usable.tobytes() + label.tobytes()).hexdigest()


def in_tuples(order: Tensor, label: Tensor, size: int) -> Tensor:
    """Rows (M,) -> (tuples, size), each of one class, the classes in ascending order."""
    rows, place, count = by_class(order, label)
    return rows[place < count // size * size].view(-1, size)


def validating(label: Tensor, index: Tensor, ratio: float, seed: int) -> Tensor:
    """Bool (N,): of each class's n samples round(ratio n), drawn once for all epochs."""
    rows, place, size = by_class(draw(seed, 0, index, "validation", 1)[:, 0].argsort(stable=True), label)
    return torch.zeros_like(label, dtype=torch.bool).index_fill_(0, rows[place < (ratio * size.double()).round()], True)


def partners(rows: Tensor, held: Tensor, label: Tensor) -> Tensor:
    """For each of `rows` (T,), sorted by class, one of `held` of its class, all in turn: int64 (T,).

    Raises:
        UserError: a class that none is held of.
    """
    classes = int(label.max()) + 1
    sorted_held, _, _ = by_class(held, label)
    count = label[sorted_held].bincount(minlength=classes)
    _, place, _ = by_class(rows, label)
    of = label[rows]
    if (count[of] == 0).any():
        raise UserError("--data.validation-ratio leaves a class without an image that validates: give a greater one")
    return sorted_held[(count.cumsum(0) - count)[of] + place % count[of]]


def learned(data: Data, source: Source, usable: np.ndarray, label: np.ndarray, seed: int) -> Tensor | None:
    """The labels that are learned in place of the true ones: int64 (rows of the dataset,), -1 where a row is not used.
    None: the true ones are.

    Args:
        usable: int64 (N,), dataset indices of the rows that are used.
        label: int64 (N,), their true labels, -1 where there is none.

    Raises:
        UserError: noise without labels, and what `uniform_noise` and `read_labels` refuse.
    """
    noisy = data.noise > 0 or data.noise_file != ""
    if (noisy or data.order == "balanced") and (source.classes is None or label.min() < 0):
        raise UserError("noisy or balanced labels need a label for each image: give --data.label")
    if not noisy:
        return None
    out = torch.full((source.rows,), -1)
    rows = torch.from_numpy(usable)
    if data.noise_file:
        out[rows] = torch.from_numpy(read_labels(data.noise_file, source.rows, source.classes or 0))[rows]
    else:
        out[rows] = uniform_noise(torch.from_numpy(label), rows, source.classes or 0, data.noise, seed)
    return out


def with_noise(columns: Mapping[str, Tensor], noisy: Tensor | None) -> dict[str, Tensor]:
    """A batch's columns with `label` as it is learned, and `true_label` beside."""
    if noisy is None:
        return dict(columns)
    return {**columns, "true_label": columns["label"], "label": noisy[columns["index"]]}


def write(folder: Folder, usable: np.ndarray, label: np.ndarray, noisy: Tensor) -> None:
    """`FILE` of a run."""
    table = pa.table({"index": usable, "label": noisy[torch.from_numpy(usable)].numpy(), "true_label": label})
    content = io.BytesIO()
    pq.write_table(table, content)
    folder.write(FILE, content.getvalue())


def read(folder: Folder) -> Tensor | None:
    """What `learned` returned for a run, up to its last usable row, from its `FILE`; None where it has none."""
    if not folder.exists(FILE):
        return None
    table = pq.read_table(io.BytesIO(folder.read(FILE)))
    index, label = (torch.tensor(table[name].to_numpy()) for name in ("index", "label"))
    noisy = torch.full((int(index.max()) + 1,), -1)
    noisy[index] = label
    return noisy
