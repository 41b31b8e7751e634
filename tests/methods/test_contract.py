"""Every method of the package keeps the contract of methods.method: tiny networks, a few steps, one or two workers."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import methods
from methods import autoencoder, byol, simsiam
from methods.backbones import Backbone
from methods.method import Clock, Facts, Method, Step
from methods.parts import Queue, Teacher, draw, set_batch_norm
from methods.temporal import KINDS
from methods.views import PARAMETERS

MODULES = {
    name: module
    for _, name, _ in pkgutil.iter_modules(methods.__path__)
    if hasattr(module := importlib.import_module(f"methods.{name}"), "METHOD")
}
TINY = {"queue": 20, "hidden": 16, "dim": 8, "predictor_hidden": 12}  # fields that exist; 20 is no multiple of 8
CODE = (4, 6)
OWN: Mapping[str, Mapping[str, Any]] = {  # of methods that these do not fit
    "transformations": {"crop": 6, "patch": 4, "border": 1, "head": (8,), "warp_side": 2}
    | {"inpainter_width": 4, "inpainter_layers": 2, "critic_width": 4, "critic_layers": 2},
    "autoencoder": {"widths": CODE},
    "artifacts": {"autoencoder": autoencoder.Config(widths=CODE), "history": 10, "hidden": 8},
    "dfgan": {"width": 0.05, "latent": 6},
    "pose": {"joints": 4, "frozen": 0},
    "timing": {"frames": 4, "most_offset": 1, "most_gap": 2, "head": (8,), "layer": "conv"},
    "bilevel": {"parts": 4},
    "prelax": {"simsiam": simsiam.Config(3, 16, 8, 12), "byol": byol.Config(16, 8, 12)},
}
ONE = ("supervised", *OWN)
"""Methods of one view, `image`."""


class Data(NamedTuple):
    """What the data offers a method."""

    views: Mapping[str, tuple[int, ...]]
    """A view's name -> shape of one sample."""
    parameters: int = 0
    """Width of each view's; column 0 counts from 0 to 3 with the index, the others are in [0, 1)."""
    columns: Mapping[str, tuple[int, ...]] = {}
    """Further float32 columns -> shape of one sample."""


PAIRED = ("anchor", "synchronized", "unsynchronized")
OFFERED: Mapping[str, Data] = {  # of methods whose views are neither ONE nor TWO
    "temporal": Data({kind: (4, 3, 6, 6) for kind in KINDS}, parameters=2),
    "multiview": Data({view: (3, 8, 8) for view in PAIRED}),
    "pose": Data({"image": (3, 8, 8)}, columns={"pose": (4, 3)}),
    "timing": Data({"clip": (6, 3, 6, 6)}),
    "prelax": Data({"online": (3, 8, 8), "target": (3, 8, 8)}, parameters=len(PARAMETERS)),
}
TWO, CROPS = ("online", "target"), ("online", "target", "local")
SIZES = {"local": 6}  # other views: 8 x 8, of dfgan 32 x 32
BATCH, CLASSES = 8, 3


class Case(NamedTuple):
    """A method with options; `views` are what the data offers it."""

    method: str
    views: tuple[str, ...] = TWO
    options: Mapping[str, Any] = {}

    def __str__(self) -> str:
        crops = () if self.method in OFFERED else self.views[2:]
        return "-".join([self.method, *(f"{k}={v}" for k, v in self.options.items()), *crops])


def views_of(name: str) -> tuple[str, ...]:
    return tuple(OFFERED[name].views) if name in OFFERED else ("image",) if name in ONE else TWO


