"""Recognizing transformations: the copies that the classifier sees, three turns kept apart, the networks' shapes."""

import itertools
import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods import backbones
from methods.backbones import Backbone
from methods.method import Clock, Facts, Step
from methods.parts import centred
from methods.transformations import (
    Config,
    Critic,
    Transformation,
    Transformations,
    critic_hinge,
    inpainter,
    inpainter_hinge,
    squared_error,
)
from methods.warp import cut

TINY = {"crop": 12, "patch": 8, "inpainter_width": 4, "inpainter_layers": 3, "critic_width": 4, "head": (16,)}
NETWORKS = {"critic": ("critic.",), "inpainter": ("inpainter.",), "model": ("backbone.", "head.")}
ALL: tuple[Transformation, ...] = ("rotation", "warp", "inpainting")
SUBSETS = [subset for n in (1, 2, 3) for subset in itertools.combinations(ALL, n)]
BATCH, SIDE = 8, 16
BALANCED = "critic.linear.bias"  # real and fake patches pull it alike, while all are within the hinge's margins


def build(seed: int = 0, side: int = SIDE, **options: Any) -> Transformations:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    backbone = Backbone(nn.Sequential(*layers, nn.Flatten()), 8, [0.5] * 3, [0.25] * 3, {"stem": "2"})
    return Transformations(Config(**{**TINY, **options}), backbone, Facts(100, None, {"image": ((3, side, side), 0)}))


def batch_at(step: int = 0, count: int = BATCH, side: int = SIDE) -> dict[str, Tensor]:
    """Smooth random images, so that patches differ less from one another than from noise."""
    generator = torch.Generator().manual_seed(step)
    small = torch.randint(0, 256, (count, 3, 4, 4), generator=generator).float()
    images = F.interpolate(small, size=side, mode="bilinear").byte()
    return {"image": images, "index": torch.arange(count) + count * step}


def clock_at(step: int = 0, epoch: int = 0) -> Clock:
    return Clock(step=step, total_steps=8, steps_per_epoch=4, epoch=epoch, seed=3)


def arguments(step: int = 0, **options: int) -> tuple[Tensor, Clock, Tensor]:
    batch = batch_at(step, **options)
    return batch["image"], clock_at(step), batch["index"]


def optimizers_of(method: Transformations) -> dict[str, torch.optim.Optimizer]:
    return {turn: torch.optim.Adam(method.parameters_of(turn), lr=0.01, betas=(0.5, 0.999)) for turn in method.turns}


def take_turn(
    method: Transformations, turn: str, optimizer: torch.optim.Optimizer, step: int = 0, call: nn.Module | None = None
) -> Step:
    """As the training loop does: the parameters of other turns require no gradient."""
    moving = {id(p) for p in method.parameters_of(turn)}
    for p in method.parameters():
        p.requires_grad_(id(p) in moving)
    out = (call or method)(batch_at(step), clock_at(step), turn)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    return out


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def of(turn: str, name: str) -> bool:
    return name.startswith(NETWORKS[turn])


# ---------------------------------------------------------------------------------- numbers by hand


def test_hinge_by_hand() -> None:
    """Real 2, -1, .5: 0, 2, .5 are missing to the margin 1, mean 2.5 / 3. Fake -3, 1, 0: 0, 2, 1 too much, mean 1.

    F wants the fake higher: -(-3 + 1 + 0) / 3 = 2 / 3.
    """
    real, fake = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([-3.0, 1.0, 0.0])
    assert critic_hinge(real, fake).item() == pytest.approx(2.5 / 3 + 1)
    assert inpainter_hinge(fake).item() == pytest.approx(2 / 3)


def test_squared_error_by_hand() -> None:
    """Two patches of one channel and 2 x 2 pixels, the first pixel left out: differences (9), 1, 2, 0 and (9), 0, 0, 3.

    Sums of squares 5 and 9, mean 7; over the 3 pixels that count, 7 / 3.
    """
    target = torch.zeros(2, 1, 2, 2)
    patches = torch.tensor([[9.0, 1.0, 2.0, 0.0], [9.0, 0.0, 0.0, 3.0]]).view(2, 1, 2, 2)
    kept = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert squared_error(patches, target, kept, "sum").item() == 7
    assert squared_error(patches, target, kept).item() == pytest.approx(7 / 3)
    assert squared_error(patches.expand(2, 3, 2, 2), target.expand(2, 3, 2, 2), kept).item() == pytest.approx(7 / 3)


