"""What a run's generator makes: a grid of images, and their distance from real ones, `fid` and `inception_score`.

Both figures are of 10,000 generated and 10,000 real images, mean and deviation over the last five checkpoints, as
chapter 7 of S. Jenni's thesis has them; but its five are of the last 10% of training, ours the last five that were
kept. They depend on the network whose features and classes they are taken of, the extractor; so its name, with the
hash of its weights, goes wherever a figure goes.

Extractors (`--generative.extractor`):
- `inception`: Inception v3 with torchvision's weights IMAGENET1K_V1; images are resized to 299 px, bilinear with
  antialiasing. Features are the 2048 of the pooling layer, classes the 1000 of ImageNet. The papers' figures are of a
  TensorFlow graph with other weights, 1008 outputs, other pooling and resizing: these are near them, and not equal.
- a file of such weights (.pth, .pt or .safetensors), for machines without network. The hash is of the tensors: the same
  weights have the same in any kind of file, though torchvision's own file alone is named IMAGENET1K_V1.
- a run of `supervised`: its backbone's features and its classifier. Figures of it compare runs with one another, and
  with nothing in print.
"""

import dataclasses
import hashlib
import io
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torchvision.utils import make_grid

import pipelines.recipe as recipes
from methods.method import Facts, Method
from methods.metrics.fid import factor, frechet_distance, inception_score, moments
from pipelines.errors import UserError
from pipelines.extractors import REMEDY, Extractor, fetched, inception
from pipelines.features import extract, loaded
from pipelines.feed import blocks_of, shuffled
from pipelines.place import cluster
from pipelines.recipe import Recipe
from pipelines.sources import Data, open_source
from pipelines.storage import Checkpoints, Folder, open_folder

console = Console(stderr=True)

PROTOCOLS = {
    "fid": "Frechet distance of generated images from the training images, lower is better; names its extractor.",
    "inception_score": "How sure and how varied the extractor's classes of generated images are, higher is better.",
}
PIECE = 100  # images generated at once
TASK = 500  # images of a Ray task


@dataclass(frozen=True)
class GridOptions:
    to: str
    """The file, .png. An existing one is replaced."""
    n: int = 64
    """Images, in a grid as square as can be."""
    seed: int = 0
    """Of the generator's input."""
    step: int | None = None
    """The checkpoint. None: the newest good one."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"--n is a number of images above 0, got {self.n}")


@dataclass(frozen=True)
class Generative:
    """The protocol of both figures. Defaults: section 7.3 of the thesis."""

    extractor: str = "inception"
    """inception, a file of inception_v3's weights, or a run of supervised."""
    samples: int = 10_000
    """Generated images, and at most as many real ones, evenly spaced over the training data."""
    checkpoints: int = 5
    """The last that were kept (--run.keep), of which mean and deviation are taken; fewer where there are fewer. The
    thesis' are of the last 10% of training: --run.checkpoint-epochs puts more between ours."""
    splits: int = 10
    """Parts of the samples whose inception scores are averaged."""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"generative.samples is at least 2, got {self.samples}")
        if self.checkpoints < 1:
            raise ValueError(f"generative.checkpoints is at least 1, got {self.checkpoints}")
        if not 1 <= self.splits <= self.samples:
            raise ValueError(f"generative.splits is 1 to generative.samples, {self.samples}; got {self.splits}")


