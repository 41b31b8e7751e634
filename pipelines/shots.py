"""Protocols on few labels, on neighbours within one set and on other data.

Images with several labels (VOC 2007 as `python -m pipelines data voc2007` writes it) have no column `label` but
`labels`, a list of classes, and may have `difficult`, the classes of which an image shows difficult objects alone;
`class_names` stand in the schema. They are for `low_shot` and `transfer`, of Parquet files.
"""

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pyarrow.fs import FileSystem
from torch import Tensor

from methods.metrics.knn import knn_loocv
from methods.metrics.logistic import Metric, logistic, logistic_several
from methods.metrics.svm import SVM, low_shot
from methods.optim import Optimizer
from methods.parts import draw
from pipelines import transfer
from pipelines.errors import UserError
from pipelines.labels import by_class
from pipelines.pictures import Result
from pipelines.sources import Data, Source, read_column, selected
from pipelines.storage import Folder
from pipelines.transfer import Finetune

if TYPE_CHECKING:
    from pipelines.evaluate import Part, Ready

Difficult = Literal["negative", "left_out"]
"""Of an image that shows difficult objects of a class alone: it counts as one without the class, or not at all, as in
VOC's own evaluation."""


@dataclass(frozen=True)
class LowShot:
    """Of `low_shot`: ReSSL's Table 11; SCE's Table 10 has 16, 32, 64 and all. With --data.size 256 a network of 224 px
    sees what both do: images resized to 256 px, of which the centre."""

    shots: tuple[int, ...] = (4, 8, 16, 32, 64)
    """k: labelled training images of each class. One of several classes may be drawn for each of them."""
    draws: int = 5
    """Of each k, whose mean is the figure."""
    full: bool = True
    """With all training images too, once."""
    svm: SVM = field(default_factory=SVM)
    difficult: Difficult = "negative"
    """negative: as in the code of PCL, which both papers follow."""


@dataclass(frozen=True)
class LeaveOneOut:
    """Of `knn_loocv`: S. Jenni's thesis, Figure 4.6, whose k are not printed."""

    ks: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200)
    """Neighbours that vote; those above the number of the other test images are left out."""
    temperature: float | None = None
    """None: each has one vote (ours); else a vote weighs exp(cosine / temperature)."""
    standardize: bool = True
    """Each dimension of the features, over the test images."""


Percent = Literal[1, 10]
SGD = Optimizer(lr=0.1, scaling="none", weight_decay=0.0)
RESSL_1 = Finetune(freeze=True, optimizer=SGD, batch_size=256, epochs=60)
RESSL_10 = Finetune(optimizer=dataclasses.replace(SGD, lr=0.02), classifier_rate=10.0, batch_size=256, epochs=20)


@dataclass(frozen=True)
class SemiSupervised:
    """Of `semi_supervised`. Defaults: ReSSL's (journal version, Tables 10 and 14), "a cosine learning rate scheduler",
    no weight decay. It names no optimizer and no batch size: SGD with momentum .9 and 256 are ours.

    Others: `RCL`.
    """

    percents: tuple[Percent, ...] = (1, 10)
    """Of the training images that keep their labels."""
    one: Finetune = RESSL_1
    """With 1%: the backbone is frozen, rate .1, 60 epochs."""
    ten: Finetune = RESSL_10
    """With 10%: rate .02, of the classifier .2, 20 epochs."""
    one_list: str = ""
    """A text file of the images that keep their labels, one on a line: the name, as in the Parquet column `name`, or
    the position in the training data, from 0. ReSSL and RCL take the published lists of SimCLR. Empty: as many of each
    class are drawn, by the evaluation's seed; those of 1% are among those of 10%."""
    ten_list: str = ""

    def __post_init__(self) -> None:
        if not self.percents or set(self.percents) - {1, 10}:
            raise ValueError(f"semi_supervised.percents are 1, 10 or both, got {self.percents}")


_SIMCLR = Finetune(
    optimizer=Optimizer(lr=0.05, nesterov=True, weight_decay=0.0), augment="resized_crop", batch_size=4096, epochs=60
)
RCL = SemiSupervised(one=_SIMCLR, ten=dataclasses.replace(_SIMCLR, epochs=30))
"""RCL, Table 2: "following the standard evaluation protocol [7, 8], thus fine-tuning the whole base network on 1% or
10% ImageNet data with labels without regularization". It gives no more; the rest is what it refers to, SimCLR's
appendix: Nesterov momentum .9, rate .05 * batch / 256, batch 4096, no warm-up, 60 and 30 epochs, crops and flips. The
cosine is ours."""


