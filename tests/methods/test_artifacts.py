"""Autoencoder and artifacts: architecture, receptive field, damage, repair, history, losses; turns, ranks, resume."""

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods import artifacts, autoencoder, backbones
from methods.artifacts import (
    Artifacts,
    History,
    RepairBlock,
    Verdict,
    class_loss,
    damage,
    grey_levels,
    kept_error,
    mask_loss,
)
from methods.autoencoder import Autoencoder, reconstruction_error
from methods.backbones import Backbone
from methods.method import Clock, Facts, Method, Step
from methods.parts import centred, draw, to_uint8

BATCH, SIZE = 8, 16
SMALL = autoencoder.Config(widths=(4, 6, 8))  # 16 pixels -> a code of 8 x 4 x 4
TINY = artifacts.Config(autoencoder=SMALL, hidden=12, history=10)


def facts(size: int = SIZE, channels: int = 3) -> Facts:
    return Facts(100, None, {"image": ((channels, size, size), 0)})


def small_backbone() -> Backbone:
    def layer(fan_in: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(fan_in, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())

    layers = OrderedDict[str, nn.Module](conv1=layer(3, 6), conv2=layer(6, 8))
    network = nn.Sequential(OrderedDict(**layers, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    return Backbone(network, 8, [0.45] * 3, [0.25] * 3, {name: name for name in layers})


def build(config: artifacts.Config = TINY, seed: int = 0) -> Artifacts:
    """With an autoencoder whose batch norm has statistics and scales of its own, as a trained one's."""
    torch.manual_seed(seed)
    method = Artifacts(config, small_backbone(), facts())
    for m in method.autoencoder.modules():
        if isinstance(m, nn.BatchNorm2d):
            for values, low in ((m.running_mean, -0.2), (m.running_var, 0.6), (m.weight, 0.7), (m.bias, -0.2)):
                assert values is not None
                nn.init.uniform_(values, low, low + 0.6)
    return method


def varied(**options: Any) -> artifacts.Config:
    return dataclasses.replace(TINY, **options)


def batch_at(step: int) -> dict[str, Tensor]:
    """Smooth images: coarse noise, enlarged."""
    coarse = torch.rand(BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    images = F.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    return {"image": (images * 255).byte(), "index": torch.arange(BATCH) + BATCH * step}


def clock_at(step: int) -> Clock:
    return Clock(step=step, total_steps=9, steps_per_epoch=3, epoch=step // 3, seed=3)


class Trainer:
    """As pipelines.loop: during a turn its parameters alone require a gradient."""

    def __init__(self, method: Method, model: nn.Module | None = None, rate: float = 1e-3) -> None:
        self.method, self.model = method, model or method
        self.optimizers = {t: torch.optim.Adam(method.parameters_of(t), rate, (0.5, 0.999)) for t in method.turns}

    def turn(self, turn: str, batch: Mapping[str, Tensor], clock: Clock) -> Step:
        for other, optimizer in self.optimizers.items():
            for p in optimizer.param_groups[0]["params"]:
                p.requires_grad_(other == turn)
        self.optimizers[turn].zero_grad(set_to_none=True)
        out: Step = self.model(batch, clock, turn)
        out.loss.backward()
        self.optimizers[turn].step()
        return out

    def step(self, step: int) -> dict[str, Step]:
        return {turn: self.turn(turn, batch_at(step), clock_at(step)) for turn in self.method.turns}


def copied(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def changed(before: Mapping[str, Tensor], method: nn.Module) -> set[str]:
    return {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}


# -------------------------------------------------------------------------------------- autoencoder


def test_the_architecture_is_the_chapters() -> None:
    """Section 3.3.4: (32)3c1-(64)2c2-(128)2c2-(256)2c2-(512)2c2 and (256)3rc2-(128)3rc2-(64)3rc2-(32)3rc2-(3)3c1."""
    method = Autoencoder(autoencoder.Config(), None, facts(96))
    convs = [m for m in method.modules() if isinstance(m, nn.Conv2d)]
    found = [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in convs]
    encoder, decoder = [(32, 3, 1), (64, 2, 2), (128, 2, 2), (256, 2, 2), (512, 2, 2)], (256, 128, 64, 32, 3)
    assert found == encoder + [(width, 3, 1) for width in decoder]
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [32, 64, 128, 256, 512, 256, 128, 64, 32]
    assert {(m.momentum, m.eps) for m in norms} == {(0.025, 1e-3)}
    slopes = {m.negative_slope for m in method.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1} and sum(isinstance(m, nn.LeakyReLU) for m in method.modules()) == 9
    assert method.code_shape == (512, 6, 6) and method.backbone.dim == 512
    assert list(method.backbone.layers) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    for m in convs:  # variance 2 / mean of fan-in and fan-out
        fans = m.kernel_size[0] ** 2 * (m.in_channels + m.out_channels) / 2
        assert m.weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.2 if m.weight.numel() < 1000 else 0.05)


def reach(method: Autoencoder, row: int, column: int) -> tuple[range, range]:
    """Rows and columns of the input that an entry of the code has a gradient by."""
    x = (255 * torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    method.encode(x)[0, :, row, column].sum().backward()
    assert x.grad is not None
    rows, columns = (x.grad[0].abs().sum((0, axis)).nonzero().flatten().tolist() for axis in (2, 1))
    assert len(rows) == rows[-1] - rows[0] + 1 and len(columns) == columns[-1] - columns[0] + 1
    return range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1)


@pytest.mark.parametrize(("kernel", "pixels"), [(2, 18), (3, 33)])
def test_an_entry_of_the_code_sees_a_patch(kernel: int, pixels: int) -> None:
    """Figure 3.4 and Table 3.1 (d): 18 x 18 pixels, 33 x 33 with 3x3 filters. Entries lie 16 apart: neighbours share
    2 pixels, and 17 (the text's 15 is what the patch gains)."""
    method = Autoencoder(autoencoder.Config(widths=(2, 3, 2, 3, 4), kernel=kernel), None, facts(96)).double().eval()
    assert method.code_shape == (4, 6, 6)
    rows, columns = reach(method, 2, 3)
    assert len(rows) == len(columns) == pixels
    _, neighbours = reach(method, 2, 4)
    assert neighbours.start - columns.start == 16
    assert len(set(columns) & set(neighbours)) == pixels - 16
    if kernel == 2:
        assert (rows, columns) == (range(31, 49), range(47, 65))  # the cell's own 16 and one a side


def test_reconstruction_error_by_hand() -> None:
    """Pixels 0 and 255 are -1 and 1: made (0, 0) misses both by 1; made (-1, 0) misses by 0 and 1. Mean 3/4."""
    images = torch.tensor([[[[0, 255]]], [[[0, 255]]]], dtype=torch.uint8)
    made = torch.tensor([[[[0.0, 0.0]]], [[[-1.0, 0.0]]]])
    assert reconstruction_error(made, images).item() == 0.75


def test_the_autoencoders_loss_and_code() -> None:
    torch.manual_seed(0)
    method = Autoencoder(dataclasses.replace(SMALL, weight=30.0), None, facts())
    batch = batch_at(0)
    seen: list[Tensor] = []
    method.backbone.network.get_submodule("conv1").register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0])
    )
    loss, log = method(batch, clock_at(0), "model")
    torch.testing.assert_close(seen[0], centred(batch["image"]))  # between -1 and 1
    assert loss.item() == pytest.approx(30 * log["mse"].item())
    method.eval()
    code = method.encode(batch["image"])
    maps = method.backbone.maps(batch["image"])
    assert code.shape == (BATCH, *method.code_shape) and torch.equal(code, maps["conv3"])
    torch.testing.assert_close(maps["features"], code.mean((2, 3)))
    made = method.decode(code)
    assert made.shape == batch["image"].shape and made.abs().max() <= 1
    torch.testing.assert_close(
        reconstruction_error(made, batch["image"]), (made - centred(batch["image"])).square().mean()
    )


def test_the_autoencoder_learns() -> None:
    """Beyond the mean image of the batch, in 80 steps."""
    torch.manual_seed(0)
    method, batch = Autoencoder(autoencoder.Config(widths=(8, 12, 16)), None, facts()), batch_at(0)
    optimizer = torch.optim.Adam(method.parameters_of("model"), 5e-3)
    for step in range(80):
        optimizer.zero_grad()
        loss, log = method(batch, clock_at(step), "model")
        loss.backward()
        optimizer.step()
    x = centred(batch["image"])
    assert log["mse"] < 0.3 * (x - x.mean(0)).square().mean()


@pytest.mark.parametrize("size", [(90, 96), (96, 100), (8, 8)])
def test_sizes_that_cannot_be_halved_are_refused(size: tuple[int, int]) -> None:
    views = {"image": ((3, *size), 0)}
    with pytest.raises(ValueError, match=rf"halves an image 4 times, and {size[0]} x {size[1]} .* method\.widths"):
        Autoencoder(autoencoder.Config(), None, Facts(9, None, views))


@pytest.mark.parametrize(
    "wrong", [{"widths": (8,)}, {"widths": (8, 0)}, {"kernel": 4}, {"slope": 1.0}, {"weight": 0.0}], ids=str
)
def test_wrong_options_of_the_autoencoder(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"method\.{next(iter(wrong))} "):
        autoencoder.Config(**wrong)


# ------------------------------------------------------------------------------------------- damage


def naive_damage(code: Tensor, mask: Tensor, kernel: int) -> Tensor:
    out = code.clone()
    reach = kernel // 2
    batch, channels, m, n = code.shape
    for b in range(batch):
        for i in range(m):
            for j in range(n):
                if mask[b, 0, i, j] == 0:
                    rows, columns = (
                        range(max(0, i - reach), min(m, i + reach + 1)),
                        range(max(0, j - reach), min(n, j + reach + 1)),
                    )
                    for c in range(channels):
                        values = [code[b, c, k, q].item() for k in rows for q in columns]
                        out[b, c, i, j] = sum(values) / len(values)
    return out


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 4),
    n=st.integers(2, 5),
    kernel=st.sampled_from([3, 5, 9]),
    seed=st.integers(0, 99),
    p=st.floats(0, 1),
)
def test_damage_is_its_naive_twin(m: int, n: int, kernel: int, seed: int, p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    code = torch.randn(2, 3, m, n, generator=generator, dtype=torch.float64)
    mask = (torch.rand(2, 1, m, n, generator=generator) >= p).double()
    torch.testing.assert_close(
        damage(code, mask, kernel=kernel), naive_damage(code, mask, kernel), rtol=1e-12, atol=1e-12
    )


def test_damage_by_hand() -> None:
    """A row 3, 6, 12 whose last two are dropped: the mean of 3, 6, 12 is 7, at the border that of 6, 12 is 9."""
    code = torch.tensor([[[[3.0, 6.0, 12.0]]]])
    assert damage(code, torch.tensor([[[[1.0, 0.0, 0.0]]]])).flatten().tolist() == [3, 7, 9]


def test_noise_fills_dropped_entries_alone() -> None:
    """With the mean and deviation of each channel over its own code."""
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(2, 3, 40, 40, generator=generator) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1) + 2
    mask = (torch.rand(2, 1, 40, 40, generator=generator) > 0.5).float()
    out = damage(code, mask, noise=torch.randn(2, 3 * 40 * 40, generator=generator))
    kept = mask.bool().expand_as(code)
    assert torch.equal(out[kept], code[kept]) and not (out == code)[~kept].any()
    for b in range(2):
        for c in range(3):
            filling, original = out[b, c][~kept[b, c]], code[b, c]
            assert (filling.mean() - original.mean()).abs() < 5 * original.std() / len(filling) ** 0.5
            assert filling.std() == pytest.approx(original.std().item(), rel=0.15)


