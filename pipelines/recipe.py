"""Recipe and Run: the science, and the place. Both are frozen; the command line replaces fields by dotted name.

A recipe is a Python function in `pipelines/recipes/` that returns a `Recipe`; `recipes()` finds them by their return
type, so that a new one needs no registration. A method is the module of `methods/` that defines its `Config`.
"""

import dataclasses
import difflib
import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from tyro.constructors import PrimitiveConstructorSpec

import methods
import pipelines.recipes
from methods import backbones
from methods.clips import ClipView
from methods.method import Facts, Method
from methods.optim import Optimizer
from methods.takes import TakeView
from methods.views import View
from pipelines.errors import UserError
from pipelines.labels import Balance
from pipelines.sources import Data, Media

VIEWS: dict[Media, type[View] | type[ClipView] | type[TakeView]] = {"image": View, "video": ClipView, "take": TakeView}
"""What views of each kind of data are."""


@dataclass(frozen=True)
class Recipe:
    method: Any
    """The method's hyper-parameters: the `Config` of a file in methods/."""
    backbone: str
    """A name of `python -m pipelines list`, or timm:NAME; `own` where the method brings its own network."""
    data: Data
    views: dict[str, Any]
    """The views by name, as the method names them: of images, of videos (`ClipView`) or of takes (`TakeView`)."""
    optimizers: dict[str, Optimizer]
    """The optimizer and schedule of each turn."""
    epochs: int = 200
    batch_size: int = 256
    """Of all workers together."""
    seed: int = 0
    batch_norm: str = "global"
    """global (SyncBN on several GPUs), shuffle, split:N or none; see methods.parts.set_batch_norm."""
    start_from: str | None = None
    """Folder of a run whose weights are loaded first: the whole backbone, and what else has the same name and shape."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is at least 1, got {self.epochs}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is at least 2, got {self.batch_size}")
        for name, view in self.views.items():
            if view.name != name:
                raise ValueError(f"views.{name}.name must be {name}, got {view.name}")
            if not isinstance(view, VIEWS[self.data.media]):
                raise ValueError(f"views.{name} is a {type(view).__name__}, not one of --data.media {self.data.media}")
        if self.data.order == "balanced" and (self.data.media != "image" or not hasattr(self.method, "parts")):
            raise ValueError(
                f"--data.order balanced is for images and methods that take a batch apart, as bilevel: "
                f"{self.method_name} on --data.media {self.data.media} does not, give --data.order shuffle"
            )
        if self.data.validation_ratio and getattr(self.method, "validation", "first") != "first":
            raise ValueError("--data.validation-ratio holds for the first part: give --method.validation first")
        if missing := set(self.views_used) - set(self.views):
            raise ValueError(f"{self.method_name} needs the view {min(missing)}, which this recipe lacks")

    @property
    def views_used(self) -> dict[str, Any]:
        """Those that the method's options ask for (`Config.views`), or all."""
        return {name: self.views.get(name) for name in getattr(self.method, "views", self.views)}

    @property
    def balance(self) -> Balance | None:
        """Of a batch's parts, where they have identical label counts; else None."""
        if self.data.order != "balanced":
            return None
        return Balance(self.method.parts, self.data.validation_ratio)

    @property
    def method_name(self) -> str:
        return type(self.method).__module__.rpartition(".")[2]

    def with_(self, **fields: Any) -> "Recipe":
        """A recipe derived from this one: `recipe.with_(epochs=10, data={"size": 64})`.

        A dict replaces fields inside a section (`method`, `data`, `views`, `optimizers`); anything else the field.
        """
        return _replaced(self, fields)

    def facts(self, samples: int, classes: int | None) -> Facts:
        views = {name: (view.shape(len(self.data.mean)), view.width) for name, view in self.views_used.items()}
        return Facts(samples=samples, classes=classes, views=views)

    def build(self, facts: Facts) -> Method:
        """The method with its backbone and plain batch norm, on the CPU, with weights drawn from the process's seed."""
        method, own = load_method(self.method_name).METHOD, self.backbone == backbones.OWN
        if own != method.owns_backbone:
            has = "its own network: give --backbone own" if method.owns_backbone else "none of its own: give --backbone"
            raise ValueError(f"--backbone {self.backbone}: {self.method_name} has {has}")
        image = next(iter(facts.views.values()))[0]
        if len(image) == 4:
            image = getattr(self.method, "frames", image[0]), *image[1:]
        backbone = None if own else backbones.build(self.backbone, image=image, mean=self.data.mean, std=self.data.std)
        return method(self.method, backbone, facts)

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        return json.dumps({**fields, "method": {"name": self.method_name, **fields["method"]}}, indent=2)


