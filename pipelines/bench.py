"""Figures beside plain PyTorch: our feeds beside a torch DataLoader, our training step beside a bare loop.

What is compared is measured in turns on the same machine, each once uncounted and then `rounds` times; the figures are
medians, and ratios those of the medians.

Legend: B batch, K queue.
"""

import dataclasses
import io
import os
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle, islice, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from methods import sce
from methods.backbones import channels_last
from methods.method import Batch
from methods.optim import Optimizer, peak_rate
from methods.parts import set_batch_norm
from methods.views import View, strong, weak
from pipelines.feed import Share, survey
from pipelines.loop import Training, train
from pipelines.place import cluster, placed, quiet, threads
from pipelines.recipe import Recipe, Run
from pipelines.sources import Data, open_source, selected
from pipelines.storage import open_folder


def in_turns(turns: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Calls each once uncounted, then one after the other `rounds` times. A call returns how many images it had.

    Returns:
        images/s of each call, by name.
    """
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            images = turn()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                speeds[name].append(images / (time.perf_counter() - start))
    return speeds


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "gpu": gpu, "torch": torch.__version__}


# ---------------------------------------------------------------------------------------------- feeds


@dataclass(frozen=True)
class Photos:
    """One kind of images that the benchmark makes."""

    format: Literal["PNG", "JPEG"]
    pixels: int
    """Of the square images, which are decoded whole."""
    view: int
    """Pixels of both views."""
    count: int
    """An epoch of our feeds."""
    dataloader: int
    """An epoch of the DataLoader, which is slower: so many of them."""


@dataclass(frozen=True)
class BenchFeed:
    """images/s of the resident and the stream feed, and of a torch DataLoader: the views of SCE (strong and weak).

    Ours as training has it: `workers` processes, each of which takes its share of every batch, and Ray Data's tasks
    beside them. The DataLoader has a worker for each of `cpus`, persistent ones, and hands its batches to this
    process; its images lie encoded in memory, ours (of the stream) in a Parquet file. Its transforms are torchvision's
    on Pillow images, which were the fastest of four (Pillow or uint8 tensors, classic or v2).

    Ray's processes have the niceness of this one here, not Ray's 15, so that strangers slow down both sides alike.
    """

    small: Photos = field(default_factory=lambda: Photos("PNG", 32, 32, 51_200, 10_240))
    """As many as CIFAR has, of its size."""
    large: Photos = field(default_factory=lambda: Photos("JPEG", 160, 128, 6_144, 2_048))
    batch_size: int = 256
    """Of all workers together."""
    rounds: int = 5
    cpus: int = 2
    """Cores that either side may use: the DataLoader's workers, or Ray's CPUs."""
    workers: int = 2
    """Training processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where batches end, and the resident feed's views are made; auto: one GPU a worker, else the CPU."""


def feed(options: BenchFeed) -> dict[str, Any]:
    """Returns {"small": {...}, "large": {...}}, each with images/s by feed and ratios to the DataLoader."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    quiet()
    import ray

    mine = not ray.is_initialized()
    if mine:
        ray.init(address="local", num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
    try:
        figures = {name: feed_of(getattr(options, name), options) for name in ("small", "large")}
    finally:
        if mine:
            ray.shutdown()
    return {"machine": machine() | {"ray": ray.__version__}, **figures}


def feed_of(photos: Photos, options: BenchFeed) -> dict[str, Any]:
    """The three feeds on one kind of images."""
    import ray

    from pipelines.worker import Task  # imports more than `step`, and the DataLoader's workers, need

    with tempfile.TemporaryDirectory() as scratch, cluster(None) as resources:
        path = Path(scratch) / "train.parquet"
        encoded = write_photos(photos, path)
        recipe = Recipe(
            method=sce.Config(),
            backbone="resnet20",
            data=Data(train=str(path), size=photos.pixels),
            views={"online": strong("online", photos.view), "target": weak("target", photos.view)},
            optimizers={"model": Optimizer()},
            batch_size=options.batch_size,
        )
        source = open_source(recipe.data.train, recipe.data)
        found = survey(source, selected(source, None), recipe.data, keep=True, what=recipe.data.train)
        tasks = {}
        for kind in ("resident", "stream"):
            run = Run(workers=options.workers, device=options.device, feed=kind)
            place = placed(recipe, run, source.rows, resources)
            facts = recipe.facts(source.rows, None)
            folder = open_folder(scratch)
            tasks[kind] = Task(recipe, run, place, folder, facts, source, found.usable, found.blocks, None, None, None)
        gpus = 1 if place.device == "cuda" else 0
        consumer: Any = ray.remote(num_cpus=run.cpus, num_gpus=gpus)(Consumer)
        consumers = [consumer.remote(tasks, rank) for rank in range(options.workers)]
        epochs = count()

        def epoch_of(kind: str) -> int:
            epoch = next(epochs)
            return sum(ray.get([c.epoch.remote(kind, epoch) for c in consumers]))

        loader = DataLoader(
            Views(encoded[: photos.dataloader], recipe.views),
            options.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=options.cpus,
            persistent_workers=True,
            pin_memory=place.device == "cuda",
            multiprocessing_context="spawn",
        )

        def epoch_of_loader() -> int:
            images = 0
            for views in loader:
                online, _ = (view.to(place.device, non_blocking=True) for view in views)
                images += len(online)
            return images

        turns: dict[str, Callable[[], int]] = {kind: partial(epoch_of, kind) for kind in tasks}
        turns["dataloader"] = epoch_of_loader
        speeds = in_turns(turns, options.rounds)
        for c in consumers:
            ray.kill(c)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        **dataclasses.asdict(photos),
        "bytes_per_image": round(sum(map(len, encoded)) / len(encoded)),
        "batch_size": options.batch_size,
        "device": place.device,
        "processes": {"ours": options.workers, "dataloader": options.cpus, "transforms": "torchvision, Pillow images"},
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratio_to_dataloader": {k: round(medians[k] / medians["dataloader"], 2) for k in ("resident", "stream")},
        "measured": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
    }


class Consumer:
    """A training process without the training."""

    def __init__(self, tasks: Mapping[str, Any], rank: int) -> None:
        from pipelines.worker import make_feed

        task = next(iter(tasks.values()))
        torch.set_num_threads(threads(task.run, task.run.most))
        device = torch.device(task.place.device)
        self.feeds = {
            kind: make_feed(task, Share(task.recipe.batch_size, rank, task.run.most), device)
            for kind, task in tasks.items()
        }

    def epoch(self, kind: str, number: int) -> int:
        """One epoch. Returns how many images there were."""
        images = sum(len(batch["index"]) for batch in self.feeds[kind].batches(number))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return images


class Views(Dataset[tuple[Tensor, ...]]):
    """The DataLoader's side: decodes an image, then each view by torchvision's transforms, one image at a time."""

    def __init__(self, encoded: list[bytes], views: Mapping[str, View]) -> None:
        self.encoded = encoded
        self.transforms = [torchvision_transforms(view) for view in views.values()]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        with Image.open(io.BytesIO(self.encoded[row])) as file:
            image = file.convert("RGB")
        return tuple(transform(image) for transform in self.transforms)


def torchvision_transforms(view: View) -> T.Compose:
    """The same distribution as `view`, which has a crop and no solarize: a Pillow image -> uint8 (3, S, S)."""
    steps = [
        T.RandomResizedCrop(view.size, view.crop_scale, view.crop_ratio),
        T.RandomHorizontalFlip(view.flip),
        T.RandomApply([T.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)], view.jitter),
        T.RandomGrayscale(view.grayscale),
        T.RandomApply([T.GaussianBlur(2 * view.blur_radius + 1, view.blur_sigma)], view.blur),
    ]
    used = (1, view.flip, view.jitter, view.grayscale, view.blur)
    return T.Compose([step for step, rate in zip(steps, used, strict=True) if rate] + [T.PILToTensor()])


def write_photos(photos: Photos, path: Path) -> list[bytes]:
    """Writes a Parquet file of synthetic photos; at most 1,024 differ. Returns the encoded images."""
    differing = [encode(pixels, photos.format) for pixels in islice(synthetic(photos.pixels), min(photos.count, 1024))]
    encoded = list(islice(cycle(differing), photos.count))
    pq.write_table(pa.table({"image": encoded}), path, 1000, compression="none", use_dictionary=False)
    return encoded


def synthetic(size: int) -> Iterator[np.ndarray]:
    """Clouds with the spectrum of photos, amplitude 1 / f^1.5, and correlated colours: uint8 (size, size, 3).

    As JPEG of 160 pixels they take 8 kB, about what real photos take.
    """
    rng = np.random.default_rng(0)
    down, across = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    amplitude = np.maximum(np.hypot(down, across), 1 / size) ** -1.5
    colours = np.array([[1, 0.3, 0.1], [1, 0, -0.1], [1, -0.3, 0.2]])
    while True:
        noise = rng.normal(size=(2, 3, size, len(across)))
        planes = np.fft.irfft2((noise[0] + 1j * noise[1]) * amplitude, s=(size, size))  # (3, size, size)
        image = np.einsum("cp,phw->hwc", colours, planes / planes.std())
        yield (128 + 50 * image).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **({"quality": 85} if format == "JPEG" else {}))
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------- step


@dataclass(frozen=True)
class BenchStep:
    """Time and memory of SCE's training step beside a bare torch loop of the same networks, on views in memory.

    Ours is `pipelines.loop.train`: turns, schedules, meter, draws. The bare loop is forward, backward, torch's SGD,
    the teacher and the queue, written out. Memory is the peak of a process of its own: on a GPU what torch allocated,
    on the CPU by how much its resident memory grew.
    """

    backbone: str = "resnet20"
    size: int = 32
    """Pixels of the views."""
    batch_size: int = 256
    steps: int = 10
    """Of a round."""
    rounds: int = 5
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU, float32 on the CPU."""
    compile: bool = False
    """torch.compile of each network, on both sides."""
    threads: int = 0
    """On the CPU; 0: torch's own choice."""

    def decided(self) -> "BenchStep":
        """With nothing `auto`."""
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        precision = ("bf16" if device == "cuda" else "float32") if self.precision == "auto" else self.precision
        return dataclasses.replace(self, device=device, precision=precision)


def step(options: BenchStep) -> dict[str, Any]:
    """Returns images/s and MiB of both, and ratios of ours to the bare loop's: time and memory. Needs no Ray."""
    options = options.decided()
    prepare(options)
    speeds = in_turns({name: side(build(options), options) for name, side in SIDES.items()}, options.rounds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        memory = dict(zip(SIDES, processes.map(peak_memory, SIDES, repeat(options)), strict=True))
    return {
        "machine": machine(),
        **dataclasses.asdict(options),
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "peak_memory_mib": {name: round(value, 1) for name, value in memory.items()},
        "ratio_to_bare": {
            "time": round(medians["bare"] / medians["ours"], 4),
            "memory": round(memory["ours"] / max(memory["bare"], 1e-9), 4),
        },
        "measured": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
    }


def prepare(options: BenchStep) -> None:
    """What training sets in its process."""
    if options.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    elif options.threads:
        torch.set_num_threads(options.threads)


SPEC = Optimizer(schedule="constant")


def build(options: BenchStep) -> sce.SCE:
    """The same weights at each call."""
    torch.manual_seed(0)
    recipe = Recipe(
        method=sce.Config(hidden=512, dim=128, queue=16 * options.batch_size, momentum=0.99, momentum_end=0.99),
        backbone=options.backbone,
        data=Data(size=options.size),
        views={name: View(name, options.size) for name in ("online", "target")},
        optimizers={"model": SPEC},
        batch_size=options.batch_size,
    )
    method = recipe.build(recipe.facts(4 * options.batch_size, None))
    method = method.to(options.device).to(memory_format=torch.channels_last)
    if options.compile:
        for network in method.children():
            network.compile()
    return method  # type: ignore[return-value]


class InMemory:
    """A feed of four batches of views on the device, again and again."""

    def __init__(self, options: BenchStep) -> None:
        size, device = options.batch_size, options.device
        generator = torch.Generator().manual_seed(0)
        shape = (2, 4, size, 3, options.size, options.size)
        online, target = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        index = torch.arange(4 * size, device=device).view(4, size)
        self.four = [{"online": online[i], "target": target[i], "index": index[i]} for i in range(4)]
        self.steps = options.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return islice(cycle(self.four), start, self.steps)


def ours(method: sce.SCE, options: BenchStep) -> Callable[[], int]:
    """The loop of training, a round at each call. Returns its images."""
    size, data = options.batch_size, InMemory(options)
    training = Training(
        method,
        method,
        {"model": SPEC},
        size,
        options.rounds + 1,
        data.steps,
        seed=0,
        precision=options.precision,  # type: ignore[arg-type]
    )

    def turn() -> int:
        train(training, data, stop_epoch=training.clock().epoch + 1)
        return data.steps * size

    return turn


def bare(method: sce.SCE, options: BenchStep) -> Callable[[], int]:
    """The same steps with nothing around them. Returns their images."""
    size, data, config = options.batch_size, InMemory(options), method.config
    weights: list[Tensor] = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        weights,
        peak_rate(SPEC, size),
        SPEC.momentum,
        weight_decay=SPEC.weight_decay,
        fused=options.device == "cuda",
    )
    teacher: list[Tensor] = list(method.teacher.parameters())
    queue, slots = method.queue.keys, cycle(range(0, len(method.queue.keys), size))
    method.train()

    def turn() -> int:
        for batch in data.batches(0):
            with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
                target = F.normalize(method.teacher(batch["target"]).float(), dim=1)
                online = F.normalize(method.projector(method.backbone(batch["online"])).float(), dim=1)
                loss = sce.sce_loss(
                    online,
                    target,
                    queue,
                    temperature=config.temperature,
                    target_temperature=config.target_temperature,
                    coefficient=config.coefficient,
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(teacher, weights, 1 - config.momentum)
                slot = next(slots)
                queue[slot : slot + size] = target
        return data.steps * size

    return turn


SIDES = {"ours": ours, "bare": bare}


@dataclass(frozen=True)
class BenchRecipe:
    """The training step of any recipe, all its turns, on random images in memory: views excluded."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    steps: int = 5
    """Of a round."""
    rounds: int = 3
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 autocast on a GPU, float32 on the CPU."""
    compile: bool = False
    """torch.compile of each network."""
    threads: int = 0
    """On the CPU; 0: torch's own choice."""


def recipe_step(options: BenchRecipe) -> dict[str, Any]:
    """Returns images/s (of the dataset's images, however many views each has) and the last step's log. Needs no Ray.

    A recipe that starts from another run begins here from random weights, which takes as long.
    """
    recipe = options.recipe
    decided = BenchStep(device=options.device, precision=options.precision, threads=options.threads).decided()
    prepare(decided)
    size, device = recipe.batch_size, decided.device
    torch.manual_seed(recipe.seed)
    facts = recipe.facts(4 * size, 10)
    method = set_batch_norm(channels_last(recipe.build(facts).to(device)), recipe.batch_norm)
    if options.compile:
        for network in method.children():
            network.compile()
    generator = torch.Generator().manual_seed(0)
    views = {
        name: torch.randint(0, 256, (4, size, *shape), dtype=torch.uint8, generator=generator).to(device)
        for name, (shape, _) in facts.views.items()
    }
    views |= {
        f"{name}.parameters": torch.zeros(4, size, width, device=device) for name, (_, width) in facts.views.items()
    }
    index = torch.arange(4 * size, device=device).view(4, size)
    four = cycle(
        {**{name: view[i] for name, view in views.items()}, "index": index[i], "label": index[i] % 10} for i in range(4)
    )
    precision: Any = decided.precision
    training = Training(method, method, recipe.optimizers, size, recipe.epochs, options.steps, 0, precision)
    method.train()
    log: dict[str, Tensor] = {}

    def turn() -> int:
        for batch in islice(four, options.steps):
            log.update(training.one_step(batch))
        _ = {name: float(value) for name, value in log.items()}  # waits for the device
        return options.steps * size

    speeds = in_turns({"step": turn}, options.rounds)["step"]
    return {
        "machine": machine(),
        "method": recipe.method_name,
        "backbone": recipe.backbone,
        "views": {name: list(shape) for name, (shape, _) in facts.views.items()},
        "batch_size": size,
        "device": device,
        "precision": precision,
        "compile": options.compile,
        "images_per_second": round(statistics.median(speeds), 1),
        "measured": [round(value, 1) for value in speeds],
        "log": {name: round(float(value), 4) for name, value in log.items()},
    }


def peak_memory(name: str, options: BenchStep) -> float:
    """MiB, of a round of one side in a fresh process, which this is."""
    prepare(options)
    before = psutil.Process().memory_info().rss / 2**20
    SIDES[name](build(options), options)()
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return max(peak_resident() - before, 0.0)


def peak_resident() -> float:
    """MiB of this process. Linux's ru_maxrss would count the parent's too."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
