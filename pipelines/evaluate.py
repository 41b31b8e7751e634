"""Evaluation: protocols on the features of a backbone, each beside random initialization and raw pixels.

A protocol is a function of features and options that returns figures (fractions) and may draw a picture; `PROTOCOLS`
names them. Only `linear` with augmentation trains through the backbone: with the training loop and the `supervised`
method. The frozen backbone is in eval mode everywhere.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import pipelines.recipe as recipes
from methods import backbones, supervised
from methods.backbones import Backbone
from methods.method import Facts, Method
from methods.metrics.knn import knn
from methods.metrics.linear import Linear, linear
from methods.metrics.logistic import REGULARIZATIONS, logistic
from methods.metrics.projection import scatter_figure, tsne
from methods.metrics.retrieval import neighbours, retrieval_figure
from methods.parts import set_batch_norm
from methods.views import View
from pipelines.errors import UserError
from pipelines.features import Features, central, extract
from pipelines.place import cluster
from pipelines.recipe import Recipe, Run
from pipelines.sources import Data, Source, check_classes, load, open_source
from pipelines.storage import Checkpoints, Folder, open_folder

console = Console(stderr=True)


@dataclass(frozen=True)
class KNN:
    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """A vote weighs exp(cosine / temperature)."""


@dataclass(frozen=True)
class Logistic:
    regularizations: tuple[float, ...] = REGULARIZATIONS
    """L2 strengths to choose from."""
    validation: float = 0.1
    """Share of the training samples on which the strength is chosen."""
    max_iterations: int = 200


@dataclass(frozen=True)
class TSNE:
    samples: int = 2000
    """Test samples, evenly spaced."""
    perplexity: float = 30.0


@dataclass(frozen=True)
class Retrieval:
    queries: int = 8
    """Test images in the picture, evenly spaced."""
    k: int = 8
    """Neighbours from the training set."""


@dataclass(frozen=True)
class Options:
    data: Data
    """Default: the run's, with its limit."""
    knn: KNN = KNN()
    linear: Linear = field(default_factory=Linear)
    logistic: Logistic = Logistic()
    tsne: TSNE = TSNE()
    retrieval: Retrieval = Retrieval()
    backbone: str = ""
    """Its name, for an exported .safetensors file, which holds weights alone."""
    test_limit: int | None = None
    """Test images, evenly spaced. None: all."""
    seed: int = 0
    workers: int = 1
    """Training processes of `linear` with augmentation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus: float = 0.5
    """CPUs that Ray reserves for a worker of `linear` with augmentation."""
    gpus: float = 1.0
    """GPUs that Ray reserves for a task, or for a worker of `linear`."""
    share: float = 1.0
    """Share of the cluster that `linear` with augmentation may count on."""
    address: str | None = None
    """The Ray cluster. None: the one in the environment, else one of this machine."""


@dataclass(frozen=True)
class Ready:
    """What protocols work on."""

    train: Features
    test: Features
    classes: int | None
    class_names: tuple[str, ...] | None
    sources: tuple[Source, Source]
    options: Options
    size: int
    """Pixels of the images that the networks see."""

    def labelled(self) -> None:
        if self.classes is None or min(self.train.label.min(), self.test.label.min()) < 0:
            raise UserError(
                "this protocol needs a label for each image: give --data.label, or choose tsne or retrieval"
            )

    def split(self, of: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.train.of[of], self.train.label, self.test.of[of], self.test.label


Result = tuple[dict[str, Any], bytes | None]  # figures, and a PNG where the protocol draws one


def run_knn(ready: Ready, of: str) -> Result:
    """Weighted k-nearest-neighbour classifier on L2-normalized features."""
    ready.labelled()
    options = ready.options.knn
    return knn(*ready.split(of), k=options.k, temperature=options.temperature, classes=ready.classes), None


def run_linear(ready: Ready, of: str) -> Result:
    """Linear classifier by SGD on frozen features."""
    ready.labelled()
    config = ready.options.linear
    if of == "raw_pixels" and not config.search:  # the rate was chosen for features: pixels get the best of three
        config = dataclasses.replace(config, search=(1.0, 0.1, 0.01))
    return linear(*ready.split(of), config, seed=ready.options.seed, classes=ready.classes), None


def run_logistic(ready: Ready, of: str) -> Result:
    """Logistic regression by L-BFGS on frozen features, L2 strength chosen on a validation split."""
    ready.labelled()
    options = ready.options.logistic
    figures = logistic(
        *ready.split(of),
        regularizations=options.regularizations,
        validation=options.validation,
        seed=ready.options.seed,
        max_iterations=options.max_iterations,
    )
    return figures, None


def run_tsne(ready: Ready, of: str) -> Result:
    """Picture of the test features in two dimensions."""
    rows = spaced(len(ready.test.index), ready.options.tsne.samples)
    perplexity = min(ready.options.tsne.perplexity, (len(rows) - 1) / 3)
    points = tsne(ready.test.of[of][rows], perplexity=perplexity, seed=ready.options.seed)
    labels = ready.test.label[rows] if ready.classes is not None else None
    figure = scatter_figure(points, labels, ready.class_names, title=of.replace("_", " "))
    return {"samples": len(rows), "perplexity": perplexity}, png(figure)


def run_retrieval(ready: Ready, of: str) -> Result:
    """Picture of test queries with their nearest training images; precision of all queries at k."""
    options = ready.options.retrieval
    index, similarity = neighbours(ready.test.of[of], ready.train.of[of], k=options.k)  # (M, k)
    labelled = ready.classes is not None
    labels = ready.train.label[index]
    rows = spaced(len(index), options.queries)
    train, test = ready.sources
    figure = retrieval_figure(
        images_at(test, ready.test.index[rows], ready),
        torch.stack([images_at(train, ready.train.index[index[row]], ready) for row in rows]),
        similarity[rows],
        query_labels=ready.test.label[rows] if labelled else None,
        neighbour_labels=labels[rows] if labelled else None,
        class_names=ready.class_names,
    )
    figures: dict[str, Any] = {"k": options.k}
    if labelled:
        figures["precision"] = (labels == ready.test.label[:, None]).double().mean().item()
    return figures, png(figure)


PROTOCOLS: Mapping[str, Callable[[Ready, str], Result]] = {
    "knn": run_knn,
    "linear": run_linear,
    "logistic": run_logistic,
    "tsne": run_tsne,
    "retrieval": run_retrieval,
}


def spaced(count: int, most: int) -> Tensor:
    """int64: `most` (or all) of range(count), evenly spaced."""
    most = min(most, count)
    return torch.arange(most) * count // most


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def images_at(source: Source, index: Tensor, ready: Ready) -> Tensor:
    """uint8 (n, C, size, size) of the rows at these dataset indices, in their order."""
    bounds = np.array([group.first for group in source.groups])
    out = []
    for row in index.tolist():
        group = source.groups[int(np.searchsorted(bounds, row, side="right")) - 1]
        out.append(load(source, group, np.array([row - group.first]), ready.options.data.size).image)
    return central(torch.from_numpy(np.concatenate(out)), ready.size)


# ---------------------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a run, or an exported backbone (which has no recipe)."""

    backbone: Any
    """A Backbone, or what stands for one: images -> features, with `mean` and `std`."""
    random: Backbone | None
    folder: Folder
    prefix: str
    size: int
    recipe: Recipe | None = None
    step: int | None = None
    initial: list[Any] = field(default_factory=list)
    """What the random initialization depends on."""


