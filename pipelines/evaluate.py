"""Evaluation: protocols on a run or an exported backbone; those with figures beside random initialization and pixels.

A protocol is a function that returns figures (fractions) and may draw pictures; `PROTOCOLS` names them. It says by the
group that it is in what it is run on: those of `ON_FEATURES` on features and pixels, those of `TRAINED` (in
pipelines.transfer) on the weights of the run and on those that it began with, those of `ON_RUN` on the run alone.
Those of few labels and of other data lie in pipelines.shots.
Data is opened, and features are extracted, where a protocol asks for them. A frozen backbone is in eval mode.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_png

import pipelines.recipe as recipes
from methods import backbones
from methods.backbones import Backbone
from methods.method import Clock, Facts, Method
from methods.metrics.groups import balanced_interval, leave_one_group_out
from methods.metrics.knn import knn
from methods.metrics.linear import Linear, linear, predicted
from methods.metrics.logistic import REGULARIZATIONS, logistic
from methods.parts import set_batch_norm
from pipelines import generate, shots, transfer
from pipelines.clips import UniformClips
from pipelines.errors import UserError
from pipelines.features import Features, central, extract
from pipelines.feed import Piece
from pipelines.pictures import (
    TSNE,
    GradCAM,
    Pictures,
    Result,
    Retrieval,
    run_active_pixels,
    run_filters,
    run_gradcam,
    run_retrieval,
    run_tsne,
)
from pipelines.place import cluster
from pipelines.posing import Posing, run_pose
from pipelines.purity import run_clusters
from pipelines.recipe import Recipe
from pipelines.sources import Data, Source, check_classes, load, open_source, read_column, selected
from pipelines.storage import Checkpoints, Folder, open_folder
from pipelines.tasks import Gaps, Task, own_task, rows_of, run_gaps, run_generalization, run_pictures
from pipelines.transfer import VIDEO_FINETUNE, VIDEO_LINEAR, Finetune, Layerwise, Timing

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
class Clips:
    """Of videos: what evaluation sees. A video's features, and its classes' probabilities, are means of its clips'."""

    count: int = 10
    """Clips, evenly over a video (thesis on self-supervised learning of S. Jenni, section 5.3: 10 for retrieval)."""
    speed: int = 2
    """kappa: every 2^kappa-th frame (section 5.3: "we skip three frames"); less where a video is too short."""
    frames: int = 16
    """Of a clip, for an exported backbone; a run has its own."""
    still: bool = False
    """Each clip's first frame in place of all of them: what is known without motion (section 5.3)."""

    def __post_init__(self) -> None:
        if min(self.count, self.frames) < 1 or self.speed < 0:
            raise ValueError(f"clips: count and frames are at least 1, speed at least 0; got {self}")