def test_the_loss_of_the_inpainter_by_a_float64_loop() -> None:
    """L_inp,AE of the patches and outputs: -mean D(r) + 50 (border) + 50 (autoencoding) - cross entropy."""
    for reduction in ("mean", "sum"):
        method = build(reduction=reduction)
        images, clock, index = arguments()
        patches = deepcopy(method).patches(images, clock, index)
        r, e, a = (p.detach().double().tolist() for p in (patches.inpainted, patches.original, patches.autoencoded))  # type: ignore[union-attr]
        border, whole = [], []
        for b, c, y, x in itertools.product(range(BATCH), range(3), range(8), range(8)):
            whole.append((a[b][c][y][x] - e[b][c][y][x]) ** 2)
            if not (2 <= y < 6 and 2 <= x < 6):
                border.append((r[b][c][y][x] - e[b][c][y][x]) ** 2)
        assert len(border) == BATCH * 3 * 48
        each = BATCH if reduction == "sum" else None
        reference = deepcopy(method)
        fake = reference.critic.eval()(patches.inpainted).mean().item()
        copies, labels = reference.copies(images, clock, index, patches)
        entropy = F.cross_entropy(reference.classify(copies), labels).item()
        squares = 50 * math.fsum(border) / (each or len(border)) + 50 * math.fsum(whole) / (each or len(whole))
        loss = method(batch_at(), clock, "inpainter").loss.item()
        assert loss == pytest.approx(-fake + squares - entropy, rel=1e-5)


# --------------------------------------------------------------------------------------- the patches


@pytest.mark.parametrize("border", [1, 2, 3])
@pytest.mark.parametrize("noise", [1.0, 0.1])
def test_the_border_is_kept_and_the_centre_is_noise(border: int, noise: float) -> None:
    method = build(border=border, noise=noise)
    images, clock, index = arguments(count=200)
    patches = method.patches(images, clock, index)
    m = torch.zeros(8, 8)
    m[border : 8 - border, border : 8 - border] = 1
    assert torch.equal(method.mask, m)
    assert torch.equal(patches.original, centred(cut(images, patches.corner, 8)))
    kept = (m == 0).expand_as(patches.erased)
    assert torch.equal(patches.erased[kept], patches.original[kept])
    z = patches.erased[~kept].double()
    assert abs(z.mean().item()) < 5 * noise / math.sqrt(len(z))
    assert z.std().item() == pytest.approx(noise, rel=5 / math.sqrt(2 * len(z)))


def test_patches_lie_everywhere_with_equal_chance() -> None:
    """81 corners in views of 16 pixels, 8,100 patches: chi squared within 5 deviations of its 80 degrees."""
    method = build()
    corner = method.corner(clock_at(), torch.arange(8100), "patch", SIDE - 8)
    counts = (corner[:, 0] * 9 + corner[:, 1]).bincount(minlength=81).double()
    assert corner.min() == 0 and corner.max() == 8
    assert abs(((counts - 100) ** 2 / 100).sum().item() - 80) < 5 * math.sqrt(160)


def test_only_the_pasted_patch_changes() -> None:
    """Eq. 4.4, in a crop that is the whole view: F's output within the patch, the original to the bit outside."""
    method = build(crop=SIDE, transformations=("inpainting",))
    images, clock, index = arguments()
    patches = method.patches(images, clock, index)
    copies, labels = method.copies(images, clock, index, patches)
    plain, inpainted = copies.detach().split(BATCH)
    assert labels.tolist() == [0] * BATCH + [1] * BATCH
    carried = 0
    for k, (x, y) in enumerate(patches.corner.tolist()):
        inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        inside[y : y + 8, x : x + 8] = True
        original = images[k].float()
        assert torch.equal(inpainted[k][:, ~inside], original[:, ~inside])
        assert torch.equal(plain[k][:, ~inside], original[:, ~inside])
        filled, kept = ((p[k].detach() + 1) * 127.5 for p in (patches.inpainted, patches.autoencoded))  # type: ignore[index]
        assert torch.equal(inpainted[k][:, inside].view(3, 8, 8), filled)
        if not torch.equal(plain[k], original):
            assert torch.equal(plain[k][:, inside].view(3, 8, 8), kept)
            carried += 1
    assert 0 < carried < BATCH