PLAIN = [Case(name, views_of(name)) for name in MODULES]
VARIANTS = [
    Case("simsiam", options={"layers": 2, "fix_predictor_lr": False}),
    Case("moco", options={"symmetric": True, "head_norm": True}),
    Case("moco", options={"momentum": 0.9, "momentum_end": 1.0}),
    Case("ressl", options={"predictor": False, "head_norm": False}),
    Case("ressl", options={"info_nce_epochs": 0.5}),
    Case("ressl", CROPS),
    Case("sce", options={"symmetric": True}),
    Case("sce", options={"predictor": True, "layers": 3, "projector_last_norm": True}),
    Case("sce", options={"positive_slot": "zero"}),
    Case("sce", options={"relation_weight": 1.0, "ceil_weight": 0.0}),
    Case("sce", CROPS),
    Case("sce", CROPS, {"symmetric": True, "predictor": True}),
    *(Case("rcl", options={"warmup_epochs": 0, "clustering": kind}) for kind in ("online", "dbscan", "nearest")),
    Case("rcl", options={"levels": 1, "symmetric": False}),
    Case("rcl", options={"warmup_epochs": 0, "shared_predictor": True, "similarity": "propagation", "at_hand": 6}),
    Case("supervised", ("image",), {"layers": ("conv",)}),
    Case("supervised", ("image",), {"freeze_backbone": False}),
    Case("bilevel", ("image",), {"reweight": False}),
    Case("bilevel", ("image",), {"per_layer": True, "validation": "drawn", "dropout_layer": "conv", "mixup": 1.0}),
    *(Case("transformations", ("image",), {"transformations": kinds}) for kinds in (("rotation",), ("inpainting",))),
    Case("transformations", ("image",), {"packing": 2, "small_rotation": 12.6, "warp_points": "random", "head": ()}),
    Case("transformations", ("image",), {"adversarial": False, "autoencoded_patches": False}),
    *(Case("artifacts", ("image",), {name: value}) for name, value in (("real", "input"), ("repair", "local"))),
    Case("artifacts", ("image",), {"mask_weight": 0.0, "gating": False, "history": 0}),
    Case("artifacts", ("image",), {"adversary": "flipped", "kept_weight": 30.0, "mask_on_real": True}),
    Case("artifacts", ("image",), {"fill": "noise", "dropout": 0.5, "sum_losses": True, "history": 3}),
    *(Case("dfgan", ("image",), {"objective": kind}) for kind in ("minimax", "least_squares", "hinge", "wgan_gp")),
    *(Case("dfgan", ("image",), {"noise": kind}) for kind in ("none", "gaussian")),
    Case("dfgan", ("image",), {"noise": "gaussian", "sigma_schedule": "learned", "mix": "halves"}),
    Case("dfgan", ("image",), {"spectral_norm": True, "regularizer": "roth", "gamma_decay": 0.01}),
    Case("dfgan", ("image",), {"objective": "wgan_gp", "spectral_norm": True, "mix": "halves"}),
    Case("dfgan", ("image",), {"noise_latent": "shared", "magnitude": "sum", "terms": "mean", "noise_scale": 2.0}),
    Case("dfgan", ("image",), {"activation": "tanh", "depth": 2}),
    Case("temporal", KINDS, {"speed_on_periodic": True, "reduction": "mean"}),
    Case("temporal", KINDS, {"speed_loss": False}),
    Case("temporal", ("speed",), {"transformations": ("speed",)}),
    Case("pose", ("image",), {"frozen": 1}),
    *(Case("multiview", PAIRED, {"fusion": fusion}) for fusion in ("add", "diff", "concat")),
    Case("multiview", PAIRED[:2], {"synchronization": False}),
    Case("multiview", PAIRED, {"flipping": False}),
    Case("prelax", options={"base": "byol", "head": (6,), "normalize": "after"}),
    Case("prelax", options={"r3s_weight": 0.0, "rotation_pl_weight": 0.0, "reverse_residual": True}),
    Case("prelax", options={"pl_weight": 0.0, "rotation_weight": 1.0, "rotation_augmentation": True}),
]
CASES = PLAIN + VARIANTS
every_case = pytest.mark.parametrize("case", CASES, ids=str)


