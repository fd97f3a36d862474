"""Random views of images for losses under CLIP: differentiable, batched, seeded by an explicit generator.

Images are float [n, 3, h, w] in [0, 1]; each image of the batch draws its own parameters; a transform is
applied with probability `p`. The kinds and sizes are those of VQGAN+CLIP (nerdyrodent) and Text2LIVE's
code.

Geometric transforms are 3x3 homographies from output to input coordinates, both in [-1, 1] (the corners of
the image), so that several of them are composed and cost one resampling.
"""

import math

import torch
from torch.nn import functional as F

# Luma of ITU-R BT.601, as image libraries convert to grey.
LUMA = (0.299, 0.587, 0.114)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> torch.Tensor:
    """U(low, high), drawn on the generator's device."""
    return torch.rand(*shape, generator=generator, device=generator.device) * (high - low) + low


def affine(
    generator: torch.Generator,
    n: int,
    degrees: float,
    shift: float,
    shear: float = 0.0,
    p: float = 1.0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Rotation and shear within +-degrees and +-shear, translation within +-shift of a side: [n, 3, 3]."""
    angle = torch.deg2rad(uniform(generator, -degrees, degrees, n))
    sheared = torch.tan(torch.deg2rad(uniform(generator, -shear, shear, n)))
    zoom = 1 / uniform(generator, *scale, n)
    moved = uniform(generator, -2 * shift, 2 * shift, n, 2)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [cos, cos * sheared - sin, moved[:, 0], sin, sin * sheared + cos, moved[:, 1], zero, zero, one]
    return sometimes(generator, torch.stack(rows, 1).view(n, 3, 3), p)


def perspective(generator: torch.Generator, n: int, distortion: float, p: float = 1.0) -> torch.Tensor:
    """Each corner moves inwards by up to distortion/2 of the side, both ways independently: [n, 3, 3]."""
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], device=generator.device)
    moved = corners * (1 - uniform(generator, 0, distortion, n, 4, 2))
    return sometimes(generator, homography(moved, corners.expand(n, 4, 2)), p)


def homography(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The matrices that take each of 4 source points [n, 4, 2] to its target, with m_33 = 1: [n, 3, 3]."""
    x, y, u, v = source[..., 0], source[..., 1], target[..., 0], target[..., 1]
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    first = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    second = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    flat = torch.linalg.solve(torch.cat([first, second], 1), torch.cat([u, v], 1))
    return torch.cat([flat, one[:, :1]], 1).view(-1, 3, 3)


def flip(generator: torch.Generator, n: int, p: float = 0.5) -> torch.Tensor:
    """Left to right: [n, 3, 3]."""
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0], device=generator.device))
    return sometimes(generator, mirror.expand(n, 3, 3), p)


def sometimes(generator: torch.Generator, matrices: torch.Tensor, p: float) -> torch.Tensor:
    """Each matrix with probability p, else the identity."""
    chosen = uniform(generator, 0, 1, len(matrices), 1, 1) < p
    return torch.where(chosen, matrices, torch.eye(3, device=matrices.device))


def crop(generator: torch.Generator, n: int, low: float, high: float = 1.0) -> torch.Tensor:
    """A random box of low to high of each side, the sides independently: [n, 3, 3]."""
    sides = uniform(generator, low, high, n, 2)
    middles = uniform(generator, -1, 1, n, 2) * (1 - sides)
    return torch.diag_embed(F.pad(sides, (0, 1), value=1.0)) + _shifted(middles)


def _shifted(middles: torch.Tensor) -> torch.Tensor:
    return F.pad(middles[:, :, None], (2, 0, 0, 1))


def warp(
    images: torch.Tensor, matrices: torch.Tensor, fill: float = 0.0, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Resamples bilinearly.

    Args:
        matrices: [n, 3, 3], from output to input.
        fill: what lies outside the input.
        size: (height, width) of the output; None: the input's.
    """
    height, width = size or (images.shape[-2], images.shape[-1])
    ys = (torch.arange(height, device=images.device) * 2 + 1) / height - 1
    xs = (torch.arange(width, device=images.device) * 2 + 1) / width - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    points = torch.cat([grid, torch.ones_like(grid[..., :1])], -1).reshape(-1, 3) @ matrices.mT.to(grid)
    points = (points[..., :2] / points[..., 2:].clamp(min=1e-3)).view(len(images), height, width, 2)
    return F.grid_sample(images - fill, points.to(images.dtype), align_corners=False) + fill


def colour_jitter(
    images: torch.Tensor,
    generator: torch.Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float = 1.0,
) -> torch.Tensor:
    """Scales brightness, contrast and saturation by U(1 - x, 1 + x); turns hue by U(-hue, hue) of a circle.

    Hue turns about the grey axis of RGB: linear, so its gradient is exact.
    """
    n = len(images)
    factors = [uniform(generator, 1 - x, 1 + x, n, 1, 1, 1) for x in (brightness, contrast, saturation)]
    angle = uniform(generator, -hue, hue, n) * 2 * math.pi
    chosen = uniform(generator, 0, 1, n, 1, 1, 1) < p
    jittered = images * factors[0]
    jittered = _towards(greyscale(jittered).mean((2, 3), keepdim=True), jittered, factors[1])
    jittered = _towards(greyscale(jittered), jittered, factors[2])
    jittered = torch.einsum("nij,njhw->nihw", grey_axis_rotation(angle).to(images), jittered)
    return torch.where(chosen, jittered.clamp(0, 1), images)


def _towards(anchor: torch.Tensor, images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return anchor + (images - anchor) * factor


def greyscale(images: torch.Tensor) -> torch.Tensor:
    """Luma in all three channels."""
    weights = torch.tensor(LUMA, device=images.device, dtype=images.dtype).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True).expand_as(images)


def random_greyscale(images: torch.Tensor, generator: torch.Generator, p: float) -> torch.Tensor:
    """Each image grey with probability p."""
    chosen = uniform(generator, 0, 1, len(images), 1, 1, 1) < p
    return torch.where(chosen, greyscale(images), images)


def grey_axis_rotation(angle: torch.Tensor) -> torch.Tensor:
    """Rotation about (1, 1, 1) by angles [n], radians (Rodrigues): [n, 3, 3]."""
    axis = torch.full((3,), 3**-0.5, device=angle.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) * 3**-0.5
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3, device=angle.device) + sin * cross + (1 - cos) * torch.outer(axis, axis)


def random_erasing(
    images: torch.Tensor, generator: torch.Generator, low: float = 0.1, high: float = 0.4, p: float = 1.0
) -> torch.Tensor:
    """Blackens a rectangle of low to high of the area, of aspect 0.3 to 1/0.3, with probability p."""
    n, _, height, width = images.shape
    area = uniform(generator, low, high, n)
    aspect = uniform(generator, math.log(0.3), -math.log(0.3), n).exp()
    tall, wide = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    top, left = (uniform(generator, 0, 1, n) * (1 - side) for side in (tall, wide))
    chosen = uniform(generator, 0, 1, n) < p
    ys = (torch.arange(height, device=images.device) + 0.5) / height
    xs = (torch.arange(width, device=images.device) + 0.5) / width
    rows = (ys >= top[:, None]) & (ys < (top + tall)[:, None])
    columns = (xs >= left[:, None]) & (xs < (left + wide)[:, None])
    erased = rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]
    return images * ~erased[:, None]