def test_half_of_the_untransformed_carry_a_patch_and_turn_with_it() -> None:
    """2,000 draws: 1,000 within 5 deviations of sqrt(500); each step draws anew; turns are made of that very mix."""
    method = build(crop=SIDE).eval()
    images, index = batch_at(count=50)["image"].repeat(40, 1, 1, 1), torch.arange(2000)
    carry = []
    for step in range(2):
        copies, _ = method.transformed(images, clock_at(step), index)
        plain = copies[:2000]
        carry.append((plain != images).flatten(1).any(1))
        assert torch.equal(carry[-1], method.carries_autoencoded(clock_at(step), index))
        assert abs(int(carry[-1].sum()) - 1000) < 5 * math.sqrt(500)
        for k in (1, 2, 3):
            assert torch.equal(copies[2000 * k : 2000 * (k + 1)], plain.rot90(k, (2, 3)))
    assert abs(int((carry[0] == carry[1]).sum()) - 1000) < 5 * math.sqrt(500)


# ---------------------------------------------------------------------------------------- the copies


@pytest.mark.parametrize("small_rotation", [0.0, 12.6])
def test_rotation_turns_the_crop(small_rotation: float) -> None:
    method = build(transformations=("rotation",), small_rotation=small_rotation)
    images, clock, index = arguments(count=100)
    copies, labels = method.transformed(images, clock, index)
    assert copies.shape == (400, 3, 12, 12) and copies.dtype == torch.float32
    assert torch.equal(labels, torch.arange(4).repeat_interleave(100))
    plain = copies[:100]
    for k in (1, 2, 3):
        assert torch.equal(copies[100 * k : 100 * (k + 1)], torch.rot90(plain, k, (2, 3)))
    crops = cut(images, method.corner(clock, index, "crop", 4), 12).float()
    kept = (plain - crops).abs().flatten(1).amax(1) < 0.01
    assert 30 < int(kept.sum()) < 70 if small_rotation else torch.equal(plain, crops)


def test_small_rotations_are_within_their_angle() -> None:
    """On a ramp along x the slopes of a turned crop are cos(a) and -sin(a): half have a = 0, none is beyond 12.6."""
    method = build(side=24, transformations=("rotation",), small_rotation=12.6)
    ramp = (10 * torch.arange(24)).byte().expand(400, 3, 24, 24)
    copies, _ = method.transformed(ramp, clock_at(), torch.arange(400))
    inner = copies[:400, 0, 3:9, 3:9] / 10  # what reflection does not reach
    angle = torch.atan2(-inner.diff(dim=1).mean((1, 2)), inner.diff(dim=2).mean((1, 2))).rad2deg()
    still, moved = angle.abs() < 0.01, angle[angle.abs() >= 0.01]
    assert abs(int(still.sum()) - 200) < 50  # 5 deviations of sqrt(100)
    assert moved.abs().max() <= 12.61 and moved.min() < -11 and moved.max() > 11


def test_all_copies_of_an_image_are_of_one_crop() -> None:
    """Untransformed and inpainted, outside of the patch."""
    method = build(small_rotation=5.0).eval()
    images, clock, index = arguments()
    copies = method.transformed(images, clock, index)[0].unflatten(0, (6, BATCH))
    same = (copies[0] - copies[5]).abs().amax(1) < 1e-3
    assert same.flatten(1).float().mean(1).min() > 0.2