def test_the_mask_drops_at_its_rate() -> None:
    """Over 200 steps of 8 codes of 16 entries, within 5 standard errors; another mask each step, whatever the batch."""
    for rate in (0.1, 0.7):
        method = build(varied(drop_rate=rate))
        masks = torch.cat([method.mask(torch.arange(8), clock_at(step)) for step in range(200)])
        assert masks.shape == (1600, 1, 4, 4) and set(masks.unique().tolist()) == {0, 1}
        error = math.sqrt(rate * (1 - rate) / masks.numel())
        assert abs(1 - masks.mean().item() - rate) < 5 * error
        assert not torch.equal(masks[:8], masks[8:16])
        assert torch.equal(method.mask(torch.arange(3, 5), clock_at(1)), masks[11:13])


# ------------------------------------------------------------------------------------------- repair


@pytest.mark.parametrize("gated", [True, False])
def test_a_repair_block_changes_dropped_entries(gated: bool) -> None:
    torch.manual_seed(0)
    block, x = RepairBlock(5, 0.2, gated=gated), torch.randn(2, 5, 8, 8)
    mask = (torch.rand(2, 1, 4, 4) > 0.5).float()
    out = block(x, mask)
    near = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)  # each entry is 2 x 2 pixels there
    kept = near.bool().expand_as(x)
    assert torch.equal(out[kept], x[kept]) == gated
    assert (out != x)[~kept].all()
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convs] == [(6, 5, (3, 3)), (5, 5, (3, 3))]
    first, normed, active, last = block.residual
    residual = last(active(normed(first(torch.cat([x, near], 1)))))
    torch.testing.assert_close(out, x + ((1 - near) if gated else 1) * residual)