class Elastic(NamedTuple):
    """A number of training processes that follows the cluster: one that divides `most` and is at least `least`."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}:{self.most}"


def _workers(text: str) -> "int | Elastic":
    try:
        least, colon, most = text.partition(":")
        return Elastic(int(least), int(most)) if colon else int(text)
    except ValueError:
        raise ValueError(f"a number, or LEAST:MOST as 4:16, not {text}") from None


Workers = Annotated[
    int | Elastic,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT|INT:INT",
        instance_from_str=lambda words: _workers(words[0]),
        is_instance=lambda it: isinstance(it, (int, Elastic)),
        str_from_instance=lambda it: [str(it)],
    ),
]


@dataclass(frozen=True)
class Run:
    storage: str = "runs"
    """Folder or URI (s3://..., gs://...) under which runs lie; shared by all nodes of a cluster."""
    name: str = ""
    """The run's folder under storage. Empty: the recipe's name."""
    resume: bool = False
    """Go on from the newest good checkpoint of this name."""
    workers: Workers = 1
    """Training processes; each takes an equal share of the batch. 4:16: as many as the cluster has room for, of 4, 8
    and 16 (what divides the most): fewer after a node is lost, more soon after one came. The batch
    and the learning rate are the same with any number, and so is each batch's content."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: one GPU a worker where the cluster has that many, else the CPU."""
    cpus: float = 0.5
    """CPUs that Ray reserves for a worker; what is left is for the data stages."""
    gpus: float = 1.0
    """GPUs that Ray reserves for a worker on GPUs; less than 1 lets runs of one worker share one."""
    share: float = 1.0
    """Share of the cluster that this run may count on; a sweep gives each of its trials the same."""
    feed: Literal["auto", "stream", "resident"] = "auto"
    """stream: nothing is ever held whole; resident: decoded once, uint8 in each worker's memory. auto: by size."""
    views_on: Literal["auto", "data", "device"] = "auto"
    """Where views are made: in Ray Data stages on CPU nodes, or on the training device. auto: data for the stream
    feed of a CPU run, else device."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 autocast on GPUs, float32 on CPUs."""
    compile: bool = False
    """torch.compile of each network."""
    threads: int = 0
    """Threads of a worker on the CPU. 0: the machine's cores shared among its workers."""
    retries: int = 3
    """How often in a row, without getting further, failed workers are started again from the newest checkpoint. An
    exception of the training's own, not of storage, that comes twice alike ends the run before."""
    wait: float | None = None
    """Minutes to wait for nodes that the cluster does not have (yet), at the start and after a loss. None: at the start
    not at all, after a loss, and for trials of a sweep, 10."""
    train_on: str = ""
    """LABEL=VALUE of the nodes that train, as `ray start --labels` has given them. Empty: any."""
    data_on: str = ""
    """LABEL=VALUE of the nodes for the data stages, so that they leave the others' CPUs alone. Empty: any."""
    checkpoint_epochs: int = 1
    """Epochs between checkpoints; the end of training always has one."""
    checkpoint_steps: int = 0
    """If above 0, also a checkpoint each so many steps, within epochs too."""
    stop_epoch: int = 0
    """If above 0, stop after so many epochs of the schedule, to be gone on with by --run.resume."""
    keep: int = 3
    """Checkpoints kept: the newest ones."""
    log_steps: int = 20
    """Steps between two lines of metrics.jsonl."""
    knn_epochs: int = 0
    """If above 0, online kNN each so many epochs, on at most 5,000 training and 2,000 test images."""
    collapse_std: float = 0.0
    """If above 0, a run whose feature_std (1 isotropic, 0 collapsed) is below it at an epoch's end has collapsed: it
    stops there, and leaves collapsed.json."""
    address: str | None = None
    """The Ray cluster. None: the one in the environment, else one of this machine."""

    def __post_init__(self) -> None:
        for name in ("least", "checkpoint_epochs", "keep", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name.replace('least', 'workers')} is at least 1, got {getattr(self, name)}")
        if self.most < self.least:
            raise ValueError(f"run.workers is LEAST:MOST, got {self.workers}")
        for name in ("train_on", "data_on"):
            if (label := getattr(self, name)) and not all(label.partition("=")):
                raise ValueError(f"run.{name} is LABEL=VALUE, as node-group=cpu, got {label}")
        for name in ("threads", "retries", "wait", "checkpoint_steps", "stop_epoch", "knn_epochs"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"run.{name} is 0 or more, got {getattr(self, name)}")
        for name in ("cpus", "gpus"):
            if getattr(self, name) <= 0:
                raise ValueError(f"run.{name} is above 0, got {getattr(self, name)}")
        if self.gpus < 1 and self.most > 1:
            raise ValueError("run.gpus below 1 is for one worker: the workers of a run can't share a GPU")
        if not 0 < self.share <= 1:
            raise ValueError(f"run.share is above 0 and at most 1, got {self.share}")

    @property
    def least(self) -> int:
        """Training processes, at the least."""
        return self.workers.least if isinstance(self.workers, Elastic) else self.workers

    @property
    def most(self) -> int:
        """Training processes, at the most."""
        return self.workers.most if isinstance(self.workers, Elastic) else self.workers

    @property
    def numbers(self) -> list[int]:
        """Of training processes that there may be, the largest first."""
        return [n for n in range(self.most, self.least - 1, -1) if self.most % n == 0]


def _replaced(value: Any, fields: dict[str, Any]) -> Any:
    """`value`, a dataclass or a dict, with `fields` replaced; a dict goes into a section, which must be there."""
    mapping = isinstance(value, dict)
    known = value if mapping else {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    for name, new in fields.items():
        if name not in known and not (mapping and not isinstance(new, dict)):
            raise UserError(f"no field {name} in {type(value).__name__}{nearest(name, known)}")
    changes = {k: _replaced(known[k], v) if isinstance(v, dict) else v for k, v in fields.items()}
    return {**value, **changes} if mapping else dataclasses.replace(value, **changes)


def nearest(name: str, known: Any) -> str:
    """`; did you mean a, b?` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


# ------------------------------------------------------------------------------------------ look-ups


def _modules(package: ModuleType) -> list[ModuleType]:
    names = [m.name for m in pkgutil.iter_modules(package.__path__, package.__name__ + ".") if not m.ispkg]
    return [importlib.import_module(name) for name in names]


def method_modules() -> dict[str, ModuleType]:
    """Every file of methods/ that defines METHOD, by name."""
    return {m.__name__.rpartition(".")[2]: m for m in _modules(methods) if hasattr(m, "METHOD")}


def load_method(name: str) -> ModuleType:
    known = method_modules()
    if name not in known:
        raise UserError(f"no method {name}{nearest(name, known)} (there are {', '.join(known)})")
    return known[name]


def recipes() -> dict[str, Callable[[], Recipe]]:
    """Every function of pipelines/recipes/ that returns a Recipe, by name."""
    return {
        name: function
        for module in _modules(pipelines.recipes)
        for name, function in vars(module).items()
        if not name.startswith("_")
        and getattr(function, "__module__", None) == module.__name__
        and getattr(function, "__annotations__", {}).get("return") is Recipe
    }


def find_recipe(name: str) -> Recipe:
    known = recipes()
    if name not in known:
        raise UserError(f"no recipe {name}{nearest(name, known)} (python -m pipelines list shows all)")
    return known[name]()


def from_json(text: str | bytes) -> Recipe:
    """The recipe that `to_json` wrote. Raises UserError where it is damaged, or of another version of the project."""
    try:
        fields = dict(json.loads(text))
        method = dict(fields.pop("method"))
        config = load_method(method.pop("name")).Config
        data = pydantic.TypeAdapter(Data).validate_python(fields.pop("data"))
        kind: Any = VIEWS[data.media]
        plain = {
            name: pydantic.TypeAdapter(_PLAIN[name]).validate_python(fields[name]) for name in _PLAIN.keys() & fields
        }
        return Recipe(
            method=pydantic.TypeAdapter(config).validate_python(method),
            data=data,
            views=pydantic.TypeAdapter(dict[str, kind]).validate_python(fields.pop("views")),
            optimizers=pydantic.TypeAdapter(dict[str, Optimizer]).validate_python(fields.pop("optimizers")),
            **{**fields, **plain},
        )
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise UserError(f"{DAMAGED} ({error.title}: {wrong})") from error
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{DAMAGED} ({type(error).__name__}: {str(error)[:200]})") from error


DAMAGED = "recipe.json does not fit this version of the project, or is damaged: restore it, or give another --run.name"
_PLAIN: dict[str, Any] = {
    "backbone": str,
    "epochs": int,
    "batch_size": int,
    "seed": int,
    "batch_norm": str,
    "start_from": str | None,
}
