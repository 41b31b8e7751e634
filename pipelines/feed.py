"""Feeds: the batches of one rank, epoch by epoch. No global state: all is a function of (seed, epoch, rank).

Both hold the same rules: each sample at most once an epoch; the same number of steps on every rank, known before
the epoch starts; the last partial global batch is dropped; any step can be the first one after a restart.

Legend: N usable samples, B global batch, W ranks, b = B / W share of a rank, S decoded size.
"""

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from methods.method import Batch
from methods.parts import draw
from methods.views import View
from pipelines.clips import InspectVideos, MakeClips
from pipelines.errors import UserError
from pipelines.labels import Balance, balanced, with_noise
from pipelines.sources import NOUNS, Bad, Data, Loaded, Source, check_bad, load
from pipelines.takes import InspectTakes, MakeMoments

Views = Mapping[str, Any]
"""By name: `View` of images, `ClipView` of videos or `TakeView` of takes."""
Stage = Callable[["list[Piece]"], dict[str, np.ndarray]]


class Feed(Protocol):
    steps: int
    """Steps an epoch, equal on all ranks."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from step `start` of the epoch on."""
        ...


@dataclass(frozen=True)
class Share:
    """Which part of each global batch is this rank's."""

    batch_size: int
    rank: int = 0
    ranks: int = 1

    @property
    def size(self) -> int:
        return self.batch_size // self.ranks

    def lanes(self, count: int) -> "list[Share]":
        """The shares of `count` ranks, a multiple of these, that together are this one."""
        each = count // self.ranks
        return [Share(self.batch_size, lane, count) for lane in range(self.rank * each, (self.rank + 1) * each)]


def shuffled(seed: int, epoch: int, index: Tensor, name: str = "order") -> Tensor:
    """A permutation of range(len(index)) that depends on (seed, epoch, index) alone."""
    return draw(seed, epoch, index, name, 1)[:, 0].argsort(stable=True)


def bytes_of(views: Views) -> int:
    """Of one sample's views, of three channels."""
    return sum(math.prod(view.shape(3)) for view in views.values())


def add_views(columns: Mapping[str, Tensor], views: Mapping[str, View], seed: int, epoch: int) -> dict[str, Tensor]:
    """Columns with `image` uint8 (B, C, S, S) and `index` -> columns of every view, its parameters, and the rest."""
    out = {name: value for name, value in columns.items() if name != "image"}
    for name, view in views.items():
        parameters = view.draw(seed, epoch, columns["index"])
        out[name] = view.apply(columns["image"], parameters)
        out[f"{name}.parameters"] = parameters
    return out


# -------------------------------------------------------------------------------------------- resident


