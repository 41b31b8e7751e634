"""Splines against scipy, resampling against numpy and by hand, cut and paste against slices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RBFInterpolator
from torch import Tensor

from methods.warp import Padding, Warp, cut, lattice, paste, pixel_centres, resample, spline_flow, turned_cut

KERNELS = {1: "linear", 2: "thin_plate_spline", 3: "cubic"}  # scipy's; its linear kernel is -r, which changes nothing


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def levels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# -------------------------------------------------------------------------------------------- spline


@pytest.mark.parametrize("order", KERNELS)
@pytest.mark.parametrize("count", [4, 9, 25])
def test_spline_is_scipys(order: int, count: int) -> None:
    """Three batched sets of random points, at 200 places within them and beyond."""
    points, shifts = uniform(3, count, 2), uniform(3, count, 2, seed=1) - 0.5
    at = 1.4 * uniform(200, 2, seed=2) - 0.2
    flow = spline_flow(points, shifts, at, order)
    assert flow.shape == (3, 200, 2) and flow.dtype == torch.float64
    for own, c, s in zip(flow, points, shifts, strict=True):
        theirs = RBFInterpolator(c.numpy(), s.numpy(), kernel=KERNELS[order], degree=1)(at.numpy())
        np.testing.assert_allclose(own.numpy(), theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("order", KERNELS)
@pytest.mark.parametrize("points", [2, 4, 5])
def test_the_grids_matrix_is_scipys_spline(order: int, points: int) -> None:
    warp = Warp(12, points, order)
    line = np.linspace(0, 1, points)
    grid = np.array([(x, y) for y in line for x in line])
    shifts = uniform(points**2, 2).float() - 0.5
    at = np.array([((x + 0.5) / 12, (y + 0.5) / 12) for y in range(12) for x in range(12)])
    theirs = RBFInterpolator(grid, shifts.numpy(), kernel=KERNELS[order], degree=1)(at)
    np.testing.assert_allclose((warp.flow @ shifts).numpy(), theirs, atol=2e-6)


@pytest.mark.parametrize("order", KERNELS)
def test_spline_takes_the_shifts_at_its_points(order: int) -> None:
    points, shifts = uniform(16, 2), uniform(16, 2, seed=1)
    torch.testing.assert_close(spline_flow(points, shifts, points, order), shifts)


@pytest.mark.parametrize("order", KERNELS)
@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_affine_shifts_give_the_affine_flow(order: int, values: list[float]) -> None:
    """Translation, turn, shear and zoom bend nothing: the radial part is 0."""
    offset, matrix = torch.tensor(values[:2]).double(), torch.tensor(values[2:]).double().view(2, 2)
    points, at = uniform(16, 2), uniform(50, 2, seed=3)
    torch.testing.assert_close(spline_flow(points, offset + points @ matrix, at, order), offset + at @ matrix)


# ----------------------------------------------------------------------------------------- resampling


def test_lattice_runs_along_rows() -> None:
    assert lattice(torch.tensor([0.0, 1.0])).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert pixel_centres(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


@pytest.mark.parametrize("points", [None, uniform(2, 16, 2).float()], ids=["grid", "random"])
def test_no_shift_is_no_warp(points: Tensor | None) -> None:
    images = levels(2, 3, 20, 20).float()
    warped = Warp(20, 4)(images, torch.zeros(2, 16, 2), points)
    torch.testing.assert_close(warped, images, atol=0.01, rtol=0)


@pytest.mark.parametrize(("padding", "mode"), [("reflection", "symmetric"), ("border", "edge")])
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (-4, 5)])
def test_a_common_shift_moves_the_image(padding: Padding, mode: str, dx: int, dy: int) -> None:
    """All control points by (dx, dy) pixels: each pixel shows what was there, beyond the edges what numpy pads."""
    images = levels(2, 3, 10, 10).float()
    shifts = torch.tensor([dx / 10, dy / 10]).expand(2, 9, 2)
    for points in (None, uniform(2, 9, 2, seed=5).float()):
        warped = Warp(10, 3, padding=padding)(images, shifts, points)
        wide = np.pad(images.numpy(), ((0, 0), (0, 0), (6, 6), (6, 6)), mode=mode)  # type: ignore[call-overload]
        expected = torch.from_numpy(wide[:, :, 6 + dy : 16 + dy, 6 + dx : 16 + dx])
        torch.testing.assert_close(warped, expected, atol=0.01, rtol=0)


def test_half_a_pixel_is_the_mean_of_two() -> None:
    images = torch.tensor([[[[0.0, 10.0], [20.0, 50.0]]]])
    at = torch.tensor([[[[0.5, 0.25], [0.5, 0.5]]]])  # between the upper two; in the middle of all four
    torch.testing.assert_close(resample(images, at), torch.tensor([[[[5.0, 20.0]]]]))


def test_warps_are_of_each_image_alone() -> None:
    images, shifts, points = levels(3, 3, 16, 16).float(), uniform(3, 16, 2).float() / 5, uniform(3, 16, 2, seed=1)
    for at in (None, points.float()):
        whole = Warp(16, 4)(images, shifts, at)
        for k in range(3):
            alone = Warp(16, 4)(images[k : k + 1], shifts[k : k + 1], None if at is None else at[k : k + 1])
            torch.testing.assert_close(whole[k : k + 1], alone, atol=1e-3, rtol=0)


def test_a_turned_cut_turns_about_its_centre() -> None:
    """Quarter turns are exact: x right, y down, so a positive angle reads (0, 1) where (1, 0) was asked for."""
    images = levels(2, 3, 20, 20).float()
    corner = torch.tensor([[3, 7], [0, 5]])
    plain = cut(images, corner, 8)
    for quarters in range(4):
        turned = turned_cut(images, corner, 8, torch.full((2,), quarters * math.pi / 2))
        torch.testing.assert_close(turned, plain.rot90(quarters, (2, 3)), atol=0.01, rtol=0)


def test_a_turned_cut_of_a_ramp_is_a_turned_ramp() -> None:
    """On the image x the turned square holds centre + cos(a) x - sin(a) y: bilinear sampling keeps planes."""
    x = torch.arange(30.0).expand(1, 1, 30, 30)
    angle = 0.2
    out = turned_cut(x, torch.tensor([[10, 11]]), 8, torch.tensor([angle]))[0, 0]
    u = torch.arange(8.0) - 3.5
    expected = 13.5 + math.cos(angle) * u[None, :] - math.sin(angle) * u[:, None]
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------ cut and paste


@given(st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_cut_and_paste_are_slices(side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, squares = levels(4, 3, 9, 11), 255 - levels(4, 3, side, side)
    corner = torch.stack([torch.randint(0, room - side + 1, (4,), generator=generator) for room in (11, 9)], 1)
    expected = images.clone()
    for k, (x, y) in enumerate(corner.tolist()):
        expected[k, :, y : y + side, x : x + side] = squares[k]
    pasted = paste(images, squares, corner)
    assert torch.equal(pasted, expected)
    assert torch.equal(cut(pasted, corner, side), squares)
    assert torch.equal(paste(images, cut(images, corner, side), corner), images)


def test_gradients_pass_through_paste_and_cut() -> None:
    """Only to what is seen: half of the pasted square lies outside of the cut."""
    squares = torch.ones(1, 1, 4, 4, requires_grad=True)
    images = torch.zeros(1, 1, 10, 10, requires_grad=True)
    seen = cut(paste(images, squares, torch.tensor([[2, 3]])), torch.tensor([[4, 0]]), 6)
    (seen * torch.arange(36.0).view(6, 6)).sum().backward()
    weights = torch.zeros(10, 10)
    weights[0:6, 4:10] = torch.arange(36.0).view(6, 6)
    square = weights[3:7, 2:6].clone()
    weights[3:7, 2:6] = 0
    assert squares.grad is not None and images.grad is not None
    assert torch.equal(squares.grad[0, 0], square) and square[:, :2].eq(0).all() and square[:3, 2:].gt(0).all()
    assert torch.equal(images.grad[0, 0], weights)