@pytest.mark.parametrize("points", ["grid", "random"])
def test_the_warp_reads_within_its_range(points: Any) -> None:
    """On ramps along x and y a warped pixel's value says where it was read. The grid's spline stays near its shifts of
    at most a tenth of the view, and does move."""
    method = build(side=32, crop=32, transformations=("warp",), warp_points=points)
    ramp = (8 * torch.arange(32)).byte()
    for images in (ramp.expand(50, 3, 32, 32), ramp[:, None].expand(50, 3, 32, 32)):
        plain, warped = method.transformed(images, clock_at(), torch.arange(50))[0].split(50)
        assert torch.equal(plain, images.float())
        moved = (warped - plain)[:, 0, 8:24, 8:24].abs() / 8  # pixels
        assert 0.5 < moved.mean() < 3.2
        assert moved.max() < (4.0 if points == "grid" else 32)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_every_subset(subset: tuple[Transformation, ...]) -> None:
    """Classes in the thesis' order whatever the order given; a step of every turn; accuracies in the log."""
    method = build(transformations=tuple(reversed(subset)))
    turned = ["rotated_90", "rotated_180", "rotated_270"] if "rotation" in subset else []
    others = [name for kind, name in (("warp", "warped"), ("inpainting", "inpainted")) if kind in subset]
    assert list(method.classes) == ["untransformed", *turned, *others]
    assert method.turns == (("critic", "inpainter", "model") if "inpainting" in subset else ("model",))
    start = copied(dict(method.named_parameters()))
    for turn, optimizer in optimizers_of(method).items():
        out = take_turn(method, turn, optimizer)
        assert out.loss.shape == () and out.loss.isfinite()
        assert all(v.shape == () and v.isfinite() and not v.requires_grad for v in out.log.values())
    assert set(out.log) == {"accuracy", *(f"accuracy.{name}" for name in method.classes)}
    shares = torch.stack([out.log[f"accuracy.{name}"] for name in method.classes])
    torch.testing.assert_close(out.log["accuracy"], shares.mean())
    still = {name for name, p in method.named_parameters() if torch.equal(p, start[name])}
    assert still <= {BALANCED}


def test_the_loss_is_eq_4_1() -> None:
    """Mean over N copies of B images, one class each; all in one forward, whose batch norm they share."""
    method = build()
    twin = deepcopy(method)
    copies, labels = twin.transformed(*arguments())
    assert copies.shape == (6 * BATCH, 3, 12, 12)
    rows = twin.head(twin.backbone.maps(copies)["stem"].flatten(1)).log_softmax(1).double().tolist()
    expected = -math.fsum(row[label] for row, label in zip(rows, labels.tolist(), strict=True)) / (6 * BATCH)
    step = method(batch_at(), clock_at(), "model")
    assert step.loss.item() == pytest.approx(expected, rel=1e-5)
    said = [row.index(max(row)) for row in rows]
    for k, name in enumerate(method.classes):
        right = [said[i] == k for i in range(BATCH * k, BATCH * (k + 1))]
        assert step.log[f"accuracy.{name}"].item() == sum(right) / BATCH


def test_copies_do_not_depend_on_the_batch_in_eval_mode() -> None:
    method = build().eval()
    images, clock, index = arguments()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    first, second = (
        method.transformed(images, clock, index)[0],
        method.transformed(images[order], clock, index[order])[0],
    )
    torch.testing.assert_close(first.unflatten(0, (6, BATCH))[:, order], second.unflatten(0, (6, BATCH)))


# ------------------------------------------------------------------------------------------ the turns


@pytest.mark.parametrize("turn", NETWORKS)
def test_a_turn_moves_its_own_networks_alone(turn: str) -> None:
    """Parameters, batch norm's running statistics and spectral norm's vectors: all of its own, none of another's.

    Constant: the backbone's mean and std, and the vectors of a layer with one output, which are exact from the start.
    """
    method = build()
    with torch.no_grad():
        method.get_parameter("critic.linear.bias").fill_(-1.5)  # beyond one margin: fake patches no longer pull it
    optimizer = optimizers_of(method)[turn]
    before = copied(method.state_dict())
    take_turn(method, turn, optimizer)
    still = {name for name, value in method.state_dict().items() if torch.equal(value, before[name])}
    constant = {
        "backbone.mean",
        "backbone.std",
        *(f"critic.linear.parametrizations.weight.0.{n}" for n in ("_u", "_v")),
    }
    assert still == constant | {name for name in before if not of(turn, name)}
    assert {name for name, p in method.named_parameters() if p.grad is not None} == {
        name for name, _ in method.named_parameters() if of(turn, name)
    }
    buffers = {name for name, _ in method.named_buffers()} & before.keys()
    assert {"critic": "_u", "inpainter": "running_mean", "model": "running_mean"}[turn] in {
        name.rpartition(".")[2] for name in buffers - still
    }


