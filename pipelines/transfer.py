"""Protocols that train: with the training loop and the methods `supervised` and `timing`, each as a run of its own.

The runs lie under `<run>/evaluation`, named by protocol, step and settings; a second call goes on with what is there.
Test images pass the trained network as features do. Of a video the probabilities of its clips are averaged.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from methods import backbones, supervised, timing
from methods.clips import ClipView
from methods.method import Clock
from methods.metrics.linear import Linear
from methods.optim import Optimizer
from methods.parts import set_batch_norm
from methods.rescaling import rescale
from methods.views import View
from pipelines.board import console
from pipelines.errors import UserError
from pipelines.pretrain import pretrain
from pipelines.recipe import Recipe, Run
from pipelines.sources import Data
from pipelines.storage import Checkpoints, Folder
from pipelines.tasks import own_task

if TYPE_CHECKING:
    from pipelines.evaluate import Ready
    from pipelines.posing import Posing

Augment = Literal["crop", "resized_crop"]
"""crop: the square that the network sees, cut at random out of the decoded image (`--data.size`); of one of the same
size there is one cut alone. resized_crop: 8% to 100% of the area, torchvision's default. Both are flipped at random."""


NESTEROV = Optimizer(lr=0.1, scaling="none", nesterov=True, weight_decay=5e-4, exclude=True)
SGD = Optimizer(lr=0.01, scaling="none", weight_decay=5e-4)


@dataclass(frozen=True)
class Layerwise:
    """Linear classifiers on the layers of a frozen backbone (S. Jenni's thesis, sections 3.4.2 and 4.4.1).

    The thesis gives epochs, crops and the features' size. The rest is the released code's of chapter 4: batch norm
    without scale and shift, SGD with Nesterov momentum .9, weight decay 5e-4 on weights, batch 64, rate .1, which falls
    to .01, .002, .0004 and .00008 at .08, .4, .7 and .9 of the epochs. Here it falls by a cosine, whatever the epochs.

    Others: `STL10` (Table 4.2), `STL10_CONV5` (Table 4.1).
    """

    size: int | None = None
    """Pixels of the crops, and of the test images' central part. None: what the backbone was trained on."""
    layers: tuple[str, ...] = ()
    """Of the backbone (`alexnet`: conv1 to conv5). Empty: all that it names."""
    values: int | None = 9216
    """Most values of a map that its classifier sees; larger maps are average-pooled. None: all."""
    norm: bool = True
    """Batch norm without scale and shift before each classifier: so one rate suits all layers."""
    head: tuple[int, ...] = ()
    """Widths of hidden layers of each classifier, with batch norm and ReLU. Empty: it is linear."""
    augment: Augment = "crop"
    optimizer: Optimizer = NESTEROV
    batch_size: int = 64
    epochs: int = 100


def steps_of_chapter_4(epochs: int) -> Optimizer:
    """The released code's steps, but for the first 8% of the epochs, which have .05 and not .1: one factor for all."""
    milestones = tuple(share * epochs for share in (0.08, 0.4, 0.7, 0.9))
    return dataclasses.replace(NESTEROV, lr=0.05, schedule="steps", gamma=0.2, milestones=milestones)


STL10 = Layerwise(size=64, values=None, optimizer=steps_of_chapter_4(700), epochs=700)
"""Table 4.2: 700 epochs on crops of 64 px, "without resizing the feature-maps". The code trains for 900, and pools by
6, 4, 3, 3 and 2."""
STL10_CONV5 = Layerwise(size=96, layers=("conv5",), values=None, optimizer=steps_of_chapter_4(500), epochs=500)
"""Table 4.1: 500 epochs "on randomly cropped 96x96 images", of a network that was trained on crops of 64 px."""


@dataclass(frozen=True)
class Finetune:
    """The backbone trained with a linear classifier. Defaults are ours; `STL10_FINETUNE` is Table 3.2's."""

    layer: str = ""
    """Layer of the backbone whose whole map is classified; what lies behind it is not used. Empty: pooled features."""
    from_layer: str = ""
    """The first layer that is trained; what lies before it is frozen, its batch norm included. Empty: all are."""
    freeze: bool = False
    """The whole backbone stays as it is: the classifier alone is trained."""
    classifier_rate: float = 1.0
    """A factor of the classifier's learning rate, beside the backbone's."""
    values: int | None = None
    """With `layer`: most values of its map that the classifier sees. None: all."""
    rescale: Literal["none", "new", "every"] = "none"
    """Data-dependent rescaling at the start (Krähenbühl et al., 2016; section 3.4.2): the layers that learn are scaled
    to change at the same rate. Before that, new: the classifier, which is new, gets outputs of unit variance; every:
    each layer that learns, which changes what was learned. See methods.rescaling."""
    calibration: int = 160
    """Training images that are looked at for it, the first ones; the authors' code takes 10 batches of 16."""
    augment: Augment = "resized_crop"
    optimizer: Optimizer = SGD
    batch_size: int = 128
    epochs: int = 50

    def __post_init__(self) -> None:
        if self.calibration < 2:
            raise ValueError(f"finetune.calibration is at least 2 images, got {self.calibration}")