class OfClips(nn.Module):
    """Normalized float (B, T, C, H, W) -> (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv3d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1)]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips.transpose(1, 2))


def backbone_of(case: Case) -> Backbone:
    if len(shape_of(case, case.views[0])) == 4:
        return Backbone(OfClips(), 8, [0.5] * 3, [0.25] * 3, {"conv": "layers.2"})
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return Backbone(nn.Sequential(*layers, nn.Flatten()), 8, [0.5] * 3, [0.25] * 3, {"conv": "2"})


def build(case: Case, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    backbone = backbone_of(case)
    module = MODULES[case.method]
    fields = {field.name for field in dataclasses.fields(module.Config)}
    tiny = OWN.get(case.method) or {k: v for k, v in TINY.items() if k in fields}
    config = dataclasses.replace(module.Config(), **{**tiny, **case.options})
    width = OFFERED[case.method].parameters if case.method in OFFERED else 0
    views = {view: (shape_of(case, view), width) for view in case.views}
    return module.METHOD(config, None if module.METHOD.owns_backbone else backbone, Facts(100, CLASSES, views))


def shape_of(case: Case, view: str) -> tuple[int, ...]:
    side = 32 if case.method == "dfgan" else SIZES.get(view, 8)
    own = OFFERED[case.method].views if case.method in OFFERED else {}
    return own.get(view, (3, side, side))


def batch_at(case: Case, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)

    def images(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(0, 256, (BATCH, *shape), dtype=torch.uint8, generator=generator)

    index = torch.arange(BATCH) + BATCH * step
    batch = {view: images(shape_of(case, view)) for view in case.views} | {"index": index, "label": index % CLASSES}
    if offered := OFFERED.get(case.method):
        for view in case.views if offered.parameters else ():
            others = torch.rand(BATCH, offered.parameters - 1, generator=generator)
            batch[f"{view}.parameters"] = torch.cat([(index % 4)[:, None].float(), others], 1)
        for name, shape in offered.columns.items():
            batch[name] = torch.randn(BATCH, *shape, generator=generator)
    return batch


def clock_at(step: int) -> Clock:
    return Clock(step=step, total_steps=4, steps_per_epoch=4, epoch=0, seed=3)


def optimizers_of(method: Method) -> dict[str, torch.optim.Optimizer]:
    return {turn: torch.optim.SGD(method.parameters_of(turn), lr=0.1, momentum=0.9) for turn in method.turns}


def moved_by(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def train_step(
    method: Method,
    optimizers: Mapping[str, torch.optim.Optimizer],
    case: Case,
    step: int,
    model: nn.Module | None = None,
    share: slice = slice(None),
) -> dict[str, Step]:
    """All turns of a step on `share` of its batch, as the training loop takes them; `model` is what is called."""
    batch = {name: column[share] for name, column in batch_at(case, step).items()}
    steps = {}
    for turn in method.turns_at(clock_at(step)):
        if len(optimizers) > 1:
            for other, optimizer in optimizers.items():
                for p in moved_by(optimizer):
                    p.requires_grad_(other == turn)
        steps[turn] = (model or method)(batch, clock_at(step), turn)
        optimizers[turn].zero_grad()
        steps[turn].loss.backward()
        optimizers[turn].step()
    method.after_step(clock_at(step))
    return steps


def parts_of(method: Method, kind: type) -> Iterator[Any]:
    return (module for module in method.modules() if isinstance(module, kind))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------ training


@every_case
def test_three_steps(case: Case) -> None:
    method = build(case)
    optimizers = optimizers_of(method)
    start = {name: p.clone() for name, p in method.named_parameters()}
    for step in range(3):
        for out in train_step(method, optimizers, case, step).values():
            assert out.loss.shape == ()
            assert out.loss.dtype == torch.float32
            assert out.loss.isfinite()
            for name, value in out.log.items():
                assert value.shape == (), name
                assert not value.requires_grad, name
                assert value.isfinite(), name
    moving = {id(p) for optimizer in optimizers.values() for p in moved_by(optimizer)}
    for name, p in method.named_parameters():
        if id(p) in moving:  # the last bias of a critic has the slopes -1 and 1 of real and fake: it may stay
            assert p.grad is not None, f"{name} has no gradient"
            assert p.ndim == 1 or not torch.equal(p, start[name]), f"{name} did not move"


@every_case
def test_optimizers_hold_every_parameter_once(case: Case) -> None:
    method = build(case)
    trained = [id(p) for p in method.parameters() if p.requires_grad]
    held = [id(p) for optimizer in optimizers_of(method).values() for p in moved_by(optimizer)]
    assert sorted(held) == sorted(trained)


@every_case
def test_a_turn_moves_what_is_its_own(case: Case) -> None:
    """Parameters, batch norm's statistics and spectral vectors: each belongs to one turn; the frozen ones to none."""
    method = build(case)
    optimizers = optimizers_of(method)
    owner = {id(p): turn for turn, optimizer in optimizers.items() for p in moved_by(optimizer)}
    modules = dict(method.named_modules())

    def turn_of(buffer: str) -> str | None:
        """Of the module that holds it: whose parameters it is beside."""
        holder = modules[buffer.rpartition(".")[0].removesuffix(".parametrizations.weight.0")]
        turns = {owner.get(id(p)) for p in holder.parameters()}
        return turns.pop() if len(turns) == 1 else None

    for turn in method.turns_at(clock_at(0)):
        before = {name: value.clone() for name, value in method.state_dict().items()}
        for other, optimizer in optimizers.items():
            for p in moved_by(optimizer):
                p.requires_grad_(other == turn)
        method(batch_at(case, 0), clock_at(0), turn).loss.backward()
        optimizers[turn].step()
        optimizers[turn].zero_grad()
        for name, p in method.named_parameters():
            if owner.get(id(p)) != turn:
                assert torch.equal(p, before[name]), f"{turn} moved {name}"
                assert p.grad is None, f"{turn} gave {name} a gradient"
        for name, _ in method.named_buffers():
            norm = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked", "_u", "_v")
            if norm and len(method.turns) > 1 and turn_of(name) != turn:
                assert torch.equal(method.state_dict()[name], before[name]), f"{turn} moved {name}"