def test_turns_hold_every_parameter_once() -> None:
    method = build()
    held = [id(p) for turn in method.turns for p in method.parameters_of(turn)]
    assert sorted(held) == sorted(id(p) for p in method.parameters())


def test_the_classifiers_gradient_is_that_of_its_own_loss() -> None:
    """With gradients wanted everywhere: in its turn nothing reaches F or D, and what reaches C is that of the cross
    entropy of images which F's weights do not enter."""
    method, twin = build(), build()
    method(batch_at(), clock_at(), "model").loss.backward()
    copies, labels = twin.transformed(*arguments())
    assert not copies.requires_grad
    F.cross_entropy(twin.classify(copies.clone()), labels).backward()
    for (name, p), q in zip(method.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is not None) == of("model", name)
        assert p.grad is None or (q.grad is not None and torch.equal(p.grad, q.grad))


def test_the_inpainter_works_against_the_classifier() -> None:
    """F's gradient with the term -L_SSL is that without, minus that of the cross entropy; it comes by the pasted
    pixels, of autoencoded patches too."""
    plain, against, alone = build(adversarial=False), build(), build()
    plain(batch_at(), clock_at(), "inpainter").loss.backward()
    against(batch_at(), clock_at(), "inpainter").loss.backward()
    images, clock, index = arguments()
    patches = alone.patches(images, clock, index)
    assert patches.autoencoded is not None
    patches.inpainted.retain_grad()
    patches.autoencoded.retain_grad()
    copies, labels = alone.copies(images, clock, index, patches)
    F.cross_entropy(alone.classify(copies), labels).backward()
    for p, q, r in zip(
        plain.inpainter.parameters(), against.inpainter.parameters(), alone.inpainter.parameters(), strict=True
    ):
        assert p.grad is not None and q.grad is not None and r.grad is not None
        torch.testing.assert_close(q.grad, p.grad - r.grad, atol=1e-5, rtol=1e-4)
    assert patches.inpainted.grad is not None and patches.inpainted.grad.abs().sum() > 0
    assert patches.autoencoded.grad is not None
    reached = patches.autoencoded.grad.abs().flatten(1).sum(1) > 0
    assert 0 < int(reached.sum()) < BATCH  # of those that are pasted


def test_the_critic_sees_patches_alone() -> None:
    """Its loss is a function of the patches: those of other images with the same patches give the same."""
    method, twin = build(), build()
    images, clock, index = arguments()
    patches = deepcopy(method).patches(images, clock, index)
    other = 255 - images
    for k, (x, y) in enumerate(patches.corner.tolist()):
        other[k, :, y : y + 8, x : x + 8] = images[k, :, y : y + 8, x : x + 8]
    assert not torch.equal(other, images)
    first = method({"image": images, "index": index}, clock, "critic").loss
    assert torch.equal(first, twin({"image": other, "index": index}, clock, "critic").loss)


def test_a_frozen_inpainter() -> None:
    """Table 4.1 d: F and D for the first epochs, without the classifier; then the classifier alone."""
    method = build(inpainter_epochs=2)
    clocks = [Clock(4 * epoch, 16, 4, epoch, 3) for epoch in range(4)]
    assert [method.turns_at(clock) for clock in clocks] == [("critic", "inpainter")] * 2 + [("model",)] * 2
    with pytest.raises(
        ValueError, match=r"method\.inpainter_epochs 2 leave none to the classifier: give more --epochs"
    ):
        method.turns_at(Clock(0, 8, 4, 0, 3))
    out = method(batch_at(), clock_at(), "inpainter")
    assert "classifier" not in out.log
    out.loss.backward()
    assert all(p.grad is None for p in method.parameters_of("model"))
    assert build().turns_at(clock_at()) == ("critic", "inpainter", "model")


def test_ablations_leave_their_terms_out() -> None:
    """Table 4.1 e and f."""
    log = build().forward(batch_at(), clock_at(), "inpainter").log
    assert set(log) == {"gan", "border", "autoencoding", "classifier"}
    assert set(build(adversarial=False)(batch_at(), clock_at(), "inpainter").log) == {"gan", "border", "autoencoding"}
    method = build(autoencoded_patches=False, crop=SIDE)
    loss, log = method(batch_at(), clock_at(), "inpainter")
    assert set(log) == {"gan", "border", "classifier"}
    torch.testing.assert_close(loss, log["gan"] + 50 * log["border"] - log["classifier"])
    copies, _ = method.transformed(*arguments())
    assert torch.equal(copies[:BATCH], batch_at()["image"].float())


