"""Parts against naive twins: draws, queue, teacher, heads, batch norm; and all that gathers, on two gloo processes."""

import hashlib
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from methods.parts import (
    Queue,
    SplitBatchNorm,
    Teacher,
    centred,
    draw,
    gather,
    mlp,
    momentum_at,
    normal,
    reverse_gradient,
    set_batch_norm,
    still,
    to_uint8,
)

# ---------------------------------------------------------------------------------------------- draws


def test_draw_is_splitmix64_with_big_integers() -> None:
    """The same numbers from Python's integers, which don't wrap around."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    assert mix(golden) == 0xE220A8397B1DCDAF  # splitmix64's first output from the state 0, as published
    start = int.from_bytes(hashlib.blake2b(b"7/3/crop", digest_size=8).digest(), "little")
    index = [0, 1, 2, 49999, 2**40]
    expected = [
        [(mix(mix(i * golden + start & mask) + k * golden & mask) >> 40) / 2**24 for k in (1, 2, 3)] for i in index
    ]
    assert torch.equal(draw(7, 3, torch.tensor(index), "crop", 3), torch.tensor(expected))


def test_draw_keeps_its_bits() -> None:
    """Pinned: a change here changes every run and every resumed run."""
    bits = draw(0, 0, torch.tensor([0, 1]), "x", 2) * 2**24
    assert bits.tolist() == [[15361371, 3338995], [16426264, 2651755]]


def test_draw_is_uniform() -> None:
    """65,536 x 4 numbers: mean within 5 standard errors, 64 bins by chi squared (63 degrees, deviation sqrt(126))."""
    u = draw(1, 2, torch.arange(65536), "uniform", 4)
    assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1
    for column in u.T:
        assert abs(column.mean().item() - 0.5) < 5 / math.sqrt(12 * 65536)
        counts = (column * 64).long().bincount(minlength=64).double()
        assert abs(((counts - 1024) ** 2 / 1024).sum().item() - 63) < 5 * math.sqrt(126)


def test_draws_are_uncorrelated() -> None:
    """Between columns, neighbours, names, seeds and moments: each correlation within 5 standard errors."""
    index = torch.arange(65536)
    u = draw(1, 2, index, "a", 2)
    others = [
        u[:, 1],
        u[:, 0].roll(1),
        *(draw(*what, 1)[:, 0] for what in ((1, 2, index, "b"), (2, 2, index, "a"), (1, 3, index, "a"))),
    ]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([u[:, 0], other]))[0, 1].item()) < 5 / math.sqrt(65536)


def test_draw_knows_neither_batch_nor_order() -> None:
    index = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = draw(5, 6, torch.arange(1000), "x", 3)
    assert torch.equal(draw(5, 6, index, "x", 3), whole[index])
    assert torch.equal(torch.cat([draw(5, 6, part, "x", 3) for part in index.split(7)]), whole[index])
    assert torch.equal(draw(5, 6, index, "x", 1), whole[index, :1])  # more numbers leave the first as they are


def test_draw_leaves_the_process_alone() -> None:
    state = torch.get_rng_state()
    draw(0, 0, torch.arange(4), "x", 4)
    assert torch.equal(state, torch.get_rng_state())


# --------------------------------------------------------------------------------------------- turns


def test_normal_numbers_are_normal() -> None:
    """65,536 x 3: moments within 5 standard errors, quantiles of the normal distribution, no correlation."""
    x = normal(1, 2, torch.arange(65536), "noise", 3).double()
    assert x.shape == (65536, 3) and x.isfinite().all()
    for column in x.T:
        assert abs(column.mean()) < 5 / 256 and abs(column.square().mean() - 1) < 5 * math.sqrt(2) / 256
        assert abs((column.abs() < 1.959964).double().mean() - 0.95) < 5 * math.sqrt(0.95 * 0.05) / 256
    assert torch.corrcoef(x.T).triu(1).abs().max() < 5 / 256
    assert torch.equal(normal(1, 2, torch.tensor([7, 3]), "noise", 3), x[[7, 3]].float())


def test_reversed_gradients_change_their_sign_alone() -> None:
    x = torch.tensor([2.0, -3.0], requires_grad=True)
    out = reverse_gradient(x)
    assert torch.equal(out, x)
    (out.square().sum() + 10 * x.sum()).backward()
    assert x.grad is not None and torch.equal(x.grad, torch.tensor([-4.0 + 10, 6.0 + 10]))


def test_networks_kept_still_pass_gradients_and_keep_their_buffers() -> None:
    spectral, norm = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)
    network = nn.Sequential(spectral, norm, nn.BatchNorm2d(4).eval())
    twin = deepcopy(network)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    x = torch.randn(5, 3, 8, 8, requires_grad=True)
    with still(network):
        out = network(x)
    out.square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in network[1].parameters())
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name
    inner = twin[0].eval()(x)  # the spectral vectors as they were; then the batch's own statistics
    inner = F.batch_norm(inner, None, None, norm.weight, norm.bias, True, eps=norm.eps)
    torch.testing.assert_close(out, twin[2](inner))
    assert network.training and network[1].track_running_stats and not network[2].training
    network(x)
    moved = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert {"1.running_mean", "0.parametrizations.weight.0._u"} <= moved


def test_stillness_ends_with_an_error() -> None:
    norm = nn.BatchNorm2d(4)
    with pytest.raises(RuntimeError), still(norm):
        raise RuntimeError
    assert norm.track_running_stats


def test_pixels_go_there_and_back() -> None:
    pixels = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16)
    x = centred(pixels)
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(to_uint8(x), pixels)
    assert to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


# ---------------------------------------------------------------------------------------------- queue


@pytest.mark.parametrize("size", [1, 4, 7, 16])
@pytest.mark.parametrize("batches", [[4, 4, 4, 4, 4], [3, 5, 1, 9], [16, 2, 40, 3]])
def test_queue_is_a_list_written_in_a_circle(size: int, batches: list[int]) -> None:
    torch.manual_seed(0)
    queue = Queue(size, 3, {"index": torch.int64, "weight": torch.float32})
    keys, index, slot = queue.keys.tolist(), [-1] * size, 0
    for step, count in enumerate(batches):
        new, number = torch.randn(count, 3), torch.arange(count) + 100 * step
        queue.enqueue(new, {"index": number, "weight": number / 2})
        for key, i in zip(new.tolist(), number.tolist(), strict=True):
            keys[slot], index[slot], slot = key, i, (slot + 1) % size
        assert queue.keys.tolist() == keys and queue.pointer == slot
        assert queue.get_buffer("index").tolist() == index
        assert queue.get_buffer("weight").tolist() == [i / 2 if i >= 0 else -1 for i in index]


def test_queue_starts_with_unit_vectors_and_resumes() -> None:
    queue, other = Queue(5, 8), Queue(5, 8)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(5))
    queue.enqueue(torch.randn(3, 8))
    other.load_state_dict(queue.state_dict())
    more = torch.randn(4, 8)
    queue.enqueue(more)
    other.enqueue(more)
    assert torch.equal(queue.keys, other.keys) and torch.equal(queue.pointer, other.pointer)


def test_queue_stores_float32_without_gradient() -> None:
    queue = Queue(4, 2)
    queue.enqueue(torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    assert queue.keys.dtype == torch.float32 and not queue.keys.requires_grad


def test_queue_needs_a_size() -> None:
    with pytest.raises(ValueError, match="at least one key, got size 0"):
        Queue(0, 2)


# -------------------------------------------------------------------------------------------- teacher


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return trunk, mlp([4, 6, 5])


def photos(count: int = 8) -> tuple[Tensor, Tensor]:
    """Images, and an order for them."""
    x = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return x * torch.arange(1, count + 1)[:, None, None, None], draw(0, 0, torch.arange(count), "shuffle", 1)[:, 0]


def test_teacher_starts_as_a_copy_of_its_own() -> None:
    online = networks()
    teacher = Teacher(*online)
    own = [p for n in online for p in n.parameters()]
    for mine, theirs in zip(teacher.parameters(), own, strict=True):
        assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr() and not mine.requires_grad
    assert all(p.requires_grad for p in own)
    assert not teacher(photos()[0]).requires_grad


def test_teacher_follows_the_parameters_and_not_the_buffers() -> None:
    online = networks()
    teacher = Teacher(*online)
    started = [p.clone() for p in teacher.parameters()]
    means = [b.clone() for b in teacher.buffers()]
    with torch.no_grad():
        for network in online:
            for p in network.parameters():
                p.add_(torch.randn_like(p))
    online[1](online[0](photos()[0]))  # moves the running statistics of the online networks
    teacher.follow(*online, momentum=0.9)
    students = [p for n in online for p in n.parameters()]
    for new, old, student in zip(teacher.parameters(), started, students, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)
    assert all(torch.equal(a, b) for a, b in zip(teacher.buffers(), means, strict=True))
    teacher.follow(*online, momentum=0.0)
    for new, student in zip(teacher.parameters(), students, strict=True):
        assert torch.equal(new, student)


def test_momentum_is_a_cosine() -> None:
    """1 - (1 - .99)(1 + cos(pi k / 100)) / 2: .99 at the start, .995 in the middle, 1 at the end."""
    assert [momentum_at(k, 101, 0.99, 1.0) for k in (0, 50, 100)] == pytest.approx([0.99, 0.995, 1.0])
    assert momentum_at(25, 101, 0.99, 1.0) == pytest.approx(1 - 0.01 * (1 + math.sqrt(0.5)) / 2)
    assert momentum_at(17, 101, 0.99, 0.99) == 0.99 and momentum_at(0, 1, 0.9, 1.0) == 0.9


def test_split_teacher_in_evaluation_is_the_plain_forward() -> None:
    """No sample sees another then, so an output out of place would show."""
    x, order = photos()
    teacher = Teacher(*networks()).eval()
    plain = teacher(x)
    set_batch_norm(teacher, "split:4")
    torch.testing.assert_close(teacher(x, order), plain)
    assert not torch.allclose(plain, plain.flip(0))


def test_split_1_in_training_is_plain_batch_norm() -> None:
    x, order = photos()
    plain, split = Teacher(*networks()), Teacher(*networks())
    set_batch_norm(split, "split:1")
    torch.testing.assert_close(split(x, order), plain(x))
    for a, b in zip(split.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_split_teacher_in_training_is_a_forward_a_part() -> None:
    x, order = photos()
    teacher = Teacher(*networks())
    permutation = order.argsort()
    assert permutation.tolist() != list(range(8))
    parts = torch.cat([deepcopy(teacher.network)(x[part]) for part in permutation.chunk(4)])
    expected = torch.empty_like(parts)
    expected[permutation] = parts
    set_batch_norm(teacher, "split:4")
    torch.testing.assert_close(teacher(x, order), expected, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------- heads


def test_mlp_layers() -> None:
    def kinds(network: nn.Module) -> str:
        return " ".join(type(m).__name__ for m in network.children())

    def biases(network: nn.Module) -> list[bool]:
        return [m.bias is not None for m in network.children() if isinstance(m, nn.Linear)]

    head = mlp([3, 4, 5])
    assert kinds(head) == "Linear BatchNorm1d ReLU Linear" and biases(head) == [False, True]
    assert head(torch.randn(6, 3)).shape == (6, 5)
    assert biases(mlp([3, 4, 5], last_bias=False)) == [False, False]
    head = mlp([3, 4, 4, 5], hidden_norm=False)
    assert kinds(head) == "Linear ReLU Linear ReLU Linear" and biases(head) == [True, True, True]
    assert biases(mlp([3, 4, 5], hidden_norm=False, last_bias=False)) == [True, False]
    for last_norm, affine in ((True, True), (None, False)):
        head = mlp([3, 4, 5], last_norm=last_norm)
        assert kinds(head) == "Linear BatchNorm1d ReLU Linear BatchNorm1d" and biases(head) == [False, False]
        assert [m.affine for m in head.children() if isinstance(m, nn.BatchNorm1d)] == [True, affine]
    assert kinds(mlp([3, 5])) == "Linear" and biases(mlp([3, 5])) == [True]


# ----------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 4, 3)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_split_batch_norm_is_a_batch_norm_a_part(shape: tuple[int, ...], channels_last: bool, affine: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * torch.arange(1, 13).view(12, *[1] * (len(shape) - 1))
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    split = SplitBatchNorm(5, affine=affine).double()
    if affine:
        nn.init.normal_(split.weight)
        nn.init.normal_(split.bias)
    split.splits = 3
    plain = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5, affine=affine).double()
    plain.load_state_dict(split.state_dict())
    parts = [deepcopy(plain) for _ in range(3)]
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = split(mine), torch.cat([norm(part) for norm, part in zip(parts, theirs.chunk(3), strict=True)])
    torch.testing.assert_close(out, expected)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([norm.get_buffer(name) for norm in parts]).mean(0)
        torch.testing.assert_close(split.get_buffer(name), mean)
    assert split.num_batches_tracked == 1
    out.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    if affine:
        torch.testing.assert_close(split.weight.grad, sum(norm.weight.grad for norm in parts))
    plain.load_state_dict(split.state_dict())
    torch.testing.assert_close(split.eval()(x), plain.eval()(x))


def test_split_batch_norm_errors() -> None:
    split = SplitBatchNorm(2)
    split.splits = 3
    with pytest.raises(ValueError, match=r"split:3 does not divide a worker's batch of 4"):
        split(torch.zeros(4, 2, 2, 2))
    with pytest.raises(ValueError, match=r"got shape \(4, 2, 2\)"):
        split(torch.zeros(4, 2, 2))


class Student(nn.Module):
    def __init__(self, taught: bool) -> None:
        super().__init__()
        self.trunk, self.head = networks()
        self.teacher = Teacher(self.trunk, self.head) if taught else nn.Identity()


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_set_batch_norm_global_leaves_one_process_as_it_is() -> None:
    student = Student(taught=True)
    before = norms(student)
    assert set_batch_norm(student, "global") is student and norms(student) == before
    x, order = photos()
    teacher = student.teacher
    assert torch.equal(teacher(x, order), deepcopy(teacher)(x))


def test_set_batch_norm_none_leaves_none() -> None:
    for taught in (False, True):
        student = set_batch_norm(Student(taught), "none")
        assert not norms(student)
        assert student.get_submodule("head")(student.get_submodule("trunk")(photos()[0])).shape == (8, 5)


def test_set_batch_norm_split_is_for_the_teacher_alone() -> None:
    student = Student(taught=True)
    with torch.no_grad():
        norms(student.teacher)[0].get_parameter("weight").fill_(3.0)
    set_batch_norm(student, "split:2")
    split = norms(student.teacher)
    assert len(split) == 2 and all(isinstance(m, SplitBatchNorm) and m.splits == 2 for m in split)
    assert split[0].get_parameter("weight").eq(3).all() and not any(
        p.requires_grad for p in student.teacher.parameters()
    )
    assert not any(isinstance(m, SplitBatchNorm) for part in (student.trunk, student.head) for m in norms(part))
    student.teacher.follow(student.trunk, student.head, momentum=0.5)  # type: ignore[operator]
    assert split[0].get_parameter("weight").eq(2).all()


def test_set_batch_norm_split_keeps_mode_dtype_and_device() -> None:
    """`meta` stands for a GPU: what was built on the CPU could not be mixed with it."""
    student = set_batch_norm(Student(taught=True).double().to("meta").eval(), "split:2")
    for norm in norms(student.get_submodule("teacher")):
        assert isinstance(norm, SplitBatchNorm) and not norm.training
        assert norm.weight.is_meta and norm.weight.dtype == torch.float64
        assert norm.running_var is not None and norm.running_var.is_meta and norm.running_var.dtype == torch.float64


def test_set_batch_norm_shuffle_keeps_plain_batch_norm() -> None:
    student = Student(taught=True)
    set_batch_norm(student, "shuffle")
    assert not any(isinstance(m, SplitBatchNorm) for m in norms(student))
    x, order = photos()  # with one process, the whole batch in another order
    torch.testing.assert_close(student.teacher(x, order), Student(taught=True).teacher(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["split", "split:", "split:0", "split:x", "split:-1", "sync", "", "global:2"])
def test_set_batch_norm_refuses_other_modes(mode: str) -> None:
    with pytest.raises(ValueError, match="choose global, shuffle, split:N"):
        set_batch_norm(Student(taught=True), mode)


@pytest.mark.parametrize("mode", ["shuffle", "split:2"])
def test_set_batch_norm_of_teachers_needs_one(mode: str) -> None:
    with pytest.raises(ValueError, match="for methods with a teacher"):
        set_batch_norm(Student(taught=False), mode)


# ---------------------------------------------------------------------------------------- two processes


def keys_of(step: int) -> Tensor:
    return F.normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(step)), dim=1)


def on_a_rank(rank: int, folder: str) -> None:
    """Half of what `test_two_processes_are_one` does in one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = slice(rank * 3, rank * 3 + 3)
    torch.manual_seed(0)
    queue = Queue(10, 3, {"index": torch.int64})
    for step in range(4):
        queue.enqueue(keys_of(step)[own], {"index": torch.arange(6)[own] + 6 * step})
    x, order = photos()
    mine = slice(rank * 4, rank * 4 + 4)
    teacher = Teacher(*networks())
    set_batch_norm(teacher, "shuffle")
    gathered = gather(torch.arange(12.0, requires_grad=True).view(6, 2)[own])
    images = x[mine].contiguous(memory_format=torch.channels_last)
    torch.save(
        {
            "queue": queue.state_dict(),
            "gathered": gathered,
            "attached": gathered.requires_grad,
            "uint8": gather((x[mine] * 10).byte()),
            "shuffled": teacher(images, order[mine]),
            "global": deepcopy(set_batch_norm(Student(taught=True), "global")).get_submodule("teacher")(x[mine]),
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    mp.spawn(on_a_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.manual_seed(0)
    queue = Queue(10, 3, {"index": torch.int64})
    for step in range(4):
        queue.enqueue(keys_of(step), {"index": torch.arange(6) + 6 * step})
    x, order = photos()
    network = Teacher(*networks()).network
    permutation = order.argsort()
    halves = [deepcopy(network)(x[half]) for half in permutation.chunk(2)]  # each rank's batch statistics
    shuffled = torch.empty(8, 5)
    shuffled[permutation] = torch.cat(halves)
    for rank, found in enumerate(ranks):
        for name, value in queue.state_dict().items():
            assert torch.equal(found["queue"][name], value), name
        assert torch.equal(found["gathered"], torch.arange(12.0).view(6, 2)) and not found["attached"]
        assert torch.equal(found["uint8"], (x * 10).byte())
        mine = slice(rank * 4, rank * 4 + 4)
        torch.testing.assert_close(found["shuffled"], shuffled[mine], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["global"], deepcopy(network)(x[mine]), rtol=1e-4, atol=1e-6)