def defaults(target: str) -> Options:
    """Options with the data of the run at `target`."""
    folder = open_folder(target)
    if folder.exists("recipe.json"):
        return Options(data=recipes.from_json(folder.read("recipe.json").decode()).data)
    if is_export(target):
        return Options(data=Data())
    raise UserError(f"{target}: neither a run (no recipe.json in it) nor an exported .safetensors or .pt file")


def is_export(target: str) -> bool:
    return Path(target).is_file() and Path(target).suffix in (".safetensors", ".pt")


def subject(target: str, options: Options) -> Subject:
    if is_export(target):
        return exported(Path(target), options)
    folder = open_folder(target)
    recipe = recipes.from_json(folder.read("recipe.json").decode())
    state, broken = Checkpoints(folder / "checkpoints").newest()
    for line in broken:
        console.print(f"[yellow]{line}[/]")
    if state is None:
        raise UserError(f"{target} has no good checkpoint: pretrain it first (--run.resume goes on with a run)")
    facts = facts_of(folder, recipe)
    trained, random = trained_method(recipe, facts, state), initial_method(recipe, facts)
    initial = [recipe.backbone, recipe.batch_norm == "none", recipe.seed]
    if trained.owns_backbone:
        initial = [*initial, recipe.method_name, dataclasses.asdict(recipe.method)]
    image = next(iter(facts.views.values()))[0]
    size = min(image[-1], options.data.size)  # of a larger view the decoded image has not more
    return Subject(trained.backbone, random.backbone, folder, "", size, recipe, state["step"], initial)


