"""`bench video`: our feed of clips beside a loop that decodes every frame of every clip, in one run.

Both make clips of the same videos, four of 16 frames each, with as many processes, and end in the consumer's memory.
The loop is what a data set of clips does without further thought: a clip opens its video, which it has in memory,
decodes all its frames to RGB, takes those that it wants, resizes and crops them. `cache` is our feed on the same videos
in the frame cache (`data frames`).
"""

import io
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from pipelines.bench import in_turns, machine
from pipelines.clips import videos
from pipelines.errors import UserError
from pipelines.feed import Piece, Share, StreamFeed, bytes_of
from pipelines.frames import FrameOptions, write_frames
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
    videos: int = 256
    """Synthetic ones, MPEG-4 in AVI as UCF101's, with a key frame each 12 frames; 32 different ones, repeated."""
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
        views, feed = recipe.views, feed_of(recipe, options)
        epochs = iter(range(1 << 30))
        memory = {str(passes): peak(feed, passes) for passes in (1, options.passes)}
        loader = DataLoader(
            Naive(recipe, source),
            options.batch_size,
            num_workers=options.workers,
            multiprocessing_context=get_context("forkserver"),
            persistent_workers=True,  # their start is not counted, as that of Ray's is not
        )
        turns: dict[str, Callable[[], int]] = {
            "ours": partial(ours, feed, epochs, len(views)),
            "loop": partial(loop, loader),
        }
        [stored] = write_frames(
            FrameOptions(
                recipe.data.train, f"{folder}/frames", recipe.data.size, recipe.data.width, workers=options.workers
            )
        )
        kept = recipe.with_(data={"train": str(stored)})
        turns["cache"] = partial(ours, feed_of(kept, options), epochs, len(views))
        clips = in_turns(turns, options.rounds)
        decoded = {"ours": per_clip(recipe, source, once=True), "loop": per_clip(recipe, source, once=False)}
    median = {side: statistics.median(found) for side, found in clips.items()}
    return {
        "machine": machine(),
        "videos": source.rows,
        "clip": [recipe.views["speed"].shape(3)[0], len(recipe.views)],
        "workers": options.workers,
        "clips_per_second": {side: round(value, 1) for side, value in median.items()},
        "decoded_frames_per_second": {side: round(median[side] * decoded[side], 1) for side in decoded},
        "decoded_frames_per_clip": {side: round(value, 1) for side, value in decoded.items()},
        "ratio": round(median["ours"] / median["loop"], 2),
        "gain_of_the_cache": round(median["cache"] / median["ours"], 2),
        "measured": {side: [round(value, 1) for value in found] for side, found in clips.items()},
        "peak_memory_mib_over_passes": memory,
    }


def feed_of(recipe: Recipe, options: BenchVideo) -> StreamFeed:
    source = open_source(recipe.data.train, recipe.data)
    return StreamFeed(
        source,
        recipe.data,
        selected(source, None),
        recipe.views,
        seed=0,
        share=Share(options.batch_size),
        window=min(WINDOW, max(1, WINDOW_BYTES // bytes_of(recipe.views))),
        views_on_data=True,
        cpus=float(options.workers),
        task_cpus=1.0,
    )


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
        self.recipe = recipe
        self.kinds = list(recipe.views)
        pieces = [Piece(number, np.arange(group.rows)) for number, group in enumerate(source.groups)]
        self.encoded = [video.encoded for video in videos(source, pieces, [])]

    def __len__(self) -> int:
        return len(self.encoded) * len(self.kinds)

    def __getitem__(self, number: int) -> torch.Tensor:
        row, kind = divmod(number, len(self.kinds))
        view, data = self.recipe.views[self.kinds[kind]], self.recipe.data
        with av.open(io.BytesIO(self.encoded[row]), "r") as container:
            every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        length = torch.tensor([len(every)])
        parameters = view.draw(0, 0, torch.tensor([row]), length=length, shape=data.shape)
        wanted = torch.from_numpy(np.stack([every[i] for i in view.frames_of(parameters)[0].tolist()])).permute(
            0, 3, 1, 2
        )
        return view.apply(F.interpolate(wanted, size=data.shape, mode="bilinear", antialias=True)[None], parameters)[0]


def loop(loader: DataLoader[torch.Tensor]) -> int:
    return sum(len(batch) for batch in loader)


def per_clip(recipe: Recipe, source: Source, *, once: bool) -> float:
    """Frames that are decoded for a clip, over the first videos."""
    counts = []
    groups = [Piece(number, np.arange(group.rows)) for number, group in enumerate(source.groups)]
    for item in islice(videos(source, groups, []), 16):
        if not once:
            counts.append(float(len(item.table)))
            continue
        length, index = torch.tensor([len(item.table)]), torch.tensor([item.number])
        wanted = []
        for view in recipe.views.values():
            drawn = view.draw(0, 0, index, length=length, shape=recipe.data.shape)
            wanted.append(view.frames_of(drawn).flatten())
        unique = torch.cat(wanted).unique().numpy()
        counts.append(int(plan(item.table, unique).sum()) / len(recipe.views))
    return statistics.mean(counts)


def synthetic(options: BenchVideo, folder: Path) -> str:
    """Moving noise of several scales, which costs a decoder about what real videos do."""
    rng = np.random.default_rng(0)
    path = folder / "videos.parquet"
    made = []
    for _ in range(min(options.videos, 32)):
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
        made.append(buffer.getvalue())
    pq.write_table(pa.table({"video": list(islice(cycle(made), options.videos))}), path, row_group_size=16)
    return str(path)