@every_case
def test_a_state_dict_resumes_to_the_bit(case: Case) -> None:
    first = build(case)
    optimizers = optimizers_of(first)
    for step in range(2):
        train_step(first, optimizers, case, step)
    state, momentum = deepcopy(first.state_dict()), {turn: deepcopy(o.state_dict()) for turn, o in optimizers.items()}
    second = build(case, seed=1)
    second.load_state_dict(state)
    resumed = optimizers_of(second)
    for turn, optimizer in resumed.items():
        optimizer.load_state_dict(momentum[turn])
    steps = [train_step(m, o, case, 2) for m, o in ((first, optimizers), (second, resumed))]
    for turn, out in steps[0].items():
        assert torch.equal(out.loss, steps[1][turn].loss)
    assert same(first.state_dict(), second.state_dict())


@every_case
def test_no_draw_from_the_process(case: Case) -> None:
    method = build(case)
    optimizers = optimizers_of(method)
    before = torch.get_rng_state()
    train_step(method, optimizers, case, 0)
    method.pictures(batch_at(case, 0), clock_at(0))
    assert torch.equal(torch.get_rng_state(), before)


@every_case
def test_pictures_and_task_move_nothing_and_wait_for_nobody(case: Case) -> None:
    """Rank 0 alone calls them: a batch norm in training mode would wait for the other ranks (SyncBN)."""
    method = build(case)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    norms = [m for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, inputs: pytest.fail("in training mode") if norm.training else None)
    for name, images in method.pictures(batch_at(case, 0), clock_at(0)).items():
        assert images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3, name
    for name, figure in method.task(batch_at(case, 0), clock_at(0)).items():
        assert figure.isfinite().all() and not figure.requires_grad, name
    assert same(method.state_dict(), before)


@every_case
def test_bf16_autocast(case: Case) -> None:
    plain, mixed = build(case), build(case)
    for turn in plain.turns:
        expected = plain(batch_at(case, 0), clock_at(0), turn).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = mixed(batch_at(case, 0), clock_at(0), turn)
        out.loss.backward()
        assert out.loss.dtype == torch.float32
        torch.testing.assert_close(out.loss, expected, rtol=0.05, atol=0.05)
        assert all(p.grad.isfinite().all() for p in mixed.parameters() if p.grad is not None)
    mixed.after_step(clock_at(0))