def facts_of(folder: Folder, recipe: Recipe) -> Facts:
    """What the run's method knew of its data."""
    found = json.loads(folder.read("run.json"))["found"]
    return recipe.facts(found["rows"], found["classes"])


def initial_method(recipe: Recipe, facts: Facts) -> Method:
    """As the run began: the same draws."""
    torch.manual_seed(recipe.seed)
    method = recipe.build(facts)
    return set_batch_norm(method, "none") if recipe.batch_norm == "none" else method


def trained_method(recipe: Recipe, facts: Facts, state: Mapping[str, Any]) -> Method:
    """With the weights of a checkpoint."""
    method = initial_method(recipe, facts)
    method.load_state_dict(state["method"])
    return method


def exported(path: Path, options: Options) -> Subject:
    """The backbone in an exported file; beside it one at random initialization where its name is given."""
    from pipelines.export import read_torchscript

    data, size = options.data, options.data.size
    script = read_torchscript(path) if path.suffix == ".pt" else None
    if script is not None:
        size = min(size, script.image[-1])  # the central part, as the run's own evaluation
    elif not options.backbone:
        raise UserError(f"{path} holds weights alone: name their network with --backbone")
    if not options.backbone:
        return Subject(script, None, open_folder(str(path.parent)), f"{path.name}.", size)
    torch.manual_seed(options.seed)
    try:
        random, twin = (
            backbones.build(options.backbone, image=(3, size, size), mean=data.mean, std=data.std) for _ in range(2)
        )
        weights = {} if script is not None else load_file(path)
        if weights and not any(name.endswith("running_mean") for name in weights):
            random, twin = (set_batch_norm(network, "none") for network in (random, twin))
        if weights:
            twin.load_state_dict(weights)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path} does not fit --backbone {options.backbone} at --data.size {size}: {str(error).splitlines()[0]}"
        ) from error
    backbone = twin if script is None else script
    random.load_state_dict({"mean": backbone.mean, "std": backbone.std}, strict=False)
    return Subject(
        backbone, random, open_folder(str(path.parent)), f"{path.name}.", size, initial=[options.backbone, options.seed]
    )


def evaluate(target: str, protocols: list[str], options: Options) -> dict[str, Any]:
    """Runs protocols and merges their figures into `evaluation.json`; prints a table. Returns the figures."""
    for name in protocols:
        if name not in PROTOCOLS:
            raise UserError(f"no protocol {name}{recipes.nearest(name, PROTOCOLS)} (there are {', '.join(PROTOCOLS)})")
    if not options.data.test:
        raise UserError("evaluation needs test data: give --data.test")
    it = subject(target, options)
    train, test = open_source(options.data.train, options.data), open_source(options.data.test, options.data)
    check_classes(train, test)
    with cluster(options.address) as resources:
        device = "cuda" if options.device != "cpu" and resources.get("GPU", 0) >= options.gpus else "cpu"
        networks = {"trained": it.backbone, **({"random_init": it.random} if it.random else {})}
        train_features, test_features = (
            extract(
                source,
                options.data,
                networks,
                limit=limit,
                crop=it.size,
                what=pattern or "",
                resources=resources,
                device=device,
                gpus=options.gpus,
            )
            for source, limit, pattern in (
                (train, options.data.limit, options.data.train),
                (test, options.test_limit, options.data.test),
            )
        )
        names = train.class_names or test.class_names
        ready = Ready(train_features, test_features, train.classes, names, (train, test), options, it.size)
        storage = it.folder.parent
        figures, known = read_json(it.folder, f"{it.prefix}evaluation.json"), read_json(storage, "baselines.json")
        for name in protocols:
            measure(name, ready, it, figures, known)
            it.folder.write(f"{it.prefix}evaluation.json", json.dumps(figures, indent=2).encode())
            known = read_json(storage, "baselines.json") | known  # other runs are evaluated beside this one
            storage.write("baselines.json", json.dumps(known, indent=2).encode())
    print_table(figures, protocols, it)
    return figures