@dataclass(frozen=True)
class Transfer:
    """Of `transfer`. Defaults: ReSSL's Table 9 and SCE's, L-BFGS and no augmentation. `linear`: Prelax's Table 2b, by
    the options of the protocol `linear`.

    SCE (section 4.4) reports top-1, but of Aircraft, Caltech-101, Pets and Flowers the mean over the classes (give
    `metric` mean_per_class, `mean_per_class` is the figure) and of VOC 2007 the 11-point mAP; ReSSL names no metric.
    """

    train: str = ""
    """The other data's training images, as of --data.train: `python -m pipelines data NAME` writes them for food101,
    cifar10, cifar100, sun397, cars, aircraft, voc2007, dtd, pets, caltech101 and flowers."""
    test: str = ""
    image: str = "image"
    """Parquet column of theirs, as --data.image."""
    label: str = "label"
    classifier: Literal["logistic", "linear"] = "logistic"
    metric: Metric = "top1"
    """What the L2 strength is chosen by; both are reported. Of images with several labels it is mAP."""
    regularizations: tuple[float, ...] = tuple(float(value) for value in np.logspace(5, -6, 45))
    """L2 strengths to choose from: SimCLR's 45, whose setup ReSSL follows. See `methods.metrics.logistic`."""
    validation: float = 0.2
    """Share of the training images on which the strength is chosen (ours; "from validation splits")."""
    max_iterations: int = 200
    """Of L-BFGS."""
    difficult: Difficult = "left_out"


# ----------------------------------------------------------------------------------------------- labels


def several_labels(source: Source) -> tuple[Tensor, Tensor]:
    """Which classes the images of a Parquet dataset show, by the column `labels`, and which only as difficult objects:
    bool (N, C) each.

    Raises:
        UserError: no such column, no class names, or a class that they do not have.
    """
    told = "this protocol needs a label for each image: give --data.label, or Parquet files with lists in `labels`"
    if source.kind != "parquet":
        raise UserError(told)
    filesystem = _filesystem(source)
    parts = []
    for path in dict.fromkeys(group.path for group in source.groups):
        schema = pq.read_schema(path, filesystem=filesystem)
        if "labels" not in schema.names:
            raise UserError(f"{path}: {told}")
        if not (names := json.loads((schema.metadata or {}).get(b"class_names", b"[]"))):
            raise UserError(f"{path}: labels of several classes need class_names (JSON) in the schema's metadata")
        wanted = [name for name in ("labels", "difficult") if name in schema.names]
        table = pq.read_table(path, columns=wanted, filesystem=filesystem)
        shape = table.num_rows, len(names)
        parts.append(tuple(_marked(table, name, shape, path) for name in ("labels", "difficult")))
    if len({part[0].shape[1] for part in parts}) > 1:
        raise UserError(f"the files beside {path} name other classes: write them anew together")
    shown, difficult = (torch.cat(column) for column in zip(*parts, strict=True))
    return shown, difficult & ~shown


def _filesystem(source: Source) -> FileSystem | None:
    return FileSystem.from_uri(source.filesystem)[0] if source.filesystem else None


def _marked(table: pa.Table, name: str, shape: tuple[int, int], path: str) -> Tensor:
    out = torch.zeros(shape, dtype=torch.bool)
    if name in table.column_names:
        column = table[name].combine_chunks()
        row, classes = (
            np.array(found, np.int64) for found in (pc.list_parent_indices(column), pc.list_flatten(column))
        )
        if len(classes) and not 0 <= classes.min() <= classes.max() < shape[1]:
            raise UserError(f"{path}: column {name} has other classes than the {shape[1]} of class_names")
        out[torch.from_numpy(row), torch.from_numpy(classes)] = True
    return out


def labels_of(ready: "Ready", part: "Part", difficult: Difficult) -> tuple[Tensor, Tensor | None]:
    """Of the images whose features there are: int64 (n,); or of images with several labels bool (n, C), and where they
    count, bool (n, C), or None for everywhere."""
    if ready.classes is not None:
        ready.labelled(part)
        return getattr(ready, part).label, None
    index = getattr(ready, part).index
    shown, hard = (column[index] for column in several_labels(ready.source(part)))
    return shown, ~hard if difficult == "left_out" else None