class ResidentFeed:
    """All images as uint8 in memory, augmented on `device`. Global batch k is the same set for any number of ranks.

    Needs no Ray: give it tensors. Images stay where they are: on the GPU, or on the host, from where the next share
    is copied (through pinned memory) while the present one is worked on.

    Args:
        images: uint8 (N, C, S, S).
        index: int64 (N,), each sample's position in the dataset.
        label: int64 (N,) or None.
        noisy: int64, labels by dataset index, which are learned in place of `label`.
        balance: if given, each batch consists of parts of identical label counts.
    """

    def __init__(
        self,
        images: Tensor,
        index: Tensor,
        label: Tensor | None,
        views: Mapping[str, View],
        *,
        seed: int,
        share: Share,
        device: torch.device | str = "cpu",
        noisy: Tensor | None = None,
        balance: Balance | None = None,
    ) -> None:
        columns = {"image": images, "index": index} | ({} if label is None else {"label": label})
        self.columns = with_noise(columns, noisy)
        self.views = views
        self.seed = seed
        self.share = share
        self.device = torch.device(device)
        self.balance = balance
        self.steps = len(self.order(0)) // share.batch_size

    def order(self, epoch: int) -> Tensor:
        """Rows in the order of an epoch."""
        index, label = self.columns["index"], self.columns.get("label")
        if self.balance is None or label is None:
            return shuffled(self.seed, epoch, index)
        return balanced(label, index, self.balance, self.share.batch_size, self.seed, epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = self.order(epoch)
        waiting = None
        for step in range(start, self.steps + 1):
            ready = waiting
            if step < self.steps:
                first = step * self.share.batch_size + self.share.rank * self.share.size
                waiting = self._taken(order[first : first + self.share.size])
            if ready is not None:
                yield add_views(ready, self.views, self.seed, epoch)

    def made(self) -> float:
        """There are no data tasks."""
        return 0.0

    def _taken(self, rows: Tensor) -> dict[str, Tensor]:
        picked = {name: column.index_select(0, rows) for name, column in self.columns.items()}
        if self.device.type == "cpu" or self.columns["image"].is_cuda:
            return picked
        return {name: column.pin_memory().to(self.device, non_blocking=True) for name, column in picked.items()}


# ---------------------------------------------------------------------------------------------- stream


@dataclass(frozen=True)
class Piece:
    """Rows of one group that are read together."""

    group: int
    rows: np.ndarray  # int64, offsets in the group, ascending


def epoch_plan(source: Source, usable: np.ndarray, share: Share, seed: int, epoch: int) -> list[Piece]:
    """The pieces of this rank, in the order in which it reads them.

    Units (row groups; of a folder, whose files can be read in any order and are often sorted by class, runs of 16; of
    takes, whose moments resemble each other, runs of 64) are taken in an order drawn from (seed, epoch); their usable
    rows, in a line, are cut to whole global batches and into one equal length for each rank.

    Args:
        usable: int64, ascending dataset indices that may be used.
    """
    unit = 64 if source.media == "take" else 16 if source.kind == "folder" else source.rows
    units = [
        (g, at, min(at + unit, group.rows))
        for g, group in enumerate(source.groups)
        for at in range(0, group.rows, unit)
    ]
    first = np.array([source.groups[g].first + start for g, start, _ in units] + [source.rows])
    edges = np.searchsorted(usable, first)  # usable[edges[u] : edges[u + 1]] lie in unit u
    length = len(usable) // share.batch_size * share.size
    begin, end = share.rank * length, (share.rank + 1) * length
    pieces, position = [], 0
    for u in shuffled(seed, epoch, torch.arange(len(units)), "units").tolist():
        n = int(edges[u + 1] - edges[u])
        a, b = max(begin - position, 0), min(end - position, n)
        if a < b:
            g = units[u][0]
            pieces.append(Piece(g, usable[edges[u] + a : edges[u] + b] - source.groups[g].first))
        position += n
    return pieces


def tasks(pieces: list[Piece], most: int) -> list[list[Piece]]:
    """The same rows in the same order, in lists of at most `most` rows: each the work of one data task."""
    out: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        rows = piece.rows
        while len(rows):
            if not room:
                out.append([])
                room = most
            out[-1].append(Piece(piece.group, rows[:room]))
            rows, room = rows[room:], room - len(rows[:room])
    return out


TASK_ROWS = 2000
TASK_BYTES = 32 * 2**20  # of its output


class StreamFeed:
    """Ray Data reads, decodes and (with `views_on_data`) augments; rows are mixed within a window of `window` rows.

    Nothing is held whole: one window, and what Ray Data prefetches. A restart within an epoch reads again at most
    the window in which it falls.

    Args:
        source: what to read.
        data: how it is read.
        usable: int64, ascending dataset indices known to decode.
        window: rows that are mixed with one another.
        cpus: CPUs that this rank's data stages may take.
        task_cpus: CPUs of one data task.
        noisy: int64, labels by dataset index, which are learned in place of those that are read.
        nodes: labels of the nodes where data tasks run. Empty: any.
    """

    def __init__(
        self,
        source: Source,
        data: Data,
        usable: np.ndarray,
        views: Views,
        *,
        seed: int,
        share: Share,
        window: int,
        views_on_data: bool,
        cpus: float,
        task_cpus: float,
        device: torch.device | str = "cpu",
        noisy: Tensor | None = None,
        nodes: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self.data = data
        self.usable = usable
        self.views = views
        self.seed = seed
        self.share = share
        self.window = -(-window // share.size) * share.size  # whole batches
        self.views_on_data = views_on_data
        self.cpus = cpus
        self.task_cpus = task_cpus
        self.device = torch.device(device)
        self.noisy = noisy
        self.nodes = nodes
        self.steps = len(usable) // share.batch_size
        self.name = f"feed-{uuid.uuid4().hex}"
        self.rows, self.seconds = 0, 0.0  # made by data tasks, since `made` was asked

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        size = self.share.size
        skipped = start * size // self.window * self.window  # whole windows that need not be read
        left = start * size - skipped
        for columns in self._windows(epoch, skipped):
            order = shuffled(self.seed, epoch, columns["index"])
            for first in range(left, len(order), size):
                rows = order[first : first + size]
                batch = {name: column.index_select(0, rows) for name, column in columns.items()}
                batch = with_noise(batch, self.noisy)
                if self.device.type != "cpu":
                    batch = {k: v.pin_memory().to(self.device, non_blocking=True) for k, v in batch.items()}
                yield batch if self.views_on_data else add_views(batch, self.views, self.seed, epoch)
            left = 0

    def _windows(self, epoch: int, skip: int) -> Iterator[dict[str, Tensor]]:
        """Windows of rows as columns, in the plan's order, without the first `skip` rows."""
        pieces = epoch_plan(self.source, self.usable, self.share, self.seed, epoch)
        while skip and skip >= len(pieces[0].rows):
            skip -= len(pieces.pop(0).rows)
        if skip:
            pieces[0] = Piece(pieces[0].group, pieces[0].rows[skip:])
        held: list[dict[str, np.ndarray]] = []
        count, left = 0, sum(len(piece.rows) for piece in pieces)
        for block in self._blocks(pieces, epoch):
            held.append(block)
            count += len(block["index"])
            while count >= min(self.window, left) > 0:
                n = min(self.window, left)
                columns = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
                held = [{name: column[n:] for name, column in columns.items()}]
                count, left = count - n, left - n
                yield {name: torch.from_numpy(column[:n]) for name, column in columns.items()}

    def rows_of_a_task(self, pieces: list[Piece]) -> int:
        """Many, for a task costs tens of milliseconds whatever it does; but four for each that runs at a time."""
        fit = TASK_BYTES // (bytes_of(self.views) if self.views_on_data else 3 * self.data.size**2)
        share = sum(len(piece.rows) for piece in pieces) * self.task_cpus / self.cpus / 4
        return max(1, min(fit, TASK_ROWS, max(int(share), 256)))

    def _blocks(self, pieces: list[Piece], epoch: int) -> Iterator[dict[str, np.ndarray]]:
        from ray.data import ExecutionResources

        stage = stage_of(self.source, self.data, self.views if self.views_on_data else {}, self.seed, epoch)
        most = self.rows_of_a_task(pieces)
        dataset = piecewise(pieces, Timed(stage), task_cpus=self.task_cpus, most=most, nodes=self.nodes, name=self.name)
        dataset.context.execution_options.preserve_order = True
        dataset.context.execution_options.resource_limits = ExecutionResources(cpu=self.cpus)
        for block in blocks_of(dataset):
            self.rows += len(block["index"])
            self.seconds += float(block.pop("seconds").sum())
            yield block

    def made(self) -> float:
        """Samples a second that the data tasks can make on their CPUs, by the time of those that ended since the last
        call; more than are taken of them where they wait. 0: none ended."""
        rows, seconds = self.rows, self.seconds
        self.rows, self.seconds = 0, 0.0
        return rows / seconds * self.cpus / self.task_cpus if rows else 0.0


class SideBySide:
    """Several feeds as one: a batch is theirs one after the other. An elastic run has as many feeds as it may have
    workers, each rank some of them, so that batches are the same with any number of workers."""

    def __init__(self, feeds: Sequence[ResidentFeed | StreamFeed]) -> None:
        self.feeds = feeds
        self.steps = feeds[0].steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for parts in zip(*(feed.batches(epoch, start) for feed in self.feeds), strict=True):
            yield {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def made(self) -> float:
        return sum(feed.made() for feed in self.feeds)


def stage_of(source: Source, data: Data, views: Views, seed: int, epoch: int) -> Stage:
    """What makes samples of pieces: columns `index`, `label` and the views; of images without views, `image`."""
    if source.media == "video":
        return MakeClips(source, data, views, seed, epoch)
    if source.media == "take":
        return MakeMoments(source, data, views, seed, epoch)
    return DecodeAndAugment(source, data.size, views, seed, epoch)


def inspection_of(source: Source, data: Data, keep: bool, views: Views) -> Stage:
    """What looks through pieces: columns `index`, `label`, `bad` (a broken row's place and the reason, else empty), and
    of images, if kept, `image`."""
    if source.media == "video":
        return InspectVideos(source, data, views)
    if source.media == "take":
        return InspectTakes(source, data, views)
    return Decode(source, data.size, keep)


@dataclass(frozen=True)
class Timed:
    """A data stage whose rows have `seconds` too: the time that the task took, in equal parts."""

    stage: Stage

    def __call__(self, pieces: list[Piece]) -> dict[str, np.ndarray]:
        start = time.perf_counter()
        columns = self.stage(pieces)
        rows = len(columns["index"])
        return columns | {"seconds": np.full(rows, (time.perf_counter() - start) / max(rows, 1))}


def piecewise(
    pieces: list[Piece],
    stage: Stage,
    *,
    task_cpus: float,
    most: int = 256,
    nodes: Mapping[str, str] | None = None,
    name: str = "",
) -> Any:
    """A Ray Dataset of `stage` over lists of pieces, a Ray Data task for each list, of at most `most` rows, on nodes
    with these labels.

    Args:
        name: of datasets that are read one after the other. Ray keeps the figures of each name for as long as the
            cluster lives, and would give each dataset one of its own.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # a UserError in a stage stays one
    work = tasks(pieces, most)
    numbers = ray.data.from_items([{"task": i} for i in range(len(work))], override_num_blocks=len(work))
    listed = ray.put(work)

    def run(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return stage(ray.get(listed)[int(batch["task"][0])])

    dataset = numbers.map_batches(run, batch_size=1, num_cpus=task_cpus)  # type: ignore[arg-type]
    dataset.context.execution_options.label_selector = dict(nodes) if nodes else None
    if name:
        dataset.get_dataset_id = lambda: name  # type: ignore[method-assign]
    return dataset


def blocks_of(dataset: Any) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of a Ray Dataset.

    Raises:
        UserError: a stage raised one.
    """
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
    except UserError as error:  # of a class of Ray's, whose text is the whole trace
        raise UserError(str(getattr(error, "cause", error))) from None


def load_all(source: Source, pieces: list[Piece], size: int) -> Loaded:
    parts = [load(source, source.groups[piece.group], piece.rows, size) for piece in pieces]
    image, index, label = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Loaded(image, index, label, [bad for part in parts for bad in part.bad])


@dataclass(frozen=True)
class DecodeAndAugment:
    """A data stage: pieces in, their rows out as columns `index`, `label` and the views (or `image`)."""

    source: Source
    size: int
    views: Mapping[str, View]
    seed: int
    epoch: int

    def __call__(self, pieces: list[Piece]) -> dict[str, np.ndarray]:
        loaded = load_all(self.source, pieces, self.size)
        if loaded.bad:  # all were good when the run began
            raise OSError(f"{loaded.bad[0].where} can no longer be decoded: {loaded.bad[0].reason}")
        columns = {"image": loaded.image, "index": loaded.index}
        if self.source.labelled:
            columns["label"] = loaded.label
        if not self.views:
            return columns
        tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
        return {k: v.numpy() for k, v in add_views(tensors, self.views, self.seed, self.epoch).items()}


# ---------------------------------------------------------------------------------------------- survey


@dataclass(frozen=True)
class Decode:
    """A data stage: pieces in, their rows out; a broken row has its place and the reason in `bad`."""

    source: Source
    size: int
    keep: bool

    def __call__(self, pieces: list[Piece]) -> dict[str, np.ndarray]:
        loaded = load_all(self.source, pieces, self.size)
        reasons = [""] * len(loaded.index) + [f"{bad.where}\t{bad.reason}" for bad in loaded.bad]
        columns = {
            "index": np.concatenate([loaded.index, np.array([bad.index for bad in loaded.bad], dtype=np.int64)]),
            "label": np.concatenate([loaded.label, np.full(len(loaded.bad), -1)]),
            "bad": np.array(reasons, dtype=object),
        }
        if self.keep:
            columns["image"] = np.pad(loaded.image, ((0, len(loaded.bad)), (0, 0), (0, 0), (0, 0)))
        return columns

    @staticmethod
    def broken(block: Mapping[str, np.ndarray]) -> list[Bad]:
        rows = np.flatnonzero(block["bad"] != "")
        return [Bad(int(block["index"][row]), *block["bad"][row].split("\t", 1)) for row in rows]


class Survey(NamedTuple):
    """What one pass over the data found."""

    usable: np.ndarray
    """int64, ascending indices of the rows that decode."""
    label: np.ndarray
    """int64, of these rows; -1 where there is none."""
    bad: list[Bad]
    blocks: list[Any]
    """References to dicts of `image`, `index` and `label`, in Ray's object store; empty unless kept."""


SURVEYED = {"image": 256, "video": 16, "take": 512}
"""Rows of a task that looks through them."""


def survey(
    source: Source,
    wanted: np.ndarray,
    data: Data,
    *,
    keep: bool,
    what: str,
    views: Views | None = None,
    nodes: Mapping[str, str] | None = None,
) -> Survey:
    """Looks through every wanted row once, with Ray Data: so that steps are known, and broken rows named, before the
    start. Images are decoded whole, videos at both ends. `views`: what takes have to be long enough for. `nodes`:
    labels of those that do it.

    Raises:
        UserError: more broken rows than `data.max_bad` allows, or none left.
    """
    import ray

    one = Share(batch_size=1)
    pieces = epoch_plan(source, wanted, one, seed=0, epoch=0)
    index, label, bad, blocks = [], [], [], []
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"reading {what}", total=len(wanted))
        stage, most = inspection_of(source, data, keep, views or {}), SURVEYED[source.media]
        dataset = piecewise(pieces, stage, task_cpus=1, most=most, nodes=nodes)
        for block in blocks_of(dataset):
            good = block["bad"] == ""
            bad += Decode.broken(block)
            check_bad(bad, len(wanted), data.max_bad)
            kept = {name: column[good] for name, column in block.items() if name != "bad"}
            index.append(kept["index"])
            label.append(kept["label"])
            if keep:
                blocks.append(ray.put(kept))
            progress.advance(bar, len(good))
    usable = np.concatenate(index) if index else np.zeros(0, dtype=np.int64)
    if not len(usable):
        raise UserError(f"{what} has no usable {NOUNS[source.media]}: give --data.train a dataset that has some")
    order = usable.argsort()
    return Survey(usable[order], np.concatenate(label)[order], sorted(bad, key=lambda b: b.index), blocks)


def gathered(blocks: list[Any]) -> dict[str, Tensor]:
    """The kept blocks of a survey as tensors, rows in the order of their index."""
    import ray

    parts = ray.get(blocks)
    index = np.concatenate([part["index"] for part in parts])
    order = index.argsort()
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    images = np.empty((len(index), *parts[0]["image"].shape[1:]), dtype=np.uint8)
    first = 0
    for part in parts:  # one copy, straight from the object store
        images[places[first : first + len(part["index"])]] = part["image"]
        first += len(part["index"])
    columns = {"index": index[order], "label": np.concatenate([part["label"] for part in parts])[order]}
    return {name: torch.from_numpy(column) for name, column in {"image": images, **columns}.items()}