@dataclass(frozen=True)
class Options:
    data: Data
    """Its training images are the real ones, seen at the generator's size."""
    generative: Generative = Generative()
    seed: int = 0
    """Of the generator's input."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: float = 1.0
    """GPUs that Ray reserves for a task."""
    address: str | None = None
    """The Ray cluster. None: the one in the environment, else one of this machine."""


# ---------------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Trained:
    """A run that may have been trained: what its method is built from."""

    folder: Folder
    recipe: Recipe
    facts: Facts

    @property
    def size(self) -> int:
        """Pixels of the images that its method sees."""
        return next(iter(self.facts.views.values()))[0][-1]

    def method(self, weights: Mapping[str, Tensor]) -> Method:
        """With the weights of a checkpoint, frozen, in eval mode."""
        from pipelines.evaluate import trained_method  # here: it offers these protocols beside its own

        return trained_method(self.recipe, self.facts, {"method": weights}).eval().requires_grad_(False)

    def states(self, most: int) -> Iterator[dict[str, Any]]:
        """The newest good checkpoints, at most `most`, from the newest on; a line for each that is broken."""
        checkpoints, found = Checkpoints(self.folder / "checkpoints"), 0
        for step in reversed(checkpoints.steps()):
            if found == most:
                return
            try:
                state = checkpoints.load(step)
            except (UserError, ValueError, OSError) as error:
                console.print(f"[yellow]{escape(str(error))}; it is left out[/]")
                continue
            found += 1
            yield state
        if not found:
            raise UserError(f"{self.folder.path} has no good checkpoint: pretrain it first (--run.resume goes on)")

    def sample(self, method: Method, index: Tensor, seed: int) -> Tensor:
        """uint8 (N, C, H, W). Raises UserError where the method has no generator."""
        try:
            with torch.no_grad():
                return method.sample(index, seed)
        except ValueError as error:
            raise UserError(f"{self.folder.path}: {error}") from error


def opened(target: str) -> Trained:
    from pipelines.evaluate import facts_of

    folder = open_folder(target)
    if not folder.exists("recipe.json"):
        raise UserError(f"{target} is not a run: no recipe.json in it")
    recipe = recipes.from_json(folder.read("recipe.json"))
    return Trained(folder, recipe, facts_of(folder, recipe))


# --------------------------------------------------------------------------------------------- a grid


def generate(target: str, options: GridOptions) -> Path:
    """Writes generated images as one PNG, row by row, from a checkpoint of the run at `target`. Returns the file.

    Raises:
        UserError: no run or no such checkpoint there, a method without generator, another suffix, or a file that
            can't be written.
    """
    path = Path(options.to).expanduser()
    if path.suffix.lower() != ".png" or "://" in options.to:
        raise UserError(f"--to {options.to}: name a local file that ends in .png")
    run = opened(target)
    if options.step is None:
        state = next(run.states(1))
    else:
        checkpoints = Checkpoints(run.folder / "checkpoints")
        steps = checkpoints.steps()
        if options.step not in steps:
            raise UserError(f"--step {options.step}: {target} has {', '.join(map(str, steps)) or 'no checkpoint'}")
        state = checkpoints.load(options.step)
    method = run.method(state["method"])
    images = torch.cat([run.sample(method, some, options.seed) for some in torch.arange(options.n).split(PIECE)])
    grid = make_grid(images, nrow=round(math.sqrt(options.n)))  # uint8 (3, H, W)
    buffer = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): choose another --to") from error
    console.print(f"{path}: {options.n} generated at step {state['step']}")
    return path


# ------------------------------------------------------------------------------------------- figures


def extractor_of(name: str) -> Extractor:
    """The extractor that `--generative.extractor` names, on the CPU.

    Raises:
        UserError: none of that name, weights that can't be fetched or don't fit, or a run without a classifier.
    """
    if name == "inception":
        return inception(fetched())
    path = Path(name).expanduser()
    if path.is_file():
        return inception(path)
    if not open_folder(name).exists("recipe.json"):
        raise UserError(f"--generative.extractor {name} is neither inception, nor a file, nor a run: {REMEDY}")
    run = opened(name)
    if run.recipe.method_name != "supervised":
        raise UserError(f"--generative.extractor {name} is a run of {run.recipe.method_name}, not supervised: {REMEDY}")
    state = next(run.states(1))
    method: Any = run.method(state["method"])
    if "features" not in method.classifiers:
        raise UserError(f"--generative.extractor {name} classifies layers, not the features: {REMEDY}")
    return Extractor(
        method.backbone,
        method.classifiers["features"],
        size=run.size,
        name=f"supervised {run.recipe.backbone} of {Path(run.folder.path).name} at step {state['step']}",
    )


class Real(NamedTuple):
    """Of the real images, by one extractor."""

    mean: Tensor  # float64 (D,)
    covariance: Tensor  # float64 (D, D)
    inception_score: Tensor
    images: Tensor  # their number


@dataclass(frozen=True)
class Place:
    """Where the networks run."""

    resources: Mapping[str, float]
    device: str
    gpus: float


def generative(target: str, protocols: Sequence[str], options: Options) -> dict[str, Any]:
    """FID and inception score of a run's last checkpoints; prints a table that names the extractor.

    The figures are merged into the run's `evaluation.json`: the mean under the protocol's name, the sample deviation
    over the checkpoints (None of a single one), `steps` and `each` of them, the numbers of images, and the extractor.
    `inception_score` has that of the real images too, as `real`. Real images are decoded at the generator's size;
    their moments are kept in the storage, for all runs.

    Returns:
        All figures of the run.

    Raises:
        UserError: an unknown protocol, a run without generator or checkpoint, an extractor that is not there or does
            not fit, too few real images, or features that are not finite.
    """
    import ray

    for name in protocols:
        if name not in PROTOCOLS:
            raise UserError(f"no protocol {name}{recipes.nearest(name, PROTOCOLS)} (there are {', '.join(PROTOCOLS)})")
    run, chosen = opened(target), options.generative
    states = run.states(chosen.checkpoints)
    newest = next(states)
    size = run.sample(run.method(newest["method"]), torch.arange(1), options.seed).shape[-1]
    options = dataclasses.replace(options, data=dataclasses.replace(options.data, size=size))
    extractor = extractor_of(chosen.extractor)
    each: dict[str, dict[int, float]] = {name: {} for name in PROTOCOLS}
    with cluster(options.address) as resources:
        device = "cuda" if options.device != "cpu" and resources.get("GPU", 0) >= options.gpus else "cpu"
        place = Place(resources, device, options.gpus)
        real = real_moments(extractor, chosen, options.data, run.folder.parent, place)
        root, reference = factor(real.covariance), ray.put({"extractor": extractor})
        for state in chain([newest], states):
            step = state["step"]
            out = embedded(run, state, reference, chosen.samples, options.seed, place)
            features, probabilities = out[:, : extractor.dim], out[:, extractor.dim :]
            try:
                each["fid"][step] = frechet_distance(*moments(features), real.mean, real.covariance, root)
                each["inception_score"][step] = inception_score(probabilities, chosen.splits)[0]
            except ValueError as error:
                raise UserError(f"generated images of step {step}: {error}") from error
    return merged(run, protocols, options, extractor, real, each)


def real_moments(extractor: Extractor, chosen: Generative, data: Data, storage: Folder, place: Place) -> Real:
    """Of the training images; computed once in a storage for each extractor, data, number of samples and of splits."""
    source = open_source(data.train, data)
    settings = [extractor.sha256, extractor.size, chosen.samples, chosen.splits, source.rows]
    key = json.dumps([*settings, dataclasses.asdict(dataclasses.replace(data, test=None))])
    name = f"real-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if storage.exists(name):
        return Real(**safetensors_load(storage.read(name)))
    networks: Mapping[str, Any] = {"extractor": extractor}
    features = extract(
        source,
        data,
        networks,
        limit=min(chosen.samples, data.limit or chosen.samples),
        crop=data.size,
        what=data.train,
        resources=place.resources,
        device=place.device,
        gpus=place.gpus,
        raw=False,
    ).of["extractor"]
    if len(features) < max(2, chosen.splits):
        raise UserError(
            f"{len(features)} real images are too few: give at least {max(2, chosen.splits)}, or fewer "
            "--generative.splits"
        )
    mixed = features[shuffled(0, 0, torch.arange(len(features)))]  # data may be sorted by class, and splits are not
    try:
        mean, covariance = moments(features[:, : extractor.dim])
        score = inception_score(mixed[:, extractor.dim :], chosen.splits)[0]
    except ValueError as error:
        raise UserError(f"real images: {error}") from error
    real = Real(mean, covariance, torch.tensor(score, dtype=torch.float64), torch.tensor(len(features)))
    storage.write(name, safetensors_bytes(real._asdict()))
    return real


@dataclass(frozen=True)
class Generate:
    """A Ray Data stage for `map_batches`: a range of indices in, what the extractor says of these images out.

    A task, not an actor: Ray keeps its processes, and each builds the networks once.
    """

    generator: Any
    """A reference to a `Trained` and the weights of a checkpoint."""
    extractor: Any
    """A reference to a dict of the `extractor`."""
    seed: int
    device: str

    @torch.no_grad()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        generator = built(self.generator, self.device)
        extractor = loaded(self.extractor, self.device)["extractor"]
        index = torch.arange(int(batch["first"][0]), int(batch["end"][0]))
        parts = [extractor(generator.sample(some.to(self.device), self.seed)).cpu() for some in index.split(PIECE)]
        return {"index": index.numpy(), "out": torch.cat(parts).numpy()}


@lru_cache(maxsize=1)
def built(generator: Any, device: str) -> Method:
    """From its recipe and weights: networks with spectral norm can't be pickled."""
    import ray

    run, weights = ray.get(generator)
    return run.method(weights).to(device, memory_format=torch.channels_last)