# -------------------------------------------------------------------------------------------- protocols


def run_low_shot(ready: "Ready", of: str) -> Result:
    """Linear SVM on k labelled images of each class, mean of several draws: top-1, or mAP of several labels."""
    chosen = ready.options.low_shot
    (label, known), (test_label, test_known) = (labels_of(ready, p, chosen.difficult) for p in ("train", "test"))
    figures = low_shot(
        ready.train.of[of],
        label,
        ready.test.of[of],
        test_label,
        chosen.svm,
        shots=chosen.shots,
        full=chosen.full,
        draws=chosen.draws,
        train_known=known,
        test_known=test_known,
        seed=ready.options.seed,
        classes=ready.classes,
    )
    return figures, {}


def run_knn_loocv(ready: "Ready", of: str) -> Result:
    """k nearest neighbours of each test image among the other test images (leave-one-out), for several k."""
    ready.labelled("test")
    chosen = ready.options.knn_loocv
    figures = knn_loocv(
        ready.test.of[of],
        ready.test.label,
        ks=chosen.ks,
        temperature=chosen.temperature,
        standardize=chosen.standardize,
        classes=ready.classes,
    )
    return figures, {}


def elsewhere(ready: "Ready") -> "Ready":
    """`ready` on the data of `transfer`: all training images, without the noise of the run's."""
    chosen, data = ready.options.transfer, ready.options.data
    if not (chosen.train and chosen.test):
        raise UserError("transfer is to other data: give --transfer.train and --transfer.test")
    other = dataclasses.replace(
        data.clean(),
        train=chosen.train,
        test=chosen.test,
        image=chosen.image,
        label=chosen.label,
        limit=None,
        permuted=False,
    )
    return dataclasses.replace(ready, options=dataclasses.replace(ready.options, data=other, groups=""))


def run_logistic_elsewhere(ready: "Ready", of: str) -> Result:
    """`ready`: that of `elsewhere`."""
    chosen = ready.options.transfer
    (label, known), (test_label, test_known) = (labels_of(ready, p, chosen.difficult) for p in ("train", "test"))
    search: dict[str, Any] = {
        "regularizations": chosen.regularizations,
        "validation": chosen.validation,
        "seed": ready.options.seed,
        "max_iterations": chosen.max_iterations,
    }
    train, test = ready.train.of[of], ready.test.of[of]
    if ready.classes is not None:
        return logistic(train, label, test, test_label, metric=chosen.metric, **search), {}
    return logistic_several(train, label, test, test_label, train_known=known, test_known=test_known, **search), {}


def run_semi_supervised(ready: "Ready", of: str) -> Result:
    """The network, or its classifier alone, trained with 1% and 10% of the training labels: top-1 and top-5 of each."""
    chosen, options = ready.options.semi_supervised, ready.options
    if options.data.media != "image":
        raise UserError("semi_supervised is for images")
    figures: dict[str, Any] = {}
    for percent in chosen.percents:
        settings, listed = (chosen.one, chosen.one_list) if percent == 1 else (chosen.ten, chosen.ten_list)
        rows = subset(ready, percent / 100, listed)
        data = written(ready, rows, ready.subject.folder / "evaluation")
        batch = min(settings.batch_size, len(rows)) // options.workers * options.workers
        settings = dataclasses.replace(settings, batch_size=max(batch, 2))
        found = transfer.tuned(ready, of, "semi_supervised", settings, data)
        figures |= {f"{name}_{percent}": value for name, value in found.items()}
        figures |= {f"labels_{percent}": len(rows), f"batch_{percent}": settings.batch_size}
    return figures, {}


# ----------------------------------------------------------------------------------------------- subset


def subset(ready: "Ready", share: float, listed: str = "") -> Tensor:
    """int64, ascending dataset indices of the training images that keep their labels: those of a list, or as many of
    each class (one more of some, which are drawn too), of a class with fewer all, and at least one."""
    source = ready.source("train")
    if ready.classes is None:
        raise UserError("this protocol needs a label for each image: give --data.label")
    if listed:
        return from_list(source, listed)
    index = torch.from_numpy(selected(source, ready.options.data.limit))
    return balanced_rows(classes_of(source)[index], index, share, ready.options.seed)


