"""What a run's generator makes: a grid of images, and their distance from real ones, `fid` and `inception_score`.

Both figures are of 10,000 generated and 10,000 real images, mean and deviation over the last five checkpoints, as
chapter 7 of S. Jenni's thesis has them. They depend on the network whose features and classes they are taken of, the
extractor; so its name, with the hash of its weights, goes wherever a figure goes.

Extractors:
- `inception`: Inception v3 with torchvision's weights IMAGENET1K_V1; images are resized to 299 px, bilinear with
  antialiasing. Features are the 2048 of the pooling layer, classes the 1000 of ImageNet. The papers' figures are of a
  TensorFlow graph with other weights, 1008 outputs, other pooling and resizing: these are near them, and not equal.
- a file of such weights (.pth, .pt or .safetensors), for machines without network; the same weights have the same hash.
- a run of `supervised`: its backbone's features and its classifier. Figures of it compare runs with one another, and
  with nothing in print.
"""

import dataclasses
import hashlib
import io
import json
import math
import pickle
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torchvision import models
from torchvision.utils import make_grid

import pipelines.recipe as recipes
from methods.backbones import Backbone
from methods.method import Facts, Method
from methods.metrics.fid import frechet_distance, inception_score, moments
from pipelines.errors import UserError
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
PART = 64  # images that an extractor takes at once: Inception's activations are megabytes an image
WEIGHTS = models.Inception_V3_Weights.IMAGENET1K_V1
WEIGHTS_HASH = WEIGHTS.url.rpartition("-")[2].removesuffix(".pth")  # torch's names end in the hash's first digits
REMEDY = (
    "give --generative.extractor FILE with torchvision's inception_v3 weights, or --generative.extractor RUN, a run of "
    "supervised_cifar10 or another of the method supervised"
)


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
    """The last ones, of which mean and deviation are taken; fewer where fewer were kept (--run.keep)."""
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
    """Default: the run's, with its limit."""
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
                console.print(f"[yellow]{error}; the one before is used[/]")
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
    recipe = recipes.from_json(folder.read("recipe.json").decode())
    return Trained(folder, recipe, facts_of(folder, recipe))


def defaults(target: str) -> Options:
    """Options with the data of the run at `target`."""
    return Options(data=opened(target).recipe.data)


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


# ---------------------------------------------------------------------------------------- extractors