# ---------------------------------------------------------------------------------- teacher and queue


@every_case
def test_the_teacher_follows_and_gets_no_gradient(case: Case) -> None:
    method = build(case)
    optimizers = optimizers_of(method)
    for step in range(2):
        before = [[p.clone() for p in teacher.parameters()] for teacher in parts_of(method, Teacher)]
        out = train_step(method, optimizers, case, step)[method.turns[-1]]
        for teacher, old in zip(parts_of(method, Teacher), before, strict=True):
            online = [*method.backbone.parameters(), *method.get_submodule("projector").parameters()]
            m = out.log["teacher_momentum"]
            for p, was, student in zip(teacher.parameters(), old, online, strict=True):
                assert p.grad is None
                assert not p.requires_grad
                torch.testing.assert_close(p, m * was + (1 - m) * student)


@every_case
def test_the_queue_takes_the_newest_keys(case: Case) -> None:
    method = build(case)
    for queue in parts_of(method, Queue):
        before = queue.keys.clone()
        method(batch_at(case, 0), clock_at(0), "model")
        stored = int(queue.pointer)
        assert stored == BATCH * (2 if getattr(method.config, "symmetric", False) else 1)
        assert torch.equal(queue.keys[stored:], before[stored:])
        assert (queue.keys[:stored] != before[:stored]).any(dim=1).all()
        torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(len(queue.keys)))
        order = draw(3, 0, batch_at(case, 0)["index"], "shuffle", 1)[:, 0]
        keys = nn.functional.normalize(method.get_submodule("teacher")(batch_at(case, 0)["target"], order), dim=1)
        holds = torch.cdist(queue.keys[:stored], keys).min(dim=0).values
        assert (holds < 1e-5).all()


@every_case
def test_the_queue_is_the_one_before_the_batch(case: Case) -> None:
    """The loss and its gradient are those of the keys held before this batch, whatever enters afterwards."""
    method, frozen = build(case), build(case)
    for queue in parts_of(frozen, Queue):
        queue.enqueue = lambda *keys: None
    if not any(parts_of(method, Queue)):
        return
    for each in (method, frozen):
        each(batch_at(case, 0), clock_at(0), "model").loss.backward()
    for p, q in zip(method.parameters(), frozen.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or q.grad is None or torch.equal(p.grad, q.grad)


# ---------------------------------------------------------------------------------------- batch norm


@every_case
@pytest.mark.parametrize("mode", ["global", "shuffle", "split:2", "none"])
def test_batch_norm(case: Case, mode: str) -> None:
    method = build(case)
    if mode in ("shuffle", "split:2") and not any(parts_of(method, Teacher)):
        with pytest.raises(ValueError, match="teacher"):
            set_batch_norm(method, mode)
        return
    method = set_batch_norm(method, mode)
    assert all(out.loss.isfinite() for out in train_step(method, optimizers_of(method), case, 0).values())
    assert any(parts_of(method, nn.modules.batchnorm._BatchNorm)) == (mode != "none")


# ------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", [case.method for case in PLAIN])
def test_wrong_views_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} takes the view"):
        build(Case(name, ("left", "right")))


WRONG = [
    ("moco", {"temperature": 0.0}, "method.temperature"),
    ("moco", {"momentum": 1.5}, "method.momentum"),
    ("simsiam", {"layers": 0}, "method.layers"),
    ("byol", {"momentum": -0.1}, "method.momentum"),
    ("ressl", {"student_temperature": 0.0}, "method.student_temperature"),
    ("ressl", {"info_nce_epochs": -1.0}, "method.info_nce_epochs"),
    ("sce", {"coefficient": 1.5}, "method.coefficient"),
    ("sce", {"positive_slot": "zero", "ceil_weight": 0.0}, "method.positive_slot"),
    ("rcl", {"levels": 0}, "method.levels"),
    ("rcl", {"prototypes": 1}, "method.prototypes"),
    ("rcl", {"sigma": 1.5}, "method.sigma"),
    ("rcl", {"held_above": 0.0}, "method.held_above"),
    ("temporal", {"transformations": ("random", "warp")}, "method.transformations"),
    ("multiview", {"synchronization": False, "flipping": False}, "method.flipping"),
]