STL10_FINETUNE = Finetune(
    layer="conv5",
    optimizer=Optimizer(
        "adam", lr=1e-3, scaling="none", betas=(0.5, 0.999), weight_decay=0.0, schedule="linear", final_lr=1e-5
    ),
    epochs=200,
)
"""Table 3.2, conv1 to conv5 finetuned: "an additional 200 epochs" (the code: 400), on conv5's features; the optimizer
and batch 128 are the released code's. Its row "frozen" is `Layerwise` with layers conv5 and this optimizer. The
transfer to Pascal VOC (Table 3.3), with several labels an image, is not here."""


ADAMW = Optimizer(
    "adamw", lr=5e-5, scaling="none", betas=(0.9, 0.99), weight_decay=1e-4 / 5e-5, exclude=True, final_lr=5e-8
)
"""Transfer of video features (S. Jenni's thesis, section 5.2.3); its weight decay as in pipelines.recipes.temporal."""
VIDEO_FINETUNE = Finetune(augment="crop", optimizer=ADAMW, batch_size=24, epochs=75)
"""Table 5.2 with C3D: 75 epochs on random crops; batch 24 is the released code's. The other networks: 150 epochs."""
VIDEO_LINEAR = Linear(Optimizer(lr=3.0, scaling="none", weight_decay=0.0), batch_size=16, augment="none")
"""Ours, as no text has a linear evaluation of videos: on the mean features of each, and small batches, as sets are."""
VIDEO_FROZEN = Layerwise(
    layers=("pool5",), values=None, norm=False, head=(2048, 2048), optimizer=ADAMW, batch_size=24, epochs=50
)
"""Table 5.1, "conv frozen": three new fully connected layers on what C3D's convolutions give, 50 epochs."""


@dataclass(frozen=True)
class Timing:
    """Of `synchronization` and `before_after` (section 5.3, Table 5.3): what is trained, see methods.timing. The text
    gives no epochs; those of the transfer to actions."""

    layer: str = "conv5"
    """psi, the backbone's layer that is classified. Empty: the features."""
    head: tuple[int, ...] = (2048, 2048)
    most_offset: int = 6
    speed: int = 0
    """kappa of the videos' frames: offsets and gaps are counted in every 2^kappa-th. Ours: the text has 2 for
    actions, and names none here. Less where a video is too short, as everywhere."""
    freeze: bool = True
    """Whether the backbone stays as it was pretrained."""
    norm_momentum: float = 0.025
    """Of the new layers' batch norm: a step's share in the running statistics. Few steps need .1 or more."""
    optimizer: Optimizer = ADAMW
    batch_size: int = 24
    epochs: int = 75


def layerwise(ready: "Ready", of: str) -> dict[str, Any]:
    """Top-1 of each layer by its name, and of the `last` of them."""
    chosen = ready.options.layerwise
    layers = chosen.layers or tuple(layers_of(ready))
    config = supervised.Config(layers=layers, values=chosen.values, norm=chosen.norm, head=chosen.head)
    recipe = recipe_of(ready, config, chosen)
    if chosen.norm and recipe.batch_norm == "none":
        raise UserError("this run has no batch norm (--batch-norm none): give --layerwise.norm False")
    logits, label = trained(ready, "layerwise", of, recipe)
    figures = {name: accuracies(some, label)["top1"] for name, some in logits.items()}
    return {**figures, "last": figures[layers[-1]]}


def finetune(ready: "Ready", of: str) -> dict[str, Any]:
    return tuned(ready, of, "finetune", ready.options.finetune)


