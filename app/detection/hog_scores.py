"""How much each 64 × 128 window of a picture looks like a person: HOG and a linear SVM, in torch.

After Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection" (2005), number for number as
OpenCV's HOGDescriptor computes it, so that its trained weights mean the same here. What that fixes:

* gamma: the square root of the 8-bit value; gradient: central differences, of the colour channel in which
  it is strongest; borders mirrored without repeating the edge;
* 9 orientations of 20° without sign, each gradient shared between the two nearest;
* blocks of 16 × 16 pixels, one every 8, of 2 × 2 cells; a pixel is weighted by a Gaussian of sigma 4 around
  the block's pixel (8, 8) and shared between the nearest cells;
* a block's 36 numbers are scaled to length 1, cut off at 0.2 and scaled again.

It is fast because everything but the look-ups is a long dense loop. Frames lie innermost, so that one index
serves the whole batch. One gather scales, pads, and sorts the pixels by their place in the 8 × 8 cell; then
every step works on whole planes, a histogram is one matrix product over the 64 places, and the score of all
windows is another and a sum over shifted views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

CELL = 8  # pixels; also the distance of blocks and of windows
PLACES = CELL * CELL
BINS = 9
WINDOW_WIDTH, WINDOW_HEIGHT = 64, 128
BLOCK_COLUMNS, BLOCK_ROWS = 7, 15  # of a window
BLOCK_VALUES = 4 * BINS
CLIP = 0.2

# OpenCV's arctangent: odd polynomial on [0, 1] in radians, off by 2e-4 at most. Ours has to be off likewise.
ATAN = (0.9997878412794807, -0.3258083974640975, 0.1555786518463281, -0.04432655554792128)
BINS_PER_RADIAN = BINS / math.pi

# Orientations are kept in bins, from LOWEST to LOWEST + 9, a bin's centre at an integer.
LOWEST = -5
KNOTS = BINS - 1  # inner bin centres: -4 … 3
PLANES = KNOTS + 2


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Where the pixels of one axis of a scaled, padded picture come from.

    Place p of cell c is pixel 8c + p - 1: each cell brings its two neighbouring pixels along.
    """

    first: Tensor  # (10, cells) int32: the left or upper of the two source pixels
    weights: Tensor  # (10, cells, 2) float32: multiples of 1/256; of that pixel and of the one after it
    source_size: int

    @property
    def cell_count(self) -> int:
        return self.first.shape[1]

    def part(self, start: int, stop: int) -> Axis:
        return Axis(self.first[:, start:stop], self.weights[:, start:stop], self.source_size)


def make_axis(source_size: int, size: int, padding: int, device: str) -> Axis:
    """Return the axis of a picture scaled from `source_size` (≥ 2) to `size` and padded on both sides.

    The weights are those of OpenCV's INTER_LINEAR_EXACT: pixel centres at halves, 8 bits of fraction.
    """
    cells = (size + 2 * padding) // CELL
    places = torch.arange(-1, CELL + 1)[:, None] + CELL * torch.arange(cells)[None] - padding
    # Fold positions outside 0 … size - 1 back, without repeating the edge pixel: BORDER_REFLECT_101.
    period = max(1, 2 * (size - 1))
    places = places.remainder(period)
    places = torch.where(places >= size, period - places, places)
    at = (places.double() + 0.5) * (source_size / size) - 0.5
    first = at.floor()
    fraction = ((at - first) * 256).round() / 256
    fraction = torch.where(first < 0, 0.0, torch.where(first > source_size - 2, 1.0, fraction))
    first = first.clamp(0, source_size - 2).int()
    weights = torch.stack([1 - fraction, fraction], dim=-1).float()
    return Axis(first.to(device), weights.to(device), source_size)


class Planes:
    """A batch of frames, laid out for the gathers of every pyramid level."""

    def __init__(self, frames: Tensor, device: str) -> None:
        """`frames`: (n, height, width, 3) uint8 RGB on the host."""
        self.frame_count, self.height, self.width, _ = frames.shape
        channels = frames.to(device).permute(3, 1, 2, 0)  # (3, H, W, n)
        planes = torch.empty(channels.shape, device=device)
        planes.copy_(channels)
        planes += 0.5  # so that rounding after the interpolation is a floor
        self._planes = planes.view(3, self.height * self.width, self.frame_count)

    def gather(self, rows: Axis, columns: Axis) -> list[Tensor]:
        """Return R, G and B, each (10, 10, cells · n): the picture at these axes, before rounding."""
        # Each pixel's four source pixels and their weights, (pixels, 4), by place, then by cell
        x, y = columns.first, rows.first[:, None, :, None] * columns.source_size
        next_row = columns.source_size
        offsets = torch.stack([x, x + 1, x + next_row, x + next_row + 1], dim=-1)
        index = (y + offsets.view(1, CELL + 2, 1, -1)).view(-1, 4)
        nothing = torch.zeros_like(columns.weights)
        upper = torch.cat([columns.weights, nothing], dim=-1).view(1, CELL + 2, 1, -1)
        lower = torch.cat([nothing, columns.weights], dim=-1).view(1, CELL + 2, 1, -1)
        weights = rows.weights[:, None, :, None, 0] * upper
        weights = weights.addcmul_(rows.weights[:, None, :, None, 1], lower).view(-1, 4)
        size = (CELL + 2, CELL + 2, -1)
        return [
            functional.embedding_bag(index, plane, per_sample_weights=weights, mode="sum").view(size)
            for plane in self._planes
        ]