@pytest.mark.parametrize(("name", "options", "field"), WRONG)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        MODULES[name].Config(**options)


def test_ressl_warms_up_with_info_nce() -> None:
    """Half an epoch of 4 steps: alpha = 0, 1/2, then 1, where InfoNCE is gone (Eq. 7)."""
    case = Case("ressl", options={"info_nce_epochs": 0.5})
    plain = Case("ressl")
    for step, alpha in enumerate((0.0, 0.5)):
        loss, log = build(case)(batch_at(case, step), clock_at(step), "model")
        assert log["alpha"] == alpha
        torch.testing.assert_close(loss, alpha * log["relation"] + (1 - alpha) * log["info_nce"])
        torch.testing.assert_close(log["relation"], build(plain)(batch_at(case, step), clock_at(step), "model").loss)
    loss, log = build(case)(batch_at(case, 2), clock_at(2), "model")
    assert "info_nce" not in log
    assert torch.equal(loss, build(plain)(batch_at(case, 2), clock_at(2), "model").loss)


@pytest.mark.parametrize("name", ["ressl", "sce"])
def test_crops_average_over_the_student(name: str) -> None:
    """Without batch norm the loss of two student views is the mean of the losses of each."""

    def loss(views: tuple[str, ...], batch: Mapping[str, Tensor]) -> Tensor:
        return set_batch_norm(build(Case(name, views)), "none")(batch, clock_at(0), "model").loss

    batch = batch_at(Case(name, CROPS), 0)
    apart = [loss(TWO, batch), loss(TWO, {**batch, "online": batch["local"]})]
    torch.testing.assert_close(loss(CROPS, batch), torch.stack(apart).mean())


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_symmetric_methods_do_not_know_which_view_is_which(name: str) -> None:
    batch = batch_at(Case(name), 0)
    swapped = {**batch, "online": batch["target"], "target": batch["online"]}
    losses = [build(Case(name))(each, clock_at(0), "model").loss for each in (batch, swapped)]
    torch.testing.assert_close(*losses)


def test_simsiam_keeps_the_predictors_rate() -> None:
    method = build(Case("simsiam"))
    groups: list[Any] = method.parameters_of("model")
    constant = [p for group in groups if group.get("constant") for p in group["params"]]
    assert {id(p) for p in constant} == {id(p) for p in method.get_submodule("predictor").parameters()}
    decayed: list[Any] = build(Case("simsiam", options={"fix_predictor_lr": False})).parameters_of("model")
    assert not any(group.get("constant") for group in decayed)


# ------------------------------------------------------------------------------------------- workers


def outcome(case: Case, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """Losses and gradients of each turn, and the state, after two steps on this rank's share of the same batches."""
    method = set_batch_norm(build(case), "none")
    if case.method == "artifacts":
        method.double()  # the history's bytes are then equal however the sums are split
    optimizers = optimizers_of(method)
    several = len(method.turns) > 1
    model: nn.Module = method
    if ranks > 1:
        model = DistributedDataParallel(method, broadcast_buffers=False, find_unused_parameters=several)
    share = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    found: dict[str, Tensor] = {}
    for turn, optimizer in optimizers.items():

        def keep(optimizer: Any, args: Any, kwargs: Any, turn: str = turn) -> None:
            names = {id(p): name for name, p in method.named_parameters()}
            for p in moved_by(optimizer):
                if p.grad is not None:
                    found[f"gradient of {names[id(p)]} in {turn}"] = p.grad.clone()

        optimizer.register_step_pre_hook(keep)
    for step in range(2 if several else 1):
        train_step(method, optimizers, case, step, model, share)
    return found | {name: value.detach().clone() for name, value in method.state_dict().items()}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save([outcome(case, rank, 2) for case in CASES], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.ray
def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    mp.spawn(work, args=(tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for case, first, second in zip(CASES, *ranks, strict=True):
        assert same(first, second), f"{case}: the ranks differ"
        for name, value in outcome(case).items():
            torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-5, msg=f"{case}: {name}")