def test_grey_levels() -> None:
    images = torch.linspace(-1, 1, 4001).view(1, 1, 1, -1).requires_grad_()
    levels = grey_levels(images)
    assert torch.equal(levels, levels.round()) and torch.equal(levels.byte(), to_uint8(images))
    assert (levels.min(), levels.max()) == (0, 255)
    levels.sum().backward()
    assert images.grad is not None and (images.grad == 127.5).all()
    assert torch.equal(grey_levels(centred(torch.arange(256).byte())), torch.arange(256.0))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("options", [{}, {"repair": "local"}, {"fill": "noise"}], ids=str)
def test_what_is_kept_whole_is_not_touched(options: dict[str, Any], bf16: bool) -> None:
    """With nothing dropped, the corrupt image is the autoencoded one, to the bit."""
    method = build(varied(**options))
    batch, ones = batch_at(0), torch.ones(BATCH, 1, 4, 4)
    method.mask = lambda index, clock: ones  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
        real, damaged, mask = method.examples(batch, clock_at(0))
        assert torch.equal(grey_levels(method.repaired(damaged, mask)), real)
        method.config = dataclasses.replace(method.config, gating=False)
        for block in method.repairs:
            vars(block)["gated"] = False
        assert not torch.equal(grey_levels(method.repaired(damaged, mask)), real)