def test_fifteen_steps_of_all_turns_lower_what_they_should() -> None:
    """On one batch, F learns to keep patches, D to tell them, C to tell the copies."""
    method = build(adversarial=False)
    optimizers = optimizers_of(method)
    logs = []
    for _ in range(15):
        log: dict[str, Tensor] = {}
        for turn, optimizer in optimizers.items():
            out = take_turn(method, turn, optimizer)
            log |= {turn: out.loss.detach(), **out.log}
        logs.append(log)
    assert logs[-1]["autoencoding"] < 0.8 * logs[0]["autoencoding"]
    assert logs[-1]["model"] < 0.6 * logs[0]["model"]


# ------------------------------------------------------------------------------------------- contract


def test_a_state_dict_resumes_to_the_bit() -> None:
    first = build()
    optimizers = optimizers_of(first)
    for step in range(2):
        for turn, optimizer in optimizers.items():
            take_turn(first, turn, optimizer, step)
    state, momenta = deepcopy(first.state_dict()), {turn: deepcopy(o.state_dict()) for turn, o in optimizers.items()}
    second = build(seed=1)
    second.load_state_dict(state)
    resumed = optimizers_of(second)
    for turn, optimizer in resumed.items():
        optimizer.load_state_dict(momenta[turn])
    for method, each in ((first, optimizers), (second, resumed)):
        for turn, optimizer in each.items():
            take_turn(method, turn, optimizer, 2)
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not any(name.startswith("warp.") or name == "mask" for name in a)  # functions of the configuration


@pytest.mark.parametrize("turn", NETWORKS)
def test_no_draw_from_the_process(turn: str) -> None:
    method = build(small_rotation=5.0, warp_points="random")
    before = torch.get_rng_state()
    method(batch_at(), clock_at(), turn).loss.backward()
    method.pictures(batch_at(), clock_at())
    method.task(batch_at(), clock_at())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("turn", NETWORKS)