def tuned(ready: "Ready", of: str, protocol: str, chosen: Finetune, data: Data | None = None) -> dict[str, Any]:
    """`data`: what is learned from, of the classes of the data that is evaluated. None: those data."""
    config = supervised.Config(
        freeze_backbone=chosen.freeze,
        classifier_rate=chosen.classifier_rate,
        from_layer=chosen.from_layer,
        layers=(chosen.layer,) if chosen.layer else (),
        values=chosen.values,
    )
    recipe = recipe_of(ready, config, chosen)
    logits, label = trained(ready, protocol, of, dataclasses.replace(recipe, data=data or recipe.data), chosen)
    return accuracies(next(iter(logits.values())), label)


def linear_with_views(ready: "Ready") -> dict[str, Any]:
    """Linear classifier trained on crops and flips through the frozen backbone.

    The crop is a resized one of 8% to 100% of the area (torchvision's default, as MoCo's code; the papers name the
    "standard protocol").
    """
    recipe = recipe_of(ready, supervised.Config(), ready.options.linear)
    logits, label = trained(ready, "linear", "trained", recipe)
    return accuracies(logits["features"], label)


def accuracies(logits: Tensor, label: Tensor) -> dict[str, Any]:
    """Fractions "top1", and "top5" where there are more than 5 classes."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]
    return {f"top{n}": ranked[:, :n].any(1).double().mean().item() for n in (1, 5) if n == 1 or logits.shape[1] > n}


def layers_of(ready: "Ready") -> Mapping[str, str]:
    layers: Mapping[str, str] = getattr(ready.subject.backbone, "layers", {})
    if not layers:
        raise UserError("layerwise needs a backbone that names its layers, as alexnet and the ResNets do")
    return layers


# ------------------------------------------------------------------------------------------------ a run


def recipe_of(ready: "Ready", config: supervised.Config, chosen: Layerwise | Finetune | Linear) -> Recipe:
    """What is trained; from where it starts is not yet said.

    Raises:
        UserError: no run, no network by name, or no labels.
    """
    it, options = ready.subject, ready.options
    if it.recipe is None:
        raise UserError(
            "an exported backbone has no run to train in: choose other protocols, or give --linear.augment none"
        )
    if it.recipe.backbone == backbones.OWN:
        other = "give --linear.augment none" if isinstance(chosen, Linear) else "choose knn or linear"
        raise UserError(f"the network of {it.recipe.method_name} is its own and can't be trained here: {other}")
    if ready.classes is None:
        raise UserError("this protocol needs a label for each image: give --data.label")
    size = (chosen.size if isinstance(chosen, Layerwise) else None) or ready.size
    if size > min(options.data.shape):
        raise UserError(f"layerwise.size {size} is more than the images have: give --data.size {size}, or less")
    return derived(ready, it.recipe, config, {"image": view_of(ready, size, chosen.augment)}, chosen)


def view_of(ready: "Ready", size: int, augment: str) -> View | ClipView:
    """What a classifier is trained on: a random crop, resized or not, of an image or of a clip."""
    data, clips, scale = ready.options.data, ready.options.clips, (0.08, 1.0)
    if data.media == "video":
        frames = ready.subject.frames or clips.frames
        return ClipView(
            "image",
            size=size,
            frames=frames,
            speed=clips.speed,
            still=clips.still,
            crop_scale=None if augment in ("crop", "crop_flip") else scale,
        )
    area = (size / data.size) ** 2
    if augment == "crop":
        return View("image", size, crop_scale=(area, area), crop_ratio=(1.0, 1.0))
    return View("image", size, crop_scale=scale)


def derived(
    ready: "Ready",
    base: Recipe,
    config: Any,
    views: Mapping[str, Any],
    chosen: "Layerwise | Finetune | Linear | Timing | Posing",
) -> Recipe:
    """`base` with another method, views and training, on the data that is evaluated, with its true labels."""
    options = ready.options
    return dataclasses.replace(
        base,
        method=config,
        data=options.data.clean(),
        views=dict(views),
        optimizers={"model": chosen.optimizer},
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        seed=options.seed,
        batch_norm="none" if base.batch_norm == "none" else "global",
        start_from=None,
    )


class Classifiers(nn.Module):
    """Images -> probabilities (B, K * classes) of all K classifiers of a supervised method, which can be averaged."""

    def __init__(self, method: supervised.Supervised) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([logits.softmax(1) for logits in self.method.logits(images).values()], dim=1)


def trained(
    ready: "Ready", protocol: str, of: str, recipe: Recipe, chosen: Finetune | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Trains `recipe` from the weights `of` the run or its beginning; probabilities (M, classes) of the test images by
    classifier, and their labels (M,)."""
    network = Classifiers(built(ready, recipe, weights_after(ready, protocol, of, recipe, chosen)))
    found = ready.extracted("test", {"probabilities": network}, raw=False, size=recipe.views["image"].size)
    if found.label.min() < 0:
        raise UserError("this protocol needs a label for each test image")
    names = list(network.method.classifiers)
    return dict(zip(names, found.of["probabilities"].chunk(len(names), dim=1), strict=True)), found.label