def test_real_and_corrupt_leave_the_same_layer() -> None:
    """Closed shortcut: what the discriminator sees, real and corrupt, are outputs of the decoder's last layer."""
    method = build(varied(history=0))
    outputs: list[Tensor] = []
    inputs: list[Tensor] = []
    final = method.autoencoder.decoder[-1]
    final.register_forward_hook(lambda module, given, output: outputs.append(output))
    method.backbone.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    for turn in method.turns:
        outputs.clear()
        inputs.clear()
        method(batch_at(0), clock_at(0), turn)
        (seen,) = inputs
        assert len(outputs) == 2 and seen.shape[0] == 2 * BATCH
        assert torch.equal(seen, grey_levels(torch.cat(outputs)))
    real, corrupt = (f(batch_at(0)) for f in (lambda b: outputs[0], lambda b: outputs[1]))
    assert not torch.equal(real, corrupt)
    outside = [m for m in method.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 3]
    assert outside == [final.get_submodule("0")]  # no other layer makes an image


def test_input_images_as_real() -> None:
    """Table 3.1 (a)."""
    real, _, _ = build(varied(real="input")).examples(batch_at(0), clock_at(0))
    assert torch.equal(real, batch_at(0)["image"].float())


# ------------------------------------------------------------------------------------------ history