@pytest.mark.parametrize("points", ["grid", "random"])
def test_bf16_autocast(turn: str, points: Any) -> None:
    plain, mixed = (build(warp_points=points, small_rotation=5.0) for _ in range(2))
    expected = plain(batch_at(), clock_at(), turn).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mixed(batch_at(), clock_at(), turn)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, expected, rtol=0.02, atol=0.02)
    grads = [p.grad for p in mixed.parameters_of(turn)]
    assert all(g is not None and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("training", [True, False])
def test_pictures_and_task_move_no_state(training: bool) -> None:
    method = build().train(training)
    before = copied(method.state_dict())
    pictures = method.pictures(batch_at(), clock_at())
    shapes = {name: (images.dtype, tuple(images.shape)) for name, images in pictures.items()}
    assert shapes == {"transformed": (torch.uint8, (48, 3, 12, 12)), "patches": (torch.uint8, (32, 3, 8, 8))}
    original, erased, _, _ = pictures["patches"].split(8)
    assert torch.equal(original[:, :, :2], erased[:, :, :2]) and not torch.equal(original, erased)
    found = method.task(batch_at(), clock_at())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(module.training == training for module in method.modules())
    method.eval()
    copies, labels = method.transformed(*arguments())
    expected = torch.zeros(6, 6)
    for label, said in zip(labels.tolist(), method.classify(copies).argmax(1).tolist(), strict=True):
        expected[label, said] += 1 / BATCH
    torch.testing.assert_close(found["confusion"], expected)
    torch.testing.assert_close(found["accuracy"], expected.diagonal().mean())
    assert found["accuracy.warped"] == found["confusion"][4, 4]


def told_apart(method: Transformations, said: Any) -> dict[str, float]:
    """`task` where images with these properties (B,) are said to be inpainted, and all others untransformed."""

    def classify(images: Tensor) -> Tensor:
        inpainted = said(images).float()[:, None]
        return torch.cat([1 - inpainted, torch.zeros(len(images), 4), inpainted], dim=1)

    method.classify = classify  # type: ignore[method-assign]
    found = method.task(batch_at(), clock_at())
    return {name: found[name].item() for name in ("inpainted_original", "inpainted_autoencoded", "told_apart")}


def test_whether_an_autoencoded_patch_alone_gives_it_away() -> None:
    """Fractions of grey levels are where the patch is: a classifier that looks for them tells all, one that says the
    same of all tells none."""
    method = build().eval()
    assert told_apart(method, lambda images: (images != images.round()).flatten(1).any(1)) == {
        "inpainted_original": 0.0,
        "inpainted_autoencoded": 1.0,
        "told_apart": 1.0,
    }
    assert told_apart(method, lambda images: torch.ones(len(images)))["told_apart"] == 0.5
    without = build(autoencoded_patches=False).task(batch_at(), clock_at())
    assert "told_apart" not in without and without["confusion"].shape == (6, 6)


def test_score_is_the_log_odds_of_being_untransformed() -> None:
    method = build().eval()
    crops = batch_at()["image"][:, :, :12, :12]
    p = method.classify(crops).softmax(1)[:, 0]
    torch.testing.assert_close(method.score(crops), (p / (1 - p)).log(), atol=1e-5, rtol=1e-5)
    assert method.pixels(80) == 12


def test_pictures_of_few_images_and_of_rotation_alone() -> None:
    assert build().pictures(batch_at(count=3), clock_at())["transformed"].shape == (18, 3, 12, 12)
    rotation = build(transformations=("rotation",)).pictures(batch_at(), clock_at())
    assert {name: len(images) for name, images in rotation.items()} == {"transformed": 32}
    bare = build(autoencoded_patches=False).pictures(batch_at(), clock_at())
    assert len(bare["patches"]) == 24


# ------------------------------------------------------------------------------------------- networks


def normalized(critic: Critic) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each layer's own weight and what spectral norm makes of it, as matrices."""
    layers: list[Any] = [layer for layer in (*critic.features, critic.linear) if hasattr(layer, "parametrizations")]
    pairs = [(layer.parametrizations.weight.original, layer.weight) for layer in layers]
    return [(own.detach().flatten(1).numpy(), made.detach().flatten(1).numpy()) for own, made in pairs]


def test_spectral_norm_is_numpys_largest_singular_value() -> None:
    torch.manual_seed(0)
    critic = Critic(3, 8, 3)
    with torch.no_grad():
        for p in critic.parameters():
            p.mul_(3)
        for _ in range(200):  # a power iteration each
            critic(torch.zeros(2, 3, 8, 8))
    critic.eval()
    pairs = normalized(critic)
    assert len(pairs) == 6
    for own, made in pairs:
        largest = np.linalg.svd(own.astype(np.float64), compute_uv=False)[0]
        np.testing.assert_allclose(made, own / largest, rtol=1e-3, atol=1e-5)


def test_networks_are_those_of_the_code() -> None:
    """F: 3x3 convolution of 48, 4x4 of stride 2 of 96, 192, 384, back, 3x3; D: 3x3 and 4x4 of stride 2 of 64 and 128,
    3x3 of 256, sum, linear; six classes from conv5's 4 x 4 x 256 by 4096 and 4096."""
    with torch.device("meta"):
        network = backbones.build("alexnet", image=(3, 80, 80), mean=[0.5] * 3, std=[0.25] * 3)
        method = Transformations(Config(), network, Facts(100, None, {"image": ((3, 80, 80), 0)}))
    convolutions = [m for m in method.inpainter if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    widths = [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in convolutions]
    assert widths == [(48, 3, 1), (96, 4, 2), (192, 4, 2), (384, 4, 2), (192, 4, 2), (96, 4, 2), (48, 4, 2), (3, 3, 1)]
    levels = [
        (m.out_channels, m.kernel_size[0], m.stride[0]) for m in method.critic.features if isinstance(m, nn.Conv2d)
    ]
    assert levels == [(64, 3, 1), (64, 4, 2), (128, 3, 1), (128, 4, 2), (256, 3, 1)]
    assert [tuple(m.weight.shape) for m in method.head if isinstance(m, nn.Linear)] == [
        (4096, 4096), (4096, 4096), (6, 4096)
    ]  # fmt: skip
    assert method.inpainter(torch.empty(2, 3, 48, 48, device="meta")).shape == (2, 3, 48, 48)
    assert [m.weight.shape[0] for m in inpainter(3, 48, 5) if isinstance(m, nn.Conv2d)][:-1] == [48, 96, 192, 384, 512]
    norms = [m for m in (*method.inpainter, *method.head) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.025)} and len(norms) == 8


@pytest.mark.parametrize("head", [(), (16,)])
def test_heads(head: tuple[int, ...]) -> None:
    """Without hidden layers on the features, otherwise on the last map, or on the features where there is none."""
    method = build(head=head)
    assert [m.in_features for m in method.head if isinstance(m, nn.Linear)] == ([8 * 6 * 6, 16] if head else [8])
    torch.manual_seed(0)
    bare = Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, [0.5] * 3, [0.25] * 3)
    plain = Transformations(Config(**{**TINY, "head": head}), bare, Facts(100, None, {"image": ((3, 16, 16), 0)}))  # type: ignore[arg-type]
    assert next(m.in_features for m in plain.head if isinstance(m, nn.Linear)) == 3
    assert plain(batch_at(), clock_at(), "model").loss.isfinite()