def weights_after(
    ready: "Ready", protocol: str, of: str, recipe: Recipe, chosen: Finetune | None = None
) -> Mapping[str, Tensor]:
    """Those of the method of `recipe`, trained from the weights `of` the run or its beginning."""
    it, options = ready.subject, ready.options
    rescaling = chosen if chosen and chosen.rescale != "none" else None
    settings = recipe.to_json() + (f"{rescaling.rescale} {rescaling.calibration}" if rescaling else "")
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    name = f"{protocol}-{it.step if of == 'trained' else of}-{digest}"
    storage = it.folder / "evaluation"
    state = weights_of(storage / name)
    if state is None or state["step"] < recipe.epochs * state["steps_per_epoch"]:
        start = it.folder
        if of != "trained" or rescaling:
            start = storage / name / "start"
            write_start(ready, of, recipe, rescaling, start)
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
        state = weights_of(pretrain(dataclasses.replace(recipe, start_from=start.uri), run, protocol))
        if state is None:
            raise UserError(f"{storage.path}/{name} has no good checkpoint: delete that folder to train again")
    return state["method"]


def weights_of(run: Folder) -> dict[str, Any] | None:
    state, _ = Checkpoints(run / "checkpoints").newest()
    return state


def built(ready: "Ready", recipe: Recipe, weights: Mapping[str, Tensor]) -> Any:
    """The method, as a worker builds it, with the same draws for what `weights` does not hold."""
    torch.manual_seed(recipe.seed)
    method: Any = recipe.build(recipe.facts(ready.source("train").rows, ready.classes))
    method = set_batch_norm(method, "none") if recipe.batch_norm == "none" else method
    method.load_state_dict(weights, strict=False)
    return method


def timing_task(ready: "Ready", of: str, task: "timing.Task") -> dict[str, Any]:
    """Trains `methods.timing` on top of the backbone: its figures on the test videos."""
    it, chosen = ready.subject, ready.options.timing
    if it.recipe is None or it.frames is None:
        raise UserError(f"{task} is for runs of videos, whose backbone takes clips")
    config = timing.Config(
        task=task,
        frames=it.frames,
        most_offset=chosen.most_offset,
        head=chosen.head,
        layer=chosen.layer,
        norm_momentum=chosen.norm_momentum,
        freeze_backbone=chosen.freeze,
    )
    view = ClipView("clip", size=ready.size, frames=config.span, speed=chosen.speed, whole=True)
    recipe = derived(ready, it.recipe, config, {"clip": view}, chosen)
    method = built(ready, recipe, weights_after(ready, task, of, recipe)).eval()
    return own_task(ready, method, Clock(0, 1, 1, 0, ready.options.seed), {"clip": view.plain()})


def write_start(ready: "Ready", of: str, recipe: Recipe, rescaling: Finetune | None, folder: Folder) -> None:
    """A folder to start from, as of a run that has made no step, unless it is there."""
    if folder.exists("recipe.json"):
        return
    weights = {f"backbone.{name}": value for name, value in ready.networks[of].state_dict().items()}
    if rescaling:
        network = Classifiers(built(ready, recipe, weights))
        images = ready.images("train", ready.wanted("train")[: rescaling.calibration])
        within = "method.classifiers" if rescaling.rescale == "new" else ""
        _, before, after, change = found = rescale(network, images, within=within, seed=recipe.seed)
        weights = {name.removeprefix("method."): value for name, value in found.network.state_dict().items()}
        folder.write("rescaling.json", json.dumps({"before": before, "after": after, "change": change}).encode())
        spread = [max(rates.values()) / min(rates.values()) for rates in (before, after)]
        console.print(
            f"rescaled {len(after)} layers: rates apart by {spread[0]:.3g} before, {spread[1]:.3g} after; "
            f"the outputs changed by {change:.1%} beyond a factor"
        )
    Checkpoints(folder / "checkpoints").save(0, {"method": weights, "step": 0})
    folder.write("recipe.json", recipe.to_json().encode())