def stamped(step: int, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Images and masks that tell their step and place."""
    number = torch.arange(count) + 20 * step + 1.0
    images = number.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return images, (number % 2).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.arange(count) + 50 * step


@pytest.mark.parametrize("size", [1, 4, 7, 40])
@pytest.mark.parametrize("count", [2, 5, 6])
def test_history(size: int, count: int) -> None:
    """Half gives way to what was stored before, with its mask; the other half is stored; nothing else is lost."""
    history = History(size, (3, 2, 2), (1, 2, 2))
    history.images.fill_(255)  # of empty slots: must never be seen
    fresh, old = (count + 1) // 2, count // 2
    for step in range(8):
        before = history.images[:, 0, 0, 0].clone()
        filled = int(history.filled)
        assert filled == min(size, fresh * step)
        images, masks, index = stamped(step, count)
        mixed, marks = history(images, masks, index, clock_at(step))
        numbers = mixed[:, 0, 0, 0]
        assert torch.equal(mixed, numbers.view(-1, 1, 1, 1).expand_as(mixed))
        assert torch.equal(marks, (numbers % 2).view(-1, 1, 1, 1).expand_as(marks))
        replaced = numbers != images[:, 0, 0, 0]
        assert replaced.sum() == (old if step else 0)
        assert set(numbers[replaced].tolist()) <= set(before[:filled].tolist())
        u = draw(3, step, index, "history", 1)[:, 0]
        stays = u <= u.sort().values[fresh - 1]
        assert torch.equal(stays, ~replaced) or not step
        after = history.images[:, 0, 0, 0]
        new = (after != before).nonzero().flatten().tolist()
        assert len(new) == min(fresh, size)
        stored = set(after[new].tolist())
        assert stored <= set(images[stays, 0, 0, 0].tolist()) and len(stored) == len(new)
        if filled + fresh <= size:
            assert new == list(range(filled, filled + fresh))
        assert torch.equal(history.masks[:, 0, 0, 0][: int(history.filled)], after[: int(history.filled)] % 2)


def test_a_full_history_is_sampled_and_replaced_evenly() -> None:
    """1,200 draws of 8 slots: each within 5 standard deviations of 150; and each replaced alike."""
    history = History(8, (1, 1, 1), (1, 1, 1))
    sampled, replaced = torch.zeros(256), torch.zeros(8)
    history.store(torch.arange(8).byte().view(8, 1, 1, 1), torch.zeros(8, 1, 1, 1).byte(), clock_at(0))
    for step in range(300):
        history.images.copy_(torch.arange(8).byte().view(8, 1, 1, 1))
        new = torch.full((8, 1, 1, 1), 200.0)
        mixed, _ = history(new, new * 0, torch.arange(8) + 8 * step, clock_at(step))
        sampled += mixed.flatten().long().bincount(minlength=256)
        replaced += (history.images.flatten() == 200).float()
    bound = 5 * math.sqrt(1200 / 8 * 7 / 8)
    assert sampled[200] == 1200 and sampled[:8].sum() == 1200
    assert ((sampled[:8] - 150).abs() < bound).all() and ((replaced - 150).abs() < bound).all()


def test_the_discriminator_sees_half_of_its_corrupt_images_from_the_history() -> None:
    """With their own masks, and to the bit as they were seen first."""
    method = build()
    assert method.history is not None
    trainer, inputs = Trainer(method), list[Tensor]()
    for step in range(3):
        trainer.step(step)
    stored = method.history.images[: int(method.history.filled)].clone()
    method.backbone.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    trainer.turn("model", batch_at(5), clock_at(5))
    corrupt = inputs[0][BATCH:]
    old = [(image == stored.float()).flatten(1).all(1).any().item() for image in corrupt]
    assert sum(old) == BATCH // 2
    inputs.clear()
    trainer.turn("repairer", batch_at(5), clock_at(5))  # its images are all its own
    stored = torch.cat([stored, method.history.images])
    fresh = [(image == corrupt).flatten(1).all(1).any().item() for image in inputs[0][BATCH:].detach()]
    assert sum(fresh) == BATCH // 2  # the others gave way in the turn before


# ------------------------------------------------------------------------------------------- losses


def test_class_loss_by_hand() -> None:
    """Logit ln 3 is a probability 3/4. Real: 3/4 and 1/2; corrupt: 1/4 and 3/4 of being real.

    -[ (ln 3/4 + ln 1/2) / 2 + (ln 3/4 + ln 1/4) / 2 ] / 2 = -ln(9/128) / 4.
    """
    three = math.log(3)
    loss = class_loss(torch.tensor([three, 0.0]), torch.tensor([-three, three]))
    assert loss.item() == pytest.approx(-math.log(9 / 128) / 4)
    assert class_loss(torch.tensor([80.0]), torch.tensor([-80.0])).item() < 1e-30
    assert class_loss(torch.tensor([-200.0]), torch.tensor([200.0])).item() == 200  # finite where sure and wrong


def test_mask_loss_by_hand() -> None:
    """Logits ln 3 (kept: -ln 3/4), 0 (dropped: ln 2): the mean is (ln 4/3 + ln 2) / 2 = ln(8/3) / 2."""
    cells, mask = torch.tensor([[[[math.log(3), 0.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    assert mask_loss(cells, mask).item() == pytest.approx(math.log(8 / 3) / 2)


def test_kept_error_is_its_naive_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    made = 2 * torch.rand(2, 3, 6, 4, generator=generator, dtype=torch.float64) - 1
    images = torch.randint(0, 256, (2, 3, 6, 4), generator=generator).byte()
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]], [[[0.0, 0.0], [1.0, 0.0]]]])
    errors = [
        (made[b, c, i, j].item() - (images[b, c, i, j].item() / 127.5 - 1)) ** 2
        for b in range(2)
        for c in range(3)
        for i in range(6)
        for j in range(4)
        if mask[b, 0, i // 3, j // 2] == 1
    ]
    assert kept_error(made, images, mask).item() == pytest.approx(sum(errors) / len(errors))
    assert kept_error(made, images, torch.zeros(2, 1, 2, 2)).item() == 0  # nothing kept


def said(method: Artifacts, turn: str, step: int = 0) -> tuple[Step, Verdict]:
    """A turn, and what the discriminator said in it."""
    kept: list[Verdict] = []
    plain = method.discriminate

    def recorded(*arguments: Any) -> Verdict:
        kept.append(plain(*arguments))
        return kept[-1]

    method.discriminate = recorded  # type: ignore[method-assign, assignment]
    out = method(batch_at(step), clock_at(step), turn)
    method.discriminate = plain  # type: ignore[method-assign]
    return out, kept[0]


@pytest.mark.parametrize("weight", [1.0, 0.1])
@pytest.mark.parametrize("on_real", [False, True])
def test_the_discriminators_loss(weight: float, on_real: bool) -> None:
    """Eq. 3.4 and L_mask with probabilities and logarithms; L_mask also on real images, whose mask is 1 everywhere."""
    method = build(varied(mask_weight=weight, mask_on_real=on_real))
    mask = method.mask(batch_at(0)["index"], clock_at(0)).double()
    (loss, log), verdict = said(method, "model")
    assert verdict.cells is not None
    real, corrupt = verdict.logit.double().sigmoid().chunk(2)
    eq_3_4 = -(real.log().mean() + (1 - corrupt).log().mean()) / 2
    p = verdict.cells.double().sigmoid()
    whole = torch.cat([torch.ones_like(mask), mask])
    terms = -(whole * p.log() + (1 - whole) * (1 - p).log())
    missed = (terms if on_real else terms[BATCH:]).mean()
    assert loss.item() == pytest.approx((eq_3_4 + weight * missed).item(), rel=1e-5)
    assert log["class"].item() == pytest.approx(eq_3_4.item(), rel=1e-5)
    assert log["mask"].item() == pytest.approx(missed.item(), rel=1e-5)
    assert log["accuracy_real"].item() == (real > 0.5).double().mean().item()
    assert log["accuracy_corrupt"].item() == (corrupt <= 0.5).double().mean().item()
    assert log["accuracy_mask"].item() == pytest.approx(((p[BATCH:] > 0.5) == (mask > 0.5)).double().mean().item())


def test_the_repairers_loss() -> None:
    """Both games push the corrupt logit s up: by sigma(s) / 2B in Eq. 3.4, by 1 - sigma(s) with labels exchanged."""
    for adversary, slope in (("minimax", lambda p: p), ("flipped", lambda p: 1 - p)):
        (loss, _), verdict = said(build(varied(adversary=adversary)), "repairer")
        real, corrupt = verdict.logit.double().sigmoid().chunk(2)
        if adversary == "minimax":
            expected = (real.log().mean() + (1 - corrupt).log().mean()) / 2
        else:
            expected = -((1 - real).log().mean() + corrupt.log().mean()) / 2
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, verdict.logit)
        torch.testing.assert_close(
            gradient[BATCH:].double(), -slope(corrupt.detach()) / (2 * BATCH), rtol=1e-4, atol=1e-7
        )


def test_the_codes_terms_of_the_repairers_loss() -> None:
    loss, log = build()(batch_at(0), clock_at(0), "repairer")
    kept, more = build(varied(kept_weight=30.0))(batch_at(0), clock_at(0), "repairer")
    assert kept.item() == pytest.approx(loss.item() + 30 * more["kept_mse"].item(), rel=1e-5)
    assert "kept_mse" not in log and more["adversarial"] == loss
    method = build(varied(history=0))
    own = method(batch_at(0), clock_at(0), "model").loss
    summed = build(varied(sum_losses=True))(batch_at(0), clock_at(0), "repairer").loss
    assert summed.item() == pytest.approx((loss + own).item(), rel=1e-5)


def test_without_mask_prediction_there_is_no_mask_head() -> None:
    """Table 3.1 (b)."""
    method = build(varied(mask_weight=0.0))
    loss, log = method(batch_at(0), clock_at(0), "model")
    assert method.mask_head is None and loss == log["class"] and not {"mask", "accuracy_mask"} & log.keys()


def test_dropout_is_drawn_by_sample() -> None:
    method = build(varied(dropout=0.25, hidden=400))
    kept = method.units_kept(torch.arange(8), clock_at(0))
    assert kept is not None and kept.shape == (16, 400)
    assert kept.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert abs((kept == 0).float().mean().item() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / kept.numel())
    part = method.units_kept(torch.arange(4, 8), clock_at(0))
    assert part is not None and torch.equal(part, torch.cat([kept[4:8], kept[12:]]))
    assert not torch.equal(kept[:8], kept[8:])
    assert (
        method.eval().units_kept(torch.arange(8), clock_at(0)) is None and build().units_kept(part, clock_at(0)) is None
    )


# -------------------------------------------------------------------------------------------- turns

VARIANTS: list[dict[str, Any]] = [
    {},
    {"real": "input"},
    {"mask_weight": 0.0},
    {"repair": "local"},
    {"autoencoder": dataclasses.replace(SMALL, kernel=3)},
    {"gating": False},
    {"history": 0},
    {"drop_rate": 0.9, "fill": "noise"},
    {"head_norm": True, "dropout": 0.5, "mask_on_real": True, "mask_weight": 0.1},
    {"adversary": "flipped", "kept_weight": 30.0, "sum_losses": True, "kernel": 5},
]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(o) or "baseline")


@every_variant
def test_a_turn_moves_its_own_parameters_alone(options: dict[str, Any]) -> None:
    """And its own batch norms' statistics; nothing of the autoencoder, whose statistics never move."""
    method = build(varied(**options))
    trainer, names = Trainer(method), {id(p): name for name, p in method.named_parameters()}
    own = {turn: {names[id(p)] for p in method.parameters_of(turn)} for turn in method.turns}
    frozen = {name for name in method.state_dict() if name.startswith("autoencoder.")}
    assert own["model"] | own["repairer"] | (frozen & set(names.values())) == set(names.values())
    assert not own["model"] & own["repairer"] and frozen
    for step in range(2):
        for turn, prefix in (("model", ("backbone.", "units.")), ("repairer", ("repairs.",))):
            before = copied(method)
            loss, log = trainer.turn(turn, batch_at(step), clock_at(step))
            assert loss.shape == () and loss.isfinite() and loss.dtype == torch.float32
            assert all(v.shape == () and v.isfinite() and not v.requires_grad for v in log.values())
            moved = changed(before, method)
            statistics = {n for n in method.state_dict() if n.startswith(prefix) and ("running" in n or "tracked" in n)}
            history = (
                {"history.images", "history.masks", "history.filled"} if method.history and turn == "model" else set()
            )
            assert moved - history == own[turn] | statistics
            assert moved & history == history
            assert not any(p.grad is not None for p in method.autoencoder.parameters())


def test_the_autoencoder_stays_frozen_in_train() -> None:
    method = build()
    assert not any(p.requires_grad for p in method.autoencoder.parameters())
    for mode in (True, False, True):
        method.train(mode)
        assert method.backbone.training == mode and method.repairs.training == mode
        assert not any(m.training for m in method.autoencoder.modules())


def test_no_gradient_from_the_other_turn() -> None:
    """Even where all parameters would take one: the discriminator's loss has none by the repair blocks."""
    method = build()
    method(batch_at(0), clock_at(0), "model").loss.backward()
    assert all(p.grad is None for p in [*method.repairs.parameters(), *method.autoencoder.parameters()])
    assert all(p.grad is not None for p in method.parameters_of("model"))


@every_variant
def test_a_state_dict_resumes_to_the_bit(options: dict[str, Any]) -> None:
    first = Trainer(build(varied(**options)))
    for step in range(3):
        first.step(step)
    state = deepcopy(first.method.state_dict())
    second = Trainer(build(varied(**options), seed=1))
    second.method.load_state_dict(state)
    for turn, optimizer in first.optimizers.items():
        second.optimizers[turn].load_state_dict(deepcopy(optimizer.state_dict()))
    losses = [[out.loss for out in trainer.step(3).values()] for trainer in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))
    assert not changed(copied(first.method), second.method)