def test_packing_judges_neighbours_together() -> None:
    torch.manual_seed(0)
    critic = Critic(3, 4, 2, packing=2).eval()
    patches = torch.randn(6, 3, 8, 8)
    pairs = torch.stack([critic(patches[k : k + 2])[0] for k in (0, 2, 4)])
    torch.testing.assert_close(critic(patches), pairs)
    assert not torch.allclose(critic(patches.roll(1, 0)), pairs)
    method = build(packing=2)
    assert method(batch_at(), clock_at(), "critic").loss.isfinite()
    with pytest.raises(ValueError, match=r"method\.packing 2 does not divide a worker's batch of 7"):
        method(batch_at(count=7), clock_at(), "critic")


# -------------------------------------------------------------------------------------------- options

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"transformations": ()}, r"method\.transformations are any of"),
    ({"transformations": ("rotation", "shear")}, r"method\.transformations are any of"),
    ({"transformations": ("warp", "warp")}, r"method\.transformations holds each once"),
    ({"patch": 72}, r"method\.patch is at most method\.crop, 64: give a smaller patch, or a larger crop and view"),
    ({"patch": 44}, r"method\.patch is a multiple of 8.*method\.inpainter_layers; got 44"),
    ({"border": 0}, r"method\.border is at least 1"),
    ({"border": 24}, r"method\.border .* below half of method\.patch"),
    ({"small_rotation": -1.0}, r"method\.small_rotation"),
    ({"warp_range": 0.0}, r"method\.warp_range"),
    ({"warp_side": 1}, r"method\.warp_side"),
    ({"warp_order": 4}, r"method\.warp_order"),
    ({"packing": 0}, r"method\.packing is at least 1"),
    ({"noise": -0.1}, r"method\.noise is 0 or more"),
    ({"border_weight": -1.0}, r"method\.border_weight is 0 or more"),
    ({"inpainter_layers": 0}, r"method\.inpainter_layers is at least 1"),
    ({"critic_layers": 7}, r"method\.critic_layers is so small that it halves a patch of 48 pixels 6 times"),
    ({"reduction": "max"}, r"method\.reduction is one of mean, sum"),
    ({"warp_points": "spiral"}, r"method\.warp_points is one of grid, random"),
    ({"warp_padding": "zeros"}, r"method\.warp_padding is one of"),
    ({"head": (0,)}, r"method\.head"),
    ({"transformations": ("warp",), "inpainter_epochs": 1}, r"method\.inpainter_epochs is 0 where nothing is"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_patches_matter_to_inpainting_alone() -> None:
    assert Config(transformations=("rotation",), crop=32).patch == 48


def test_views_must_fit() -> None:
    with pytest.raises(ValueError, match=r"method\.crop 12 is larger than the view of 10 pixels: .*views\.image\.size"):
        build(side=10)
    with pytest.raises(ValueError, match=r"^transformations takes the view image, got left"):
        Transformations(Config(), build().backbone, Facts(10, None, {"left": ((3, 80, 80), 0)}))