def embedded(run: Trained, state: Mapping[str, Any], extractor: Any, samples: int, seed: int, place: Place) -> Tensor:
    """Generates on the cluster -> (samples, dim + K), in the order of the images' indices. `extractor`: a reference."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    ranges = [{"first": first, "end": min(first + TASK, samples)} for first in range(0, samples, TASK)]
    cpus = max(int(place.resources.get("CPU", 1)), 1)
    stage = Generate(ray.put((run, state["method"])), extractor, seed, place.device)
    listed: Any = ray.data.from_items(ranges, override_num_blocks=len(ranges))
    dataset = listed.map_batches(
        stage, batch_size=1, num_cpus=min(1.0, cpus / 2), num_gpus=place.gpus if place.device == "cuda" else None
    )
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        bar = progress.add_task(f"images of step {state['step']}", total=samples)
        for block in blocks_of(dataset):
            parts.append((np.array(block["index"]), np.array(block["out"])))
            progress.advance(bar, len(parts[-1][0]))
    order = np.concatenate([index for index, _ in parts]).argsort()
    return torch.from_numpy(np.concatenate([out for _, out in parts])[order])


def merged(
    run: Trained,
    protocols: Sequence[str],
    options: Options,
    extractor: Extractor,
    real: Real,
    each: Mapping[str, Mapping[int, float]],
) -> dict[str, Any]:
    """Writes the figures into evaluation.json and prints them; `each`: of a protocol, by step."""
    chosen = options.generative
    figures = json.loads(run.folder.read("evaluation.json")) if run.folder.exists("evaluation.json") else {}
    table = Table("protocol", "mean", "deviation", "checkpoints", "images")
    steps = sorted(each["fid"])
    for name in protocols:
        values = [each[name][step] for step in steps]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        figures[name] = {
            name: statistics.fmean(values),
            "deviation": deviation,
            "checkpoints": len(steps),
            "steps": steps,
            "each": values,
            "samples": chosen.samples,
            "real_samples": int(real.images),
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            **({"real": real.inception_score.item()} if name == "inception_score" else {}),
        }
        figures.setdefault("protocol", {})[name] = {
            **dataclasses.asdict(chosen),
            "train": options.data.train,
            "size": options.data.size,
            "seed": options.seed,
            "step": steps[-1],
        }
        table.add_row(
            name,
            f"{figures[name][name]:.3f}",
            "-" if deviation is None else f"{deviation:.3f}",
            f"{len(steps)}, steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}",
            f"{chosen.samples:,}, real {int(real.images):,}",
        )
    run.folder.write("evaluation.json", json.dumps(figures, indent=2).encode())
    if len(steps) < chosen.checkpoints:
        console.print(
            f"[yellow]{len(steps)} good checkpoints are there, of {chosen.checkpoints}: pretrain with --run.keep "
            f"{chosen.checkpoints}, and where epochs are fewer, --run.checkpoint-steps[/]"
        )
    Console().print(table, f"by {extractor.name}", sep="\n")
    console.print(f"{run.folder.path}/evaluation.json")
    return figures