class Extractor(nn.Module):
    """uint8 (B, C, H, W) -> float32 (B, dim + K): features, then the probabilities of K classes.

    In float32 whatever the autocast around it, since a distance of moments is taken.

    Args:
        backbone: images, resized to `size`, -> features.
        classifier: features -> logits.
        size: pixels.
        name: for people.
        sha256: of its weights' file.
    """

    def __init__(self, backbone: Backbone, classifier: nn.Module, *, size: int, name: str, sha256: str) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.size, self.sha256 = size, sha256
        self.dim = backbone.dim
        self.name = f"{name}, sha256 {sha256[:8]}"

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self._part(part.float()) for part in images.split(PART)])

    def _part(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        features = self.backbone(images)
        return torch.cat([features, self.classifier(features).softmax(1)], 1)


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
        raise UserError(
            f"--generative.extractor {name} is a run of {run.recipe.method_name}, without classifier: {REMEDY}"
        )
    state = next(run.states(1))
    manifest = json.loads((run.folder / "checkpoints").read(f"step-{state['step']:08d}.json"))
    method: Any = run.method(state["method"])
    if "features" not in method.classifiers:
        raise UserError(f"--generative.extractor {name} classifies layers, not the features: {REMEDY}")
    return Extractor(
        method.backbone,
        method.classifiers["features"],
        size=run.size,
        name=f"supervised {run.recipe.backbone} of {Path(run.folder.path).name} at step {state['step']}",
        sha256=manifest["sha256"],
    )


def fetched() -> Path:
    """torchvision's weights in the cache of torch.hub, fetched where they are not there yet."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS.url.rpartition("/")[2]
    if not path.exists():
        try:
            with urlopen(Request(WEIGHTS.url, method="HEAD"), timeout=10):  # torch.hub itself would wait without end
                path.parent.mkdir(parents=True, exist_ok=True)
            console.print(f"fetching {WEIGHTS.url} to {path}")
            torch.hub.download_url_to_file(WEIGHTS.url, str(path), hash_prefix=WEIGHTS_HASH)
        except (OSError, HTTPException, RuntimeError) as error:
            raise UserError(f"Inception's weights are not at {path}, nor to be fetched ({error}): {REMEDY}") from error
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(WEIGHTS_HASH):
        raise UserError(f"{path} is broken, its SHA-256 does not begin with {WEIGHTS_HASH}: delete it, or {REMEDY}")
    return path


def inception(path: Path) -> Extractor:
    """torchvision's Inception v3 with the weights of a file; those of its second classifier may be absent."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        if path.suffix == ".safetensors":
            weights = safetensors_load(content)
        else:
            weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--generative.extractor {path} holds no weights ({reason}): {REMEDY}") from error
    with torch.device("meta"):
        network = models.inception_v3(weights=None, aux_logits=False, transform_input=True, init_weights=False)
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    weights = weights if isinstance(weights, dict) else {}
    weights = {k: v for k, v in weights.items() if isinstance(v, Tensor) and not k.startswith("AuxLogits.")}
    found = {k: tuple(v.shape) for k, v in weights.items()}
    counters = {k for k in shapes if k.endswith("num_batches_tracked")}  # older files have none
    differing = [k for k in {**shapes, **found} if found.get(k) != shapes.get(k) and k not in counters - found.keys()]
    if differing:
        has, wanted = (of.get(differing[0], "absent") for of in (found, shapes))
        raise UserError(
            f"--generative.extractor {path} does not fit torchvision's inception_v3 in {len(differing)} tensors; the "
            f"first, {differing[0]}, is {has} there and {wanted} here: {REMEDY}"
        )
    network.load_state_dict(weights, assign=True)
    network.float()
    classifier, network.fc = network.fc, nn.Identity()
    origin = "IMAGENET1K_V1" if sha256.startswith(WEIGHTS_HASH) else f"of {path.name}"
    return Extractor(
        Backbone(network, 2048, WEIGHTS.transforms().mean, WEIGHTS.transforms().std),
        classifier,
        size=299,
        name=f"torchvision inception_v3 {origin}",
        sha256=sha256,
    )


# ------------------------------------------------------------------------------------------- figures


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
    for name in protocols:
        if name not in PROTOCOLS:
            raise UserError(f"no protocol {name}{recipes.nearest(name, PROTOCOLS)} (there are {', '.join(PROTOCOLS)})")
    run, chosen = opened(target), options.generative
    newest = next(run.states(1))
    size = run.sample(run.method(newest["method"]), torch.arange(1), options.seed).shape[-1]
    options = dataclasses.replace(options, data=dataclasses.replace(options.data, size=size))
    extractor = extractor_of(chosen.extractor)
    each: dict[str, dict[int, float]] = {name: {} for name in PROTOCOLS}
    with cluster(options.address) as resources:
        device = "cuda" if options.device != "cpu" and resources.get("GPU", 0) >= options.gpus else "cpu"
        place = Place(resources, device, options.gpus)
        real = real_moments(extractor, chosen, options.data, run.folder.parent, place)
        for state in run.states(chosen.checkpoints):
            step = state["step"]
            out = embedded(run, state, extractor, chosen.samples, options.seed, place)
            features, probabilities = out[:, : extractor.dim], out[:, extractor.dim :]
            try:
                each["fid"][step] = frechet_distance(*moments(features), real.mean, real.covariance)
                each["inception_score"][step] = inception_score(probabilities, chosen.splits)[0]
            except ValueError as error:
                raise UserError(f"generated images of step {step}: {error}") from error
    return merged(run, protocols, options, extractor, real, each)


def real_moments(extractor: Extractor, chosen: Generative, data: Data, storage: Folder, place: Place) -> Real:
    """Of the training images; computed once in a storage for each extractor, data and number of samples."""
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
            f"{len(features)} real images are too few for --generative.splits {chosen.splits}: give more, or fewer"
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


def embedded(
    run: Trained, state: Mapping[str, Any], extractor: Extractor, samples: int, seed: int, place: Place
) -> Tensor:
    """Generates on the cluster -> (samples, dim + K), in the order of the images' indices."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    ranges = [{"first": first, "end": min(first + TASK, samples)} for first in range(0, samples, TASK)]
    cpus = max(int(place.resources.get("CPU", 1)), 1)
    stage = Generate(ray.put((run, state["method"])), ray.put({"extractor": extractor}), seed, place.device)
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
    table = Table("protocol", "mean", "deviation", "checkpoints", "images", "extractor")
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
            f"{len(steps)} (steps {', '.join(map(str, steps))})",
            f"{chosen.samples:,}, real {int(real.images):,}",
            extractor.name,
        )
    run.folder.write("evaluation.json", json.dumps(figures, indent=2).encode())
    if len(steps) < chosen.checkpoints:
        console.print(
            f"[yellow]{len(steps)} checkpoints are there, of {chosen.checkpoints}: --run.keep keeps more, and "
            "--run.checkpoint-steps writes more[/]"
        )
    Console().print(table)
    console.print(f"{run.folder.path}/evaluation.json")
    return figures