@every_variant
def test_no_draw_from_the_process_and_bf16(options: dict[str, Any]) -> None:
    plain, mixed = Trainer(build(varied(**options))), Trainer(build(varied(**options)))
    expected = plain.step(0)
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixed.step(0)
    assert torch.equal(torch.get_rng_state(), before)
    for turn, out in found.items():
        assert out.loss.dtype == torch.float32
        torch.testing.assert_close(out.loss, expected[turn].loss, rtol=0.1, atol=0.1)


def test_it_learns_to_spot() -> None:
    """Both kinds, and most of the mask, under masks that it has not seen."""
    method = build(varied(drop_rate=0.7, hidden=32))
    trainer = Trainer(method, rate=1e-2)
    for step in range(70):
        batch = {**batch_at(step % 2), "index": torch.arange(BATCH) + BATCH * step}
        for turn in method.turns:
            trainer.turn(turn, batch, clock_at(step))
    found = method.task(batch_at(0), clock_at(99))
    assert found["accuracy_real"] >= 0.75 and found["accuracy_corrupt"] >= 0.75, found
    assert found["accuracy_mask"] > 0.8, found


@pytest.mark.parametrize("call", ["task", "pictures"])
def test_looking_moves_no_state(call: str) -> None:
    method = build()
    Trainer(method).step(0)
    before = copied(method)
    out = getattr(method, call)(batch_at(1), clock_at(1))
    assert not changed(before, method) and method.training and not method.autoencoder.training
    if call == "pictures":
        assert list(out) == ["original", "autoencoded", "corrupt", "mask", "unrepaired"]
        assert all(image.shape == (8, 3, SIZE, SIZE) and image.dtype == torch.uint8 for image in out.values())
        mask = method.mask(batch_at(1)["index"], clock_at(1))
        assert torch.equal(out["mask"][:, :1, ::4, ::4], 255 * mask.byte())
    else:
        assert {"accuracy_real", "accuracy_corrupt", "accuracy_mask", "autoencoder_mse"} == out.keys()
        alone = method.autoencoder.task(batch_at(1), clock_at(1))
        assert torch.equal(out["autoencoder_mse"], alone["mse"])