def read_json(folder: Folder, name: str) -> dict[str, Any]:
    return json.loads(folder.read(name)) if folder.exists(name) else {}


def measure(name: str, ready: Ready, it: Subject, figures: dict[str, Any], known: dict[str, Any]) -> None:
    """One protocol on the trained backbone, random initialization and raw pixels, merged into `figures`.

    Args:
        known: figures of baselines by what they depend on; those of a dataset are computed once, for all runs.
    """
    options = ready.options
    settings = {
        **dataclasses.asdict(getattr(options, name)),
        "train": options.data.train,
        "test": options.data.test,
        "train_images": len(ready.train.index),
        "test_images": len(ready.test.index),
        "size": ready.size,
        "seed": options.seed,
    }
    for of in ready.train.of:
        place = figures if of == "trained" else figures.setdefault(of, {})
        key = json.dumps(
            [name, of, settings, dataclasses.asdict(options.data), it.initial if of == "random_init" else 0]
        )
        if of != "trained" and key in known:
            place[name] = known[key]
            continue
        with console.status(f"{name} of {of.replace('_', ' ')}"):
            if name == "linear" and of == "trained" and options.linear.augment != "none":
                place[name] = linear_with_views(ready, it)
                continue
            try:
                place[name], picture = PROTOCOLS[name](ready, of)
            except ValueError as error:
                raise UserError(f"{name}: {error}") from error
        if picture is not None:
            suffix = "" if of == "trained" else f"_{of}"
            it.folder.write(f"{it.prefix}{name}{suffix}.png", picture)
        elif of != "trained":
            known[key] = place[name]
    figures.setdefault("protocol", {})[name] = {**settings, "step": it.step}


def print_table(figures: Mapping[str, Any], protocols: list[str], it: Subject) -> None:
    table = Table("protocol", "figure", "this run", "random init", "raw pixels")
    for name in protocols:
        shown = [key for key in figures[name] if key.startswith(("top", "precision"))]
        for key in shown:
            cells = [figures, figures.get("random_init", {}), figures.get("raw_pixels", {})]
            values = [cell.get(name, {}).get(key) for cell in cells]
            table.add_row(name, key, *("-" if value is None else f"{100 * value:.2f}" for value in values))
        if name in ("tsne", "retrieval"):
            table.add_row(name, "picture", f"{it.prefix}{name}.png", "_random_init", "_raw_pixels")
    Console().print(table)
    console.print(f"{it.folder.path}/{it.prefix}evaluation.json")


def linear_with_views(ready: Ready, it: Subject) -> dict[str, float]:
    """Linear classifier trained on crops and flips through the frozen backbone, by the training loop.

    The crop is a resized one of 8% to 100% of the area (torchvision's default, as MoCo's code; the papers name the
    "standard protocol"). A run of its own under `<run>/evaluation`, named by step and settings, with which a second
    call goes on.
    """
    from pipelines.pretrain import pretrain

    if it.recipe is None:
        raise UserError("an exported backbone has no run: give --linear.augment none")
    options = ready.options
    protocol = options.linear
    recipe = dataclasses.replace(
        it.recipe,
        method=supervised.Config(),
        data=options.data,
        views={"image": View("image", ready.size, crop_scale=(0.08, 1.0))},
        optimizers={"model": protocol.optimizer},
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        seed=options.seed,
        batch_norm="global" if it.recipe.batch_norm != "none" else "none",
        start_from=it.folder.uri,
    )
    digest = hashlib.sha256(dataclasses.replace(recipe, start_from=None).to_json().encode()).hexdigest()
    name = f"linear-{it.step}-{digest[:8]}"
    storage = it.folder / "evaluation"
    run = Run(
        storage=storage.uri,
        name=name,
        resume=storage.exists(name),
        workers=options.workers,
        device=options.device,
        cpus=options.cpus,
        gpus=options.gpus,
        share=options.share,
        keep=1,
    )
    folder = pretrain(recipe, run, "linear")
    state, _ = Checkpoints(folder / "checkpoints").newest()
    weights = state["method"] if state else {}
    logits = ready.test.of["trained"] @ weights["classifier.weight"].T + weights["classifier.bias"]
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == ready.test.label[:, None]
    return {f"top{n}": ranked[:, :n].any(1).double().mean().item() for n in (1, 5) if n == 1 or logits.shape[1] > n}