@dataclass(frozen=True)
class Options:
    data: Data
    """Default: the run's, with its limit."""
    clips: Clips = Clips()
    knn: KNN = KNN()
    linear: Linear = field(default_factory=Linear)
    logistic: Logistic = Logistic()
    low_shot: shots.LowShot = field(default_factory=shots.LowShot)
    knn_loocv: shots.LeaveOneOut = field(default_factory=shots.LeaveOneOut)
    semi_supervised: shots.SemiSupervised = field(default_factory=shots.SemiSupervised)
    transfer: shots.Transfer = field(default_factory=shots.Transfer)
    tsne: TSNE = field(default_factory=TSNE)
    retrieval: Retrieval = field(default_factory=Retrieval)
    layerwise: Layerwise = field(default_factory=Layerwise)
    finetune: Finetune = field(default_factory=Finetune)
    timing: Timing = field(default_factory=Timing)
    """Of `synchronization` and `before_after`."""
    posing: Posing = field(default_factory=Posing)
    """Of `pose`."""
    groups: str = ""
    """Parquet column, as `sequence`: `linear` then learns from all groups of the training data but one, and is tested
    on that, for each in turn. Empty: it is tested on the test data."""
    task: Task = field(default_factory=Task)
    gaps: Gaps = field(default_factory=Gaps)
    gradcam: GradCAM = field(default_factory=GradCAM)
    pictures: Pictures = field(default_factory=Pictures)
    generative: generate.Generative = field(default_factory=generate.Generative)
    """Of `fid` and `inception_score`."""
    backbone: str = ""
    """Its name, for an exported .safetensors file, which holds weights alone."""
    test_limit: int | None = None
    """Test images, evenly spaced. None: all."""
    seed: int = 0
    workers: int = 1
    """Training processes of a protocol that trains: `linear` with augmentation, `layerwise`, `finetune`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus: float = 0.5
    """CPUs that Ray reserves for a training process."""
    gpus: float = 1.0
    """GPUs that Ray reserves for a task, or for a training process."""
    share: float = 1.0
    """Share of the cluster that a protocol that trains may count on."""
    address: str | None = None
    """The Ray cluster. None: the one in the environment, else one of this machine."""


Part = Literal["train", "test"]


@dataclass(frozen=True)
class Ready:
    """What protocols work on. Sources and features are there once they are asked for; features need a cluster."""

    subject: "Subject"
    options: Options

    @cached_property
    def sources(self) -> tuple[Source, Source]:
        """Of training and of test."""
        data = self.options.data
        if not data.test:
            raise UserError("evaluation needs test data: give --data.test")
        train, test = open_source(data.train, data), open_source(data.test, data)
        check_classes(train, test)
        return train, test

    @cached_property
    def train(self) -> Features:
        return self.extracted("train", self.networks)

    @cached_property
    def test(self) -> Features:
        return self.extracted("test", self.networks)

    @property
    def networks(self) -> dict[str, Any]:
        it = self.subject
        return {"trained": it.backbone, **({"random_init": it.random} if it.random else {})}

    def extracted(
        self, part: Part, networks: Mapping[str, nn.Module], *, raw: bool = True, size: int | None = None
    ) -> Features:
        """What each network maps the images of a part to, and raw pixels, on as many GPUs or CPUs as there are.

        `size`: pixels of the images' central part. None: what the networks see.
        """
        import ray

        options, resources = self.options, ray.cluster_resources()
        if options.data.media == "take":
            raise UserError("takes are evaluated by the protocols pose and task: choose among them")
        device = "cuda" if options.device != "cpu" and resources.get("GPU", 0) >= options.gpus else "cpu"
        return extract(
            self.source(part),
            options.data,
            networks,  # type: ignore[arg-type]
            limit=self.limit(part),
            crop=size or self.size,
            stage=self.clips(part, size or self.size) if options.data.media == "video" else None,
            what=getattr(options.data, part),
            resources=resources,
            device=device,
            gpus=options.gpus,
            raw=raw,
        )

    def clips(self, part: Part, size: int, count: int | None = None) -> UniformClips:
        """What decodes clips of a part's videos, of `size` pixels."""
        chosen, data, frames = self.options.clips, self.options.data, self.subject.frames
        count, frames = count or chosen.count, frames or chosen.frames
        return UniformClips(self.source(part), data, count, frames, chosen.speed, size, chosen.still)

    def source(self, part: Part) -> Source:
        return self.sources[part == "test"]

    def limit(self, part: Part) -> int | None:
        return self.options.data.limit if part == "train" else self.options.test_limit

    def wanted(self, part: Part) -> Tensor:
        """int64, ascending dataset indices of the images that are asked for, whether they can be decoded or not."""
        return torch.from_numpy(selected(self.source(part), self.limit(part)))

    def images(self, part: Part, index: Tensor) -> Tensor:
        """uint8 (n, C, size, size) of the rows at these dataset indices, in their order, as the networks see them."""
        return central(self.decoded(part, index), self.size)

    def decoded(self, part: Part, index: Tensor) -> Tensor:
        """uint8 (n, C, S, S) of the rows at these dataset indices, in their order, as views see them."""
        return torch.cat([image for _, image in self.read(part, index)])

    def read(self, part: Part, index: Tensor, most: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Dataset indices int64 (n,) and images uint8 (n, C, S, S), of videos one clip each (n, T, C, S, S), in the
        order of `index`, broken ones left out; of neighbours in a file, ascending, up to `most` at once."""
        source, data = self.source(part), self.options.data
        for number, rows in self.runs(part, index, most):
            if data.media == "video":
                found = self.clips(part, self.size, count=1)([Piece(number, rows)])
                good = found["bad"] == ""
                yield torch.from_numpy(found["index"][good]), torch.from_numpy(found["image"][good, 0])
            elif data.media == "image":
                loaded = load(source, source.groups[number], rows, data.size)
                yield torch.from_numpy(loaded.index), torch.from_numpy(loaded.image)
            else:
                raise UserError("this protocol looks at single images or videos: of takes choose pose or task")

    def runs(self, part: Part, index: Tensor, most: int) -> Iterator[tuple[int, np.ndarray]]:
        """`index` cut to runs of at most `most` rows of one group: the group's number, and the rows' offsets in it."""
        groups = self.source(part).groups
        bounds = np.array([group.first for group in groups])
        numbers = np.searchsorted(bounds, index.numpy(), side="right") - 1
        for start, end in pairwise([*np.flatnonzero(np.diff(numbers, prepend=-1)), len(numbers)]):
            for rows in index[start:end].split(most):
                yield int(numbers[start]), rows.numpy() - groups[numbers[start]].first

    @property
    def size(self) -> int:
        """Pixels of the images that the networks see."""
        return self.subject.size

    @property
    def classes(self) -> int | None:
        return self.sources[0].classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.sources[0].class_names or self.sources[1].class_names

    def labelled(self, *parts: Part) -> None:
        """Raises UserError where a sample of these parts, or of both, has no label."""
        found = [getattr(self, part).label for part in parts or get_args(Part)]
        if self.classes is None or min(label.min() for label in found) < 0:
            raise UserError(
                "this protocol needs a label for each image: give --data.label, or choose tsne or retrieval"
            )

    def split(self, of: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.train.of[of], self.train.label, self.test.of[of], self.test.label


def run_knn(ready: Ready, of: str) -> Result:
    """Weighted k-nearest-neighbour classifier on L2-normalized features."""
    ready.labelled()
    options = ready.options.knn
    return knn(*ready.split(of), k=options.k, temperature=options.temperature, classes=ready.classes), {}


def run_linear(ready: Ready, of: str) -> Result:
    """Linear classifier by SGD on frozen features."""
    config, groups = ready.options.linear, ready.options.groups
    ready.labelled(*(("train",) if groups else ()))
    if of == "trained" and config.augment != "none" and not groups:
        return transfer.linear_with_views(ready), {}
    if of == "raw_pixels" and not config.search:  # the rate was chosen for features: pixels get the best of three
        config = dataclasses.replace(config, search=(1.0, 0.1, 0.01))
    if groups:
        return leave_one_out(ready, of, config), {}
    return linear(*ready.split(of), config, seed=ready.options.seed, classes=ready.classes), {}


def leave_one_out(ready: Ready, of: str, config: Linear) -> dict[str, Any]:
    """`linear` on the training data alone, by groups."""
    label, classes, seed = ready.train.label, ready.classes, ready.options.seed
    group = read_column(ready.source("train"), ready.options.groups)[ready.train.index]

    def fit_predict(features: Tensor, labels: Tensor, others: Tensor) -> Tensor:
        return predicted(features, labels, others, config, seed=seed, classes=classes)

    said = leave_one_group_out(ready.train.of[of], label, group, fit_predict)
    top1, low, high = balanced_interval(said, label, group, classes or 1)
    return {"top1": (said == label).double().mean().item(), "balanced": top1, "low": low, "high": high}


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
    return figures, {}


def run_transfer(ready: Ready, of: str) -> Result:
    """Logistic regression by L-BFGS, or the linear classifier by SGD, on the frozen features of other data."""
    if ready.options.transfer.classifier == "linear":
        return run_linear(ready, of)
    return shots.run_logistic_elsewhere(ready, of)


def run_layerwise(ready: Ready, of: str) -> Result:
    """Linear classifier on each layer of the frozen backbone, all trained at once."""
    return transfer.layerwise(ready, of), {}


def run_finetune(ready: Ready, of: str) -> Result:
    """The backbone trained with a classifier, whole or from a layer on."""
    return transfer.finetune(ready, of), {}


def run_synchronization(ready: Ready, of: str) -> Result:
    """By how many frames one clip of a video is behind another: accuracy, and the mean error in frames."""
    return transfer.timing_task(ready, of, "synchronization"), {}


def run_before_after(ready: Ready, of: str) -> Result:
    """Which of two parts of a video came first."""
    return transfer.timing_task(ready, of, "before_after"), {}


def run_task(ready: Ready, of: str) -> Result:
    """The method's own task on test data in the run's views: errors, accuracies, what is taken for what."""
    it = ready.subject
    if it.method is None or it.recipe is None or it.clock is None:
        raise UserError("an exported backbone has no method whose task it could do: give a run")
    return own_task(ready, it.method.eval(), it.clock, it.recipe.views_used), {}


Protocol = Callable[[Ready, str], Result]
ON_FEATURES: Mapping[str, Protocol] = {
    "knn": run_knn,
    "linear": run_linear,
    "logistic": run_logistic,
    "low_shot": shots.run_low_shot,
    "knn_loocv": shots.run_knn_loocv,
    "transfer": run_transfer,
    "tsne": run_tsne,
    "retrieval": run_retrieval,
}
TRAINED: Mapping[str, Protocol] = {
    "layerwise": run_layerwise,
    "finetune": run_finetune,
    "semi_supervised": shots.run_semi_supervised,
    "synchronization": run_synchronization,
    "before_after": run_before_after,
    "pose": run_pose,
}
ON_RUN: Mapping[str, Protocol] = {
    "task": run_task,
    "filters": run_filters,
    "gradcam": run_gradcam,
    "pictures": run_pictures,
    "active_pixels": run_active_pixels,
    "gaps": run_gaps,
    "clusters": run_clusters,
}
"""Neither features nor a cluster."""
ON_CLASSIFIER: Mapping[str, Protocol] = {"generalization": run_generalization}
"""Features, of runs that have a classifier."""
OPTIONS_OF: Mapping[str, tuple[str, ...]] = {
    "synchronization": ("timing", "task"),
    "before_after": ("timing", "task"),
    "pose": ("posing",),
    "active_pixels": ("pictures",),
    "transfer": ("transfer", "linear"),
}
"""The fields of `Options` that a protocol looks at, where it is not the one of its own name."""
PROTOCOLS: Mapping[str, Protocol] = {**ON_FEATURES, **TRAINED, **ON_CLASSIFIER, **ON_RUN}
"""And those of pipelines.generate, which stand on what a generator makes."""


def of_protocol(name: str, ready: Ready) -> Ready:
    """`ready` on the data that a protocol is about."""
    return shots.elsewhere(ready) if name == "transfer" else ready


def parts_of(name: str, ready: Ready) -> tuple[Part, ...]:
    """The parts of the data that a protocol of features looks at."""
    if name == "knn_loocv":
        return ("test",)
    return ("train",) if name == "linear" and ready.options.groups else ("train", "test")


def compared(name: str, ready: Ready) -> list[str]:
    """What a protocol is run on, the run itself first."""
    if name in ON_FEATURES:
        return list(getattr(ready, parts_of(name, ready)[0]).of)
    return list(ready.networks) if name in TRAINED else ["trained"]


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
    frames: int | None = None
    """Of a clip, where the backbone takes clips."""
    recipe: Recipe | None = None
    step: int | None = None
    method: Method | None = None
    """The run's, with its weights."""
    clock: Clock | None = None
    """The moment at which training stands."""
    initial: list[Any] = field(default_factory=list)
    """What the random initialization depends on."""


def defaults(target: str) -> Options:
    """Options with the data of the run at `target`."""
    folder = open_folder(target)
    if folder.exists("recipe.json"):
        data = recipes.from_json(folder.read("recipe.json")).data
        if data.media == "video":
            return Options(data=data, finetune=VIDEO_FINETUNE, linear=VIDEO_LINEAR)
        if data.media == "take" and not data.pose:
            data = dataclasses.replace(data, pose="pose")
        return Options(data=data)
    if is_export(target):
        return Options(data=Data())
    raise UserError(f"{target}: neither a run (no recipe.json in it) nor an exported .safetensors or .pt file")


def is_export(target: str) -> bool:
    return Path(target).is_file() and Path(target).suffix in (".safetensors", ".pt")


def subject(target: str, options: Options) -> Subject:
    if is_export(target):
        return exported(Path(target), options)
    folder = open_folder(target)
    recipe = recipes.from_json(folder.read("recipe.json"))
    state, broken = Checkpoints(folder / "checkpoints").newest()
    for line in broken:
        console.print(f"[yellow]{escape(line)}[/]")
    if state is None:
        raise UserError(f"{target} has no good checkpoint: pretrain it first (--run.resume goes on with a run)")
    facts = facts_of(folder, recipe)
    trained, random = trained_method(recipe, facts, state), initial_method(recipe, facts)
    initial = [recipe.backbone, recipe.batch_norm == "none", recipe.seed]
    if trained.owns_backbone:
        initial = [*initial, recipe.method_name, dataclasses.asdict(recipe.method)]
    image = next(iter(facts.views.values()))[0]
    size = min(trained.pixels(image[-1]), *options.data.shape)  # of a larger view the decoded image has not more
    frames = image[0] if len(image) == 4 else None
    step, steps = state["step"], state["steps_per_epoch"]
    clock = Clock(step, steps * recipe.epochs, steps, step // steps, recipe.seed)
    return Subject(trained.backbone, random.backbone, folder, "", size, frames, recipe, step, trained, clock, initial)


def facts_of(folder: Folder, recipe: Recipe) -> Facts:
    """What the run's method knew of its data."""
    if not folder.exists("run.json"):
        raise UserError(f"{folder.path} has a recipe.json but no run.json: copy the run's folder whole")
    found = read_json(folder, "run.json")["found"]
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
    clip = (options.clips.frames,) if data.media == "video" else ()
    script = read_torchscript(path) if path.suffix == ".pt" else None
    if script is not None:
        size = min(size, script.image[-1])  # the central part, as the run's own evaluation
    elif not options.backbone:
        raise UserError(f"{path} holds weights alone: name their network with --backbone")
    if not options.backbone:
        return Subject(script, None, open_folder(str(path.parent)), f"{path.name}.", size)
    torch.manual_seed(options.seed)
    try:
        image = (*clip, 3, size, size)
        random, twin = (backbones.build(options.backbone, image=image, mean=data.mean, std=data.std) for _ in range(2))
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
    """Runs protocols and merges their figures into `evaluation.json`; prints tables. Returns all figures."""
    known = {**PROTOCOLS, **generate.PROTOCOLS}
    for name in protocols:
        if name not in known:
            raise UserError(f"no protocol {name}{recipes.nearest(name, known)} (there are {', '.join(known)})")
    figures: dict[str, Any] = {}
    if of_images := [name for name in protocols if name in PROTOCOLS]:
        figures = measured(target, of_images, options)
    if of_generator := [name for name in protocols if name in generate.PROTOCOLS]:
        place = {"device": options.device, "gpus": options.gpus, "address": options.address}
        chosen = generate.Options(options.data, options.generative, options.seed, **place)  # type: ignore[arg-type]
        figures = generate.generative(target, of_generator, chosen)
    return figures


def measured(target: str, protocols: list[str], options: Options) -> dict[str, Any]:
    """Runs those of `PROTOCOLS`."""
    ready = Ready(subject(target, options), options)
    alone = ON_RUN.keys() >= set(protocols)
    if not alone:
        for name in protocols:
            _ = of_protocol(name, ready).sources  # mistakes in the data, before a cluster starts
    with nullcontext() if alone else cluster(options.address):
        it = ready.subject
        storage = it.folder.parent
        figures, known = read_json(it.folder, f"{it.prefix}evaluation.json"), read_json(storage, "baselines.json")
        for name in protocols:
            measure(name, ready, figures, known)
            it.folder.write(f"{it.prefix}evaluation.json", json.dumps(figures, indent=2).encode())
            known = read_json(storage, "baselines.json") | known  # other runs are evaluated beside this one
            storage.write("baselines.json", json.dumps(known, indent=2).encode())
    print_table(figures, protocols, it)
    return figures


def read_json(folder: Folder, name: str) -> dict[str, Any]:
    return json.loads(folder.read(name)) if folder.exists(name) else {}


def measure(name: str, ready: Ready, figures: dict[str, Any], known: dict[str, Any]) -> None:
    """One protocol on the run and on what stands beside it, merged into `figures`.

    Args:
        known: figures of baselines by what they depend on; those of a dataset are computed once, for all runs.
    """
    ready = of_protocol(name, ready)
    it, options = ready.subject, ready.options
    settings: dict[str, Any] = {}
    for field_ in OPTIONS_OF.get(name, (name,)):
        settings |= dataclasses.asdict(getattr(options, field_)) if hasattr(options, field_) else {}
    settings |= {"size": ready.size, "seed": options.seed}
    if options.data.media == "video":
        settings |= {"clips": dataclasses.asdict(options.clips), "frames": it.frames}
    if name == "pose" and it.recipe is not None:  # what it resolves `posing.background` by
        settings |= {"backgrounds": sorted({view.background for view in it.recipe.views_used.values()})}
    settings |= {"groups": options.groups} if name == "linear" and options.groups else {}
    if name not in ON_RUN:
        features = name in ON_FEATURES or name in ON_CLASSIFIER
        for part in parts_of(name, ready):
            count = len(getattr(ready, part).index if features else ready.wanted(part))
            settings |= {part: getattr(options.data, part), f"{part}_images": count}
    for of in compared(name, ready):
        place = figures if of == "trained" else figures.setdefault(of, {})
        key = json.dumps(
            [name, of, settings, dataclasses.asdict(options.data), it.initial if of == "random_init" else 0]
        )
        if of != "trained" and key in known:
            place[name] = known[key]
            continue
        with console.status(f"{name} of {of.replace('_', ' ')}"):
            try:
                place[name], pictures = PROTOCOLS[name](ready, of)
            except ValueError as error:
                raise UserError(f"{name}: {error}") from error
        suffix = "" if of == "trained" else f"_{of}"
        for what, picture in pictures.items():
            it.folder.write(f"{it.prefix}{name}{what}{suffix}.png", picture)
            show(it, f"{name}{what}{suffix}", picture)
        if of != "trained" and not pictures:
            known[key] = place[name]
    figures.setdefault("protocol", {})[name] = {**settings, "step": it.step}


def show(it: Subject, name: str, picture: bytes) -> None:
    """A PNG in the run's TensorBoard too, where that lies on a local disk."""
    from torch.utils.tensorboard import SummaryWriter

    if it.step is None or it.folder.local is None:
        return
    pixels = decode_png(torch.frombuffer(bytearray(picture), dtype=torch.uint8), ImageReadMode.RGB)
    with SummaryWriter(str(it.folder.local / "tensorboard" / "evaluation")) as board:
        board.add_image(name, pixels, it.step)


def print_task(figures: Mapping[str, Any]) -> None:
    """The method's figures, and rows of those that are tables."""
    for name, row in rows_of(figures):
        Console().print(f"{name:24}", *(f"{cell:,}" if isinstance(cell, int) else f"{cell:8.4f}" for cell in row))


AS_THEY_ARE = ("mae", "mpjpe", "nmpjpe", "pmpjpe")
"""Frames and millimetres; all other figures are fractions, shown as percents."""
SHOWN = ("top", "map", "mean", "train", "test", "gap", "precision", "balanced", "accuracy", *AS_THEY_ARE, "low", "high")


def print_table(figures: Mapping[str, Any], protocols: list[str], it: Subject) -> None:
    table = Table("protocol", "figure", "this run", "random init", "raw pixels")
    for name in protocols:
        layers = [key for key in figures[name] if name == "layerwise" and key != "last"]
        if name == "task":
            print_task(figures[name])
            continue
        if name == "gaps":
            print_task({f"{gap} frames": found["accuracy"] for gap, found in figures[name].items()})
        if name == "clusters":
            print_task({key: [row] for key, row in figures[name].items()})
        shown = layers or [key for key in figures[name] if key.startswith(SHOWN)]
        for key in shown:
            unit = 1 if key in AS_THEY_ARE else 100
            cells = [figures, figures.get("random_init", {}), figures.get("raw_pixels", {})]
            values = [cell.get(name, {}).get(key) for cell in cells]
            table.add_row(name, key, *("-" if value is None else f"{unit * value:.2f}" for value in values))
        if name in ("tsne", "retrieval"):
            table.add_row(name, "picture", f"{it.prefix}{name}.png", "_random_init", "_raw_pixels")
        elif name in ON_RUN or name == "pose":
            table.add_row(name, "picture", f"{it.prefix}{name}{'_*' if name == 'pictures' else ''}.png", "-", "-")
    if table.rows:
        Console().print(table)
    console.print(f"{it.folder.path}/{it.prefix}evaluation.json")