class WindowScorer:
    """The scores of all windows of a picture at one scale, on one device. For one thread at a time."""

    def __init__(self, weights: Tensor, device: str, *, strip_values: int) -> None:
        """`weights`: (3781,) float32 as OpenCV orders them: block columns, block rows, cells, bins, bias.

        `strip_values`: pixels · frames to work on at a time; the working memory is 160 bytes for each.
        """
        blocks = weights[:-1].view(BLOCK_COLUMNS * BLOCK_ROWS, BLOCK_VALUES)
        self._block_weights = blocks.contiguous().to(device)
        self._bias = float(weights[-1])
        self._device = device
        self._strip_values = strip_values
        # For one strip's planes, reused by the next: fresh pages cost more than the arithmetic.
        self._memory = torch.empty(0, device=device)
        self._spatial = spatial_weights().to(device)
        self._hats = hat_coefficients().to(device)
        self._knots = torch.arange(LOWEST + 1, LOWEST + 1 + KNOTS, dtype=torch.float32, device=device)
        self._atan = [torch.tensor(value * BINS_PER_RADIAN, device=device) for value in ATAN]

    def scores(self, planes: Planes, rows: Axis, columns: Axis) -> Tensor:
        """Return the margins (windows down, windows across, n); a window every 8 pixels, from the corner."""
        n = planes.frame_count
        down, across = rows.cell_count - 1, columns.cell_count - 1  # blocks
        histograms = torch.zeros(2, 2, BINS, down, across * n, device=self._device)
        target = histograms.permute(2, 0, 1, 3, 4)  # (bin, cell across, cell down, Y, X · n)
        strip_rows = max(1, self._strip_values // (PLACES * columns.cell_count * n))
        for start in range(0, rows.cell_count, strip_rows):
            strip = rows.part(start, start + strip_rows)
            cells = self._cells(planes.gather(strip, columns))
            # (bin, quarter down, quarter across, cell across, cell down, rows, columns · n)
            cells = cells.view(BINS, 2, 2, 2, 2, strip.cell_count, columns.cell_count * n)
            for quarter in (0, 1):  # the quarter of the block, downwards, in which the shares' pixels lie
                first, last = max(0, start - quarter), min(down, start + strip.cell_count - quarter)
                share = cells[:, quarter, :, :, :, first + quarter - start : last + quarter - start]
                target[:, :, :, first:last] += share[:, 0, ..., :-n]
                target[:, :, :, first:last] += share[:, 1, ..., n:]
        blocks = histograms.view(BLOCK_VALUES, down, across * n)
        # Scale each block's 36 values to length 1, cut at 0.2, and scale again; OpenCV's epsilons.
        blocks /= blocks.square().sum(dim=0).sqrt_().add_(0.1 * BLOCK_VALUES)
        blocks.clamp_(max=CLIP)
        blocks /= blocks.square().sum(dim=0).sqrt_().add_(1e-3)
        products = torch.mm(self._block_weights, blocks.view(BLOCK_VALUES, -1))  # (105, blocks · n)
        plane = down * across * n
        shifted = products.as_strided(
            (BLOCK_COLUMNS, BLOCK_ROWS, down - BLOCK_ROWS + 1, (across - BLOCK_COLUMNS + 1) * n),
            (BLOCK_ROWS * plane + n, plane + across * n, across * n, 1),
        )  # a window's blocks, each in the product with its own weights
        margins = shifted.sum(dim=(0, 1)) + self._bias
        return margins.view(down - BLOCK_ROWS + 1, across - BLOCK_COLUMNS + 1, n)

    def _cells(self, channels: list[Tensor]) -> Tensor:
        """Return (9, 16, cells · n): what each cell's 64 pixels contribute to the 16 cells that share them.

        The 16: the cell's place in its block (down, across), and which of the block's cells (across, down).
        `channels`: R, G, B, (10, 10, cells · n) each, is used up.
        """
        cells = channels[0].shape[-1]
        plane = PLACES * cells
        sizes = [PLANES * plane, 3 * plane, 4 * plane, PLANES * 16 * cells]
        if sum(sizes) > len(self._memory):
            self._memory = torch.empty(sum(sizes), device=self._device)
        votes, gradient, scratch, shared = torch.split(self._memory[: sum(sizes)], sizes)
        votes = votes.view(PLANES, PLACES, cells)
        shared = shared.view(PLANES, 16, cells)
        gradient = gradient.view(3, CELL, CELL, cells)
        # The gradient of the strongest channel at each pixel. On a tie the later of R, G, B wins, as in
        # OpenCV: one pixel in 10,000 has a tie.
        other, stays = torch.split(scratch.view(4, CELL, CELL, cells), [3, 1])
        _gradient(channels[0], gradient)
        for channel in channels[1:]:
            _gradient(channel, other)
            torch.gt(gradient[2], other[2], out=stays[0])  # 0 or 1
            # lerp is exact at 0 and 1, and three times as fast as where.
            torch.lerp(other, gradient, stays, out=gradient)
        dx, dy, energy = gradient.view(3, PLACES, cells)
        magnitude = torch.sqrt(energy, out=votes[0])
        orientation = self._orientation(dx, dy, scratch.view(4, PLACES, cells))
        torch.mul(orientation, magnitude, out=votes[1])
        torch.minimum(orientation, self._knots.view(KNOTS, 1, 1), out=votes[2:])
        votes[2:] *= magnitude
        torch.matmul(self._spatial, votes, out=shared)
        return torch.mm(self._hats, shared.view(PLANES, -1)).view(BINS, 16, cells)

    def _orientation(self, dx: Tensor, dy: Tensor, scratch: Tensor) -> Tensor:
        """Return the gradients' direction in bins, -5 … 4, the sign of the gradient ignored. Uses all up."""
        flat, steep, is_steep = scratch[:3]
        torch.abs(dx, out=flat)
        torch.abs(dy, out=steep)
        torch.gt(steep, flat, out=is_steep)
        sign = torch.mul(dx, dy, out=dx)
        ratio = torch.minimum(flat, steep, out=dy)
        ratio /= torch.maximum(flat, steep, out=flat).add_(1e-16)
        p1, p3, p5, p7 = self._atan
        square = torch.mul(ratio, ratio, out=flat)
        angle = torch.mul(square, p7, out=steep).add_(p5)
        torch.addcmul(p3, angle, square, out=angle)
        torch.addcmul(p1, angle, square, out=angle)
        angle *= ratio
        torch.lerp(angle, torch.sub(BINS / 2, angle, out=ratio), is_steep, out=angle)
        return torch.copysign(angle, sign, out=angle).sub_(0.5)


def _gradient(channel: Tensor, out: Tensor) -> None:
    """Write dx, dy and dx² + dy² of the gamma-corrected channel to `out`, (3, 8, 8, cells)."""
    channel.floor_()
    # On the CPU torch leaves the square root to MKL, whose roots of 49 of the 256 levels are off in the last
    # digit: enough to turn ties between channels, one of which can move a window's score by 0.04.
    if channel.is_cuda:
        channel.sqrt_()
    else:
        np.sqrt(channel.numpy(), out=channel.numpy())
    dx = torch.sub(channel[1:-1, 2:], channel[1:-1, :-2], out=out[0])
    dy = torch.sub(channel[2:, 1:-1], channel[:-2, 1:-1], out=out[1])
    torch.mul(dx, dx, out=out[2])
    # No addcmul here: a fused multiplication rounds once less than OpenCV, and ties fall otherwise.
    out[2] += dy * dy


def spatial_weights() -> Tensor:
    """Return (16, 64) float32: how much of the pixel at each place of a cell goes to which cell.

    Rows: the quarter of the block that the pixel lies in (down, across), then the block's cell that gets
    the share (across, down). Columns: the pixel's place, row by row.
    """
    axis = torch.zeros(2, 2, CELL, dtype=torch.float64)  # quarter, cell, place
    for pixel in range(2 * CELL):
        gaussian = math.exp(-((pixel - CELL) ** 2) / (2 * 4.0**2))
        position = (pixel + 0.5) / CELL - 0.5
        cell = math.floor(position)
        for neighbour, share in ((cell, cell + 1 - position), (cell + 1, position - cell)):
            if neighbour in (0, 1):
                axis[pixel // CELL, neighbour, pixel % CELL] += gaussian * share
    both = torch.einsum("dvp,ahq->dahvpq", axis, axis)
    return both.reshape(16, PLACES).float()


def hat_coefficients() -> Tensor:
    """Return (9, 10) float32: the bins' shares as sums of 1, a and min(a, k), k = -4 … 3.

    A gradient at a bins, -5 ≤ a ≤ 4, gives each bin a share that falls linearly from 1 at its centre to 0 at
    its neighbours'. Such a hat is a second difference of the functions min(a, k), which take one look at a.
    Bins -5 and 4 are the same, as half a turn is none.
    """
    lesser = torch.zeros(BINS + 1, PLANES)  # min(a, k) for k = -5 … 4: -5, as a is no less; those; a itself
    lesser[0, 0] = LOWEST
    lesser[1:-1, 2:] = torch.eye(KNOTS)
    lesser[-1, 1] = 1
    steps = lesser.diff(dim=0)  # each rises from 0 to 1 between two neighbouring centres
    none = torch.zeros(1, PLANES)
    hats = torch.cat([none, steps]) - torch.cat([steps, none])  # of bins -5 … 4
    hats[0, 0] += 1  # bin -5 only falls: from 1, at a = -5
    hats[0] += hats[-1]
    return hats[:-1].roll(LOWEST, dims=0)  # bin 0 first