def test_pictures_of_the_autoencoder() -> None:
    method = Autoencoder(SMALL, None, facts())
    before = copied(method)
    out = method.pictures(batch_at(0), clock_at(0))
    assert list(out) == ["original", "reconstruction"] and not changed(before, method) and method.training
    assert all(image.shape == (8, 3, SIZE, SIZE) and image.dtype == torch.uint8 for image in out.values())


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "wrong",
    [
        *({"drop_rate": rate} for rate in (0.0, 1.0, -0.1, 1.5, math.nan)),
        {"fill": "zeros"},
        {"kernel": 1},
        {"kernel": 4},
        {"real": "photo"},
        {"mask_weight": -1.0},
        {"repair": "none"},
        {"slope": 1.0},
        {"history": -1},
        {"hidden": 0},
        {"dropout": 1.0},
        {"adversary": "hinge"},
        {"kept_weight": -1.0},
    ],
    ids=str,
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"method\.{next(iter(wrong))} is "):
        artifacts.Config(**wrong)


def test_what_does_not_fit_is_refused() -> None:
    plain = Backbone(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), 4, [0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match=r"names none: give --backbone alexnet:lrn"):
        Artifacts(TINY, plain, facts())
    with pytest.raises(ValueError, match=r"the code of 4 x 4 pixels is a single entry.*views\.image\.size"):
        Artifacts(TINY, small_backbone(), facts(4))
    with pytest.raises(ValueError, match=r"halves an image 2 times, and 18 x 18"):
        Artifacts(TINY, small_backbone(), facts(18))
    with pytest.raises(ValueError, match=r"^artifacts takes the view image, got left, right"):
        Artifacts(TINY, small_backbone(), Facts(9, None, {"left": ((3, 16, 16), 0), "right": ((3, 16, 16), 0)}))