def balanced_rows(label: Tensor, index: Tensor, share: float, seed: int) -> Tensor:
    """int64, ascending: of `index` (N,) a share of all, as many of each class of `label` (N,) as of the others."""
    number, label = label.unique(return_inverse=True)
    order = draw(seed, 0, index, "labelled", 1)[:, 0].argsort(stable=True)
    rows, place, _ = by_class(order, label)
    each, left = divmod(int(share * len(label)), len(number))
    more = draw(seed, 0, number, "labelled classes", 1)[:, 0].argsort(stable=True).argsort() < left
    return index[rows[place < (each + more.long())[label[rows]].clamp(min=1)]].sort().values


def classes_of(source: Source) -> Tensor:
    """int64 (N,), numbers that are the same for images of one class; no image is decoded, and of Parquet none read."""
    if source.kind == "parquet":
        return read_column(source, source.label)
    parts = []
    for group in source.groups:
        count = 1 if source.kind == "folder" else group.rows  # whose groups are of one class each
        label = source.read(group, np.arange(count)).label
        parts.append(np.full(group.rows, -1) if label is None else np.broadcast_to(label, group.rows))
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def from_list(source: Source, path: str) -> Tensor:
    """int64, ascending dataset indices of the images that a text file names."""
    try:
        with open(path) as file:
            lines = {line.strip() for line in file} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if all(line.isdecimal() for line in lines):
        found = torch.tensor(sorted(int(line) for line in lines))
        if not len(found) or found[-1] >= source.rows:
            raise UserError(f"{path}: there are {source.rows:,} training images, numbered from 0")
        return found
    filesystem = _filesystem(source)
    files = [*dict.fromkeys(group.path for group in source.groups)]
    if source.kind != "parquet" or any("name" not in pq.read_schema(f, filesystem=filesystem).names for f in files):
        raise UserError(f"{path} names files, and the training data have no Parquet column name: list positions")
    columns = [pq.read_table(file, columns=["name"], filesystem=filesystem)["name"] for file in files]
    here = pc.is_in(pa.chunked_array([chunk for column in columns for chunk in column.chunks]), pa.array(sorted(lines)))
    rows = torch.from_numpy(np.flatnonzero(np.array(here)))
    if len(rows) != len(lines):
        raise UserError(f"{path} names {len(lines):,} images, of which {len(rows):,} are among the training images")
    return rows


BYTES_PER_FILE = 2**28


def written(ready: "Ready", rows: Tensor, storage: Folder) -> Data:
    """The training images at these dataset indices as Parquet files of their own, copied as they are, under `storage`,
    unless they are there; the data with them as training data.

    Raises:
        UserError: one of them has no label, or cannot be read.
    """
    source, data = ready.source("train"), ready.options.data
    of = json.dumps([data.train, data.label, rows.tolist()])
    folder = storage / f"labelled-{len(rows)}-{hashlib.sha256(of.encode()).hexdigest()[:8]}"
    if not folder.exists("whole.json"):
        names = list(ready.class_names or map(str, range(ready.classes or 0)))
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], {"class_names": json.dumps(names)})
        images: list[bytes | None] = []
        labels: list[int] = []
        files = 0
        for number, offsets in ready.runs("train", rows, most=256):
            found = source.read(source.groups[number], offsets)
            if found.label is None or found.label.min() < 0:
                raise UserError("this protocol needs a label for each training image: give --data.label")
            images, labels = images + found.files, labels + found.label.tolist()
            if sum(len(image or b"") for image in images) >= BYTES_PER_FILE:
                _write(folder, files, pa.table([images, labels], schema=schema))
                images, labels, files = [], [], files + 1
        if images:
            _write(folder, files, pa.table([images, labels], schema=schema))
        folder.write("whole.json", json.dumps({"of": data.train, "index": rows.tolist()}).encode())
    return dataclasses.replace(
        data.clean(), train=(folder / "labelled-*.parquet").uri, image="image", label="label", limit=None
    )


def _write(folder: Folder, number: int, table: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(table, content, compression="none", use_dictionary=False, row_group_size=1000)
    folder.write(f"labelled-{number:05}.parquet", content.getvalue())
