"""Geometry of whole batches: cut squares out, paste them back, and resample along the flow of a polyharmonic spline.

Coordinates are (x, y) as fractions of the image: 0 and 1 are its edges, the centre of pixel k of n is (k + .5) / n.

Legend: B batch, C channels, H x W pixels, P a square's side.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["reflection", "border"]
"""Beyond the edges: the image mirrored there, edge pixels repeated too; or its edge pixels drawn out."""


def lattice(line: Tensor) -> Tensor:
    """(n,) -> (n * n, 2): all points (x, y) with both coordinates from `line`, x running fastest."""
    return torch.cartesian_prod(line, line).flip(1)


def pixel_centres(side: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """(side * side, 2): the centres of a square image's pixels, row by row."""
    return lattice((torch.arange(side, dtype=dtype, device=device) + 0.5) / side)


# -------------------------------------------------------------------------------------------- spline


def _radial(a: Tensor, b: Tensor, order: int) -> Tensor:
    """phi(|a_i - b_j|) of points a (..., n, 2) and b (..., m, 2) -> (..., n, m)."""
    squared = (a[..., :, None, 0] - b[..., None, :, 0]) ** 2 + (a[..., :, None, 1] - b[..., None, :, 1]) ** 2
    if order % 2:
        return squared ** (order / 2)
    return 0.5 * torch.xlogy(squared ** (order // 2), squared)


def spline_flow(points: Tensor, shifts: Tensor, at: Tensor, order: int = 2) -> Tensor:
    """The polyharmonic spline that takes the values `shifts` at the control points, evaluated elsewhere.

        s(p) = sum_i w_i phi(|p - c_i|) + v_0 + V p   with   sum_i w_i = 0, sum_i w_i c_i = 0

    and phi(r) = r^order where the order is odd, r^order log r where it is even; 2 is the thin plate spline. It is
    linear in the shifts, so that those of fixed points are a matrix times them: give the identity as `shifts`.

    Args:
        points: c (..., n, 2), control points, not all on one line.
        shifts: (..., n, d), d values at each.
        at: p (m, 2).
        order: 1, 2 or 3.

    Returns:
        (..., m, d), in the dtype of `points`.
    """
    one = torch.ones_like(points[..., :1])
    affine = torch.cat([one, points], -1)  # (..., n, 3)
    corner = torch.zeros_like(affine[..., :3, :]).expand(*affine.shape[:-2], 3, 3)
    upper = torch.cat([_radial(points, points, order), affine], -1)
    lower = torch.cat([affine.mT, corner], -1)
    values = F.pad(shifts.to(points.dtype), (0, 0, 0, 3))  # (..., n + 3, d)
    weights = torch.linalg.solve_ex(torch.cat([upper, lower], -2), values)[0]  # as `solve`, without waiting for a GPU
    at = at.to(points.dtype).expand(*points.shape[:-2], -1, -1)
    return torch.cat([_radial(at, points, order), torch.ones_like(at[..., :1]), at], -1) @ weights


# ----------------------------------------------------------------------------------------- resampling


def resample(images: Tensor, at: Tensor, padding: Padding = "reflection") -> Tensor:
    """Bilinear samples of float images (B, C, H, W) at (B, h, w, 2), which may lie beyond the edges -> (B, C, h, w)."""
    grid = 2.0 * at.to(images.dtype) - 1.0
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


class Warp(nn.Module):
    """Warps images along the splines of random shifts of control points.

    Args:
        side: of the square images, pixels.
        points: control points each way, on a uniform grid that reaches from edge to edge.
        order: of the spline, 1, 2 or 3.
        padding: what lies beyond the edges.
    """

    pixels: Tensor
    flow: Tensor

    def __init__(self, side: int, points: int, order: int = 2, padding: Padding = "reflection") -> None:
        super().__init__()
        self.order, self.padding = order, padding
        grid = lattice(torch.linspace(0, 1, points, dtype=torch.float64))
        matrix = spline_flow(grid, torch.eye(len(grid)), pixel_centres(side, torch.float64), order)
        self.register_buffer("flow", matrix.float(), persistent=False)  # (side * side, n): times shifts, their flow
        self.register_buffer("pixels", pixel_centres(side), persistent=False)

    def forward(self, images: Tensor, shifts: Tensor, points: Tensor | None = None) -> Tensor:
        """Float images (B, C, side, side), shifts (B, n, 2) of the grid's points, or of `points` (B, n, 2), as
        fractions of the image -> images whose pixel p shows what was at p + flow(p)."""
        with torch.autocast(images.device.type, enabled=False):
            if points is None:
                flow = self.flow @ shifts
            else:  # in float64, as random points may lie close together
                flow = spline_flow(points.double(), shifts, self.pixels, self.order).float()
            return resample(images, (self.pixels + flow).unflatten(1, images.shape[2:]), self.padding)


def turned_cut(images: Tensor, corner: Tensor, side: int, angle: Tensor, padding: Padding = "reflection") -> Tensor:
    """`cut` of float images (B, C, H, H), from squares that are turned about their centres by `angle` (B,) radians."""
    whole = images.shape[3]
    x, y = ((pixel_centres(side, device=images.device) - 0.5) * side / whole).unbind(1)  # (side * side,)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    about = torch.stack([cos * x - sin * y, sin * x + cos * y], 2)  # (B, side * side, 2)
    centre = (corner + side / 2) / whole  # (B, 2)
    return resample(images, (centre[:, None] + about).unflatten(1, (side, side)), padding)


# ------------------------------------------------------------------------------------ cut and paste


def cut(images: Tensor, corner: Tensor, side: int) -> Tensor:
    """Squares (B, C, side, side) of images (B, C, H, W) of any dtype, whose upper left pixels are `corner` (B, 2),
    int64 (x, y); no value changes."""
    steps = torch.arange(side, device=images.device)
    x, y = (corner[:, k, None] + steps for k in (0, 1))  # (B, side)
    place = (y[:, :, None] * images.shape[3] + x[:, None, :]).flatten(1)  # (B, side * side)
    place = place[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, place).unflatten(2, (side, side))


def paste(images: Tensor, squares: Tensor, corner: Tensor) -> Tensor:
    """Images (B, C, H, W) with squares (B, C, P, P) in place of what is there: outside no value changes, and gradients
    reach the squares. `corner` as in `cut`."""
    side = squares.shape[-1]
    x, y = (
        torch.arange(images.shape[dim], device=images.device) - corner[:, k, None] for k, dim in ((0, 3), (1, 2))
    )  # (B, W) and (B, H): each pixel's place in the square
    inside = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None, :]  # (B, H, W)
    place = (y.remainder(side)[:, :, None] * side + x.remainder(side)[:, None, :]).flatten(1)
    spread = squares.flatten(2).gather(2, place[:, None].expand(-1, squares.shape[1], -1))
    return torch.where(inside[:, None], spread.unflatten(2, images.shape[2:]), images)
