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
from methods.backbones import Backbone
from methods.method import Clock, Facts, Method, Step
from methods.parts import Queue, Teacher, draw, set_batch_norm

MODULES = {
    name: module
    for _, name, _ in pkgutil.iter_modules(methods.__path__)
    if hasattr(module := importlib.import_module(f"methods.{name}"), "METHOD")
}
TINY = {"queue": 20, "hidden": 16, "dim": 8, "predictor_hidden": 12}  # fields that exist; 20 is no multiple of 8
TWO, CROPS = ("online", "target"), ("online", "target", "local")
SIZES = {"local": 6}  # other views: 8 x 8
BATCH, CLASSES = 8, 3


class Case(NamedTuple):
    """A method with options; `views` are what the data offers it."""

    method: str
    views: tuple[str, ...] = TWO
    options: Mapping[str, Any] = {}

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{k}={v}" for k, v in self.options.items()), *self.views[2:]])


PLAIN = [Case(name, ("image",) if name == "supervised" else TWO) for name in MODULES]
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
]
CASES = PLAIN + VARIANTS
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def build(case: Case, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    backbone = Backbone(nn.Sequential(*layers, nn.Flatten()), 8, [0.5] * 3, [0.25] * 3)
    module = MODULES[case.method]
    fields = {field.name for field in dataclasses.fields(module.Config)}
    config = dataclasses.replace(module.Config(), **{k: v for k, v in TINY.items() if k in fields}, **case.options)
    views = {view: ((3, SIZES.get(view, 8), SIZES.get(view, 8)), 0) for view in case.views}
    return module.METHOD(config, backbone, Facts(100, CLASSES, views))


def batch_at(case: Case, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)

    def images(size: int) -> Tensor:
        return torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, generator=generator)

    index = torch.arange(BATCH) + BATCH * step
    return {view: images(SIZES.get(view, 8)) for view in case.views} | {"index": index, "label": index % CLASSES}


def clock_at(step: int) -> Clock:
    return Clock(step=step, total_steps=4, steps_per_epoch=4, epoch=0, seed=3)


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    return torch.optim.SGD(method.parameters_of("model"), lr=0.1, momentum=0.9)


def train_step(method: Method, optimizer: torch.optim.Optimizer, case: Case, step: int) -> Step:
    optimizer.zero_grad()
    out = method(batch_at(case, step), clock_at(step), "model")
    out.loss.backward()
    optimizer.step()
    method.after_step(clock_at(step))
    return out


def parts_of(method: Method, kind: type) -> Iterator[Any]:
    return (module for module in method.modules() if isinstance(module, kind))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------ training


@every_case
def test_three_steps(case: Case) -> None:
    method = build(case)
    optimizer = optimizer_of(method)
    start = {name: p.clone() for name, p in method.named_parameters()}
    for step in range(3):
        out = train_step(method, optimizer, case, step)
        assert out.loss.shape == ()
        assert out.loss.dtype == torch.float32
        assert out.loss.isfinite()
        for name, value in out.log.items():
            assert value.shape == (), name
            assert not value.requires_grad, name
            assert value.isfinite(), name
    for name, p in method.named_parameters():
        if p.requires_grad:
            assert not torch.equal(p, start[name]), f"{name} did not move"


@every_case
def test_optimizer_groups_hold_every_parameter_once(case: Case) -> None:
    method = build(case)
    held = [id(p) for group in optimizer_of(method).param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in method.parameters() if p.requires_grad)


@every_case
def test_a_state_dict_resumes_to_the_bit(case: Case) -> None:
    first = build(case)
    optimizer = optimizer_of(first)
    for step in range(2):
        train_step(first, optimizer, case, step)
    state, momentum = deepcopy(first.state_dict()), deepcopy(optimizer.state_dict())
    second = build(case, seed=1)
    second.load_state_dict(state)
    resumed = optimizer_of(second)
    resumed.load_state_dict(momentum)
    losses = [train_step(m, o, case, 2).loss for m, o in ((first, optimizer), (second, resumed))]
    assert torch.equal(*losses)
    assert same(first.state_dict(), second.state_dict())


@every_case
def test_no_draw_from_the_process(case: Case) -> None:
    method = build(case)
    optimizer = optimizer_of(method)
    before = torch.get_rng_state()
    train_step(method, optimizer, case, 0)
    assert torch.equal(torch.get_rng_state(), before)


@every_case
def test_bf16_autocast(case: Case) -> None:
    plain, mixed = build(case), build(case)
    expected = plain(batch_at(case, 0), clock_at(0), "model").loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mixed(batch_at(case, 0), clock_at(0), "model")
    out.loss.backward()
    mixed.after_step(clock_at(0))
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in mixed.parameters() if p.grad is not None)


# ---------------------------------------------------------------------------------- teacher and queue


@every_case
def test_the_teacher_follows_and_gets_no_gradient(case: Case) -> None:
    method = build(case)
    optimizer = optimizer_of(method)
    for step in range(2):
        before = [[p.clone() for p in teacher.parameters()] for teacher in parts_of(method, Teacher)]
        out = train_step(method, optimizer, case, step)
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
        assert stored == BATCH * (2 if case.options.get("symmetric") else 1)
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
        queue.enqueue = lambda keys: None
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
    assert train_step(method, optimizer_of(method), case, 0).loss.isfinite()
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
    """Gradients, parameters and buffers after one step on this rank's share of the same global batch."""
    method = set_batch_norm(build(case), "none")
    share = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    batch = {name: column[share] for name, column in batch_at(case, 0).items()}
    model = DistributedDataParallel(method, broadcast_buffers=False) if ranks > 1 else method
    optimizer = optimizer_of(method)
    model(batch, clock_at(0), "model").loss.backward()
    optimizer.step()
    method.after_step(clock_at(0))
    gradients = {f"gradient of {name}": p.grad for name, p in method.named_parameters() if p.grad is not None}
    return gradients | {name: value.detach() for name, value in method.state_dict().items()}


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
