"""`bench video`: our feed of clips beside a loop that decodes every frame of every clip, in one run.

Both make the same clips of the same videos, four of 16 frames each, with as many processes, and end in the consumer's
memory. The loop is what a data set of clips does without further thought: a clip opens its video, decodes and converts
all its frames, takes those that it wants, resizes and crops them.
"""

import io
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from pipelines.bench import in_turns, machine
from pipelines.clips import Video, frames, videos
from pipelines.errors import UserError
from pipelines.feed import Piece, Share, StreamFeed, bytes_of
from pipelines.place import cluster
from pipelines.recipe import Recipe
from pipelines.recipes.temporal import temporal_ucf101
from pipelines.sources import Source, open_source, selected
from pipelines.video import plan
from pipelines.worker import WINDOW, WINDOW_BYTES


@dataclass(frozen=True)
class BenchVideo:
    data: str = ""
    """Videos, as of --data.train. Empty: synthetic ones."""
    videos: int = 64
    """Synthetic ones, MPEG-4 in AVI as UCF101's, with a key frame each 12 frames."""
    frames: int = 64
    """Of a synthetic video."""
    height: int = 240
    width: int = 320
    rounds: int = 3
    workers: int = 2
    """Processes that decode, on either side."""
    passes: int = 10
    """Peak memory is taken of one pass over the data, and of so many."""
    batch_size: int = 8
    address: str | None = None


def video(options: BenchVideo) -> dict[str, Any]:
    """Clips/s and decoded frames/s of either side, their ratio, and our peak memory over one and over many passes."""
    with tempfile.TemporaryDirectory() as folder, cluster(options.address):
        recipe = temporal_ucf101().with_(data={"train": options.data or synthetic(options, Path(folder))})
        source = open_source(recipe.data.train, recipe.data)
        if source.rows < options.batch_size * 2:
            raise UserError(f"{source.rows} videos are too few for batches of {options.batch_size}: give more")
        views: Any = recipe.views
        feed = StreamFeed(
            source,
            recipe.data,
            selected(source, None),
            views,
            seed=0,
            share=Share(options.batch_size),
            window=min(WINDOW, max(1, WINDOW_BYTES // bytes_of(views))),
            views_on_data=True,
            cpus=float(options.workers),
            task_cpus=1.0,
        )
        epochs = iter(range(1 << 30))
        memory = {str(passes): peak(feed, passes) for passes in (1, options.passes)}
        turns = {
            "ours": partial(ours, feed, epochs, len(views)),
            "loop": partial(loop, Naive(recipe, source), options),
        }
        clips = in_turns(turns, options.rounds)
        decoded = {"ours": per_clip(recipe, source, once=True), "loop": per_clip(recipe, source, once=False)}
    median = {side: statistics.median(found) for side, found in clips.items()}
    return {
        "machine": machine(),
        "videos": source.rows,
        "clip": [recipe.views["speed"].shape(3)[0], len(recipe.views)],
        "workers": options.workers,
        "clips_per_second": {side: round(value, 1) for side, value in median.items()},
        "decoded_frames_per_second": {side: round(median[side] * decoded[side], 1) for side in median},
        "decoded_frames_per_clip": {side: round(value, 1) for side, value in decoded.items()},
        "ratio": round(median["ours"] / median["loop"], 2),
        "measured": {side: [round(value, 1) for value in found] for side, found in clips.items()},
        "peak_memory_mib_over_passes": memory,
    }


def ours(feed: StreamFeed, epochs: Iterator[int], kinds: int) -> int:
    return sum(kinds * len(batch["index"]) for batch in feed.batches(next(epochs)))


def peak(feed: StreamFeed, passes: int) -> float:
    """MiB that this process and all that it started hold at most while `passes` are made, each batch let go of at once;
    without what they share, as the object store."""
    most, done = 0.0, Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.2):
            most = max(most, private())

    thread = Thread(target=watch)
    thread.start()
    for epoch in range(passes):
        for _ in feed.batches(epoch):
            pass
    done.set()
    thread.join()
    return round(most, 1)


def private() -> float:
    """MiB of this process and its descendants, without shared memory."""
    total, this = 0, psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error):
            held = process.memory_info()
            total += held.rss - held.shared
    return total / 2**20


class Naive(Dataset[torch.Tensor]):
    """A clip a sample: (T, C, S, S)."""

    def __init__(self, recipe: Recipe, source: Source) -> None:
        self.recipe, self.source = recipe, source
        self.kinds = list(recipe.views)

    def __len__(self) -> int:
        return self.source.rows * len(self.kinds)

    def __getitem__(self, number: int) -> torch.Tensor:
        row, kind = divmod(number, len(self.kinds))
        view: Any = self.recipe.views[self.kinds[kind]]
        item = opened(self.source, row)
        length = torch.tensor([len(item.table)])
        parameters = view.draw(0, 0, torch.tensor([row]), length=length, shape=self.recipe.data.shape)
        every = frames(item, torch.arange(len(item.table)), self.recipe.data)
        return view.apply(every[view.frames_of(parameters)], parameters)[0]


def opened(source: Source, row: int) -> Video:
    number = max(i for i, group in enumerate(source.groups) if group.first <= row)
    return next(videos(source, [Piece(number, np.array([row - source.groups[number].first]))], []))


def loop(data: Naive, options: BenchVideo) -> int:
    context = get_context("forkserver")
    loader = DataLoader(data, options.batch_size, num_workers=options.workers, multiprocessing_context=context)
    return sum(len(batch) for batch in loader)


def per_clip(recipe: Recipe, source: Source, *, once: bool) -> float:
    """Frames that are decoded for a clip, over the first videos."""
    counts = []
    for row in range(min(source.rows, 16)):
        item = opened(source, row)
        if not once:
            counts.append(float(len(item.table)))
            continue
        length, index = torch.tensor([len(item.table)]), torch.tensor([row])
        wanted = []
        for view in recipe.views.values():
            drawn = view.draw(0, 0, index, length=length, shape=recipe.data.shape)
            wanted.append(view.frames_of(drawn).flatten())
        unique = torch.cat(wanted).unique().numpy()
        counts.append(int(plan(item.table, unique).sum()) / len(recipe.views))
    return statistics.mean(counts)


def synthetic(options: BenchVideo, folder: Path) -> str:
    """Moving noise of several scales, which costs a decoder about what real videos do."""
    import av

    rng = np.random.default_rng(0)
    path = folder / "videos.parquet"
    rows = []
    for _ in range(options.videos):
        scene = np.full((options.height + 64, options.width + 64, 3), 128.0)
        for k in (8, 16, 32):
            coarse = rng.normal(0, 30, (-(-scene.shape[0] // k), -(-scene.shape[1] // k), 3))
            scene += coarse.repeat(k, 0).repeat(k, 1)[: scene.shape[0], : scene.shape[1]]
        scene = scene.clip(0, 255).astype(np.uint8)
        speed = rng.uniform(0, 0.9, 2)
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="avi") as container:
            stream: Any = container.add_stream("mpeg4", 25)
            stream.width, stream.height, stream.pix_fmt = options.width, options.height, "yuv420p"
            stream.bit_rate = 800_000
            for t in range(options.frames):
                y, x = (int(value * t) % 56 for value in speed)
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(scene[y : y + options.height, x : x + options.width]), "rgb24"
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        rows.append(buffer.getvalue())
    pq.write_table(pa.table({"video": rows}), path, row_group_size=16)
    return str(path)