def test_the_chapters_discriminator_predicts_the_mask_cell_by_cell() -> None:
    """AlexNet without pool5 at 96 pixels has a map of 6 x 6, as the code; of other maps cells are means."""
    with torch.device("meta"):
        alexnet = backbones.build("alexnet:lrn", image=(3, 96, 96), mean=[0.5] * 3, std=[0.5] * 3)
        method = Artifacts(artifacts.Config(), alexnet, facts(96))
    assert method.cells == (6, 6) and method.last == "conv5"
    assert method.units[1].in_features == 256 * 6 * 6 and method.units[1].out_features == 4096
    assert len(method.repairs) == 5 and method.backbone is alexnet
    small = build()
    verdict = small.eval().discriminate(batch_at(0)["image"])
    assert verdict.cells is not None and small.mask_head is not None and verdict.logit.shape == (BATCH,)
    cells = small.mask_head(small.backbone.maps(batch_at(0)["image"])["conv2"])
    assert torch.equal(verdict.cells, cells)
    wide = Artifacts(
        varied(autoencoder=dataclasses.replace(SMALL, widths=(4, 6, 8, 8))), small_backbone(), facts()
    ).eval()
    verdict, maps = wide.discriminate(batch_at(0)["image"]), wide.backbone.maps(batch_at(0)["image"])
    assert wide.mask_head is not None and verdict.cells is not None
    torch.testing.assert_close(verdict.cells, F.avg_pool2d(wide.mask_head(maps["conv2"]), 2))
