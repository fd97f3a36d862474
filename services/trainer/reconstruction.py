"""How far decoded images, in about [-1, 1], are from those that were encoded: the loss, and PSNR."""

import torch


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean squared error, and a tenth of the mean absolute one; both float [n, 3, h, w] in [-1, 1]."""
    error = decoded - pixels
    return error.square().mean() + 0.1 * error.abs().mean()


def to_uint8(decoded: torch.Tensor) -> torch.Tensor:
    """Rounded to 8 bits; the other way is batches.to_pixels."""
    return (decoded * 0.5 + 0.5).clamp(0, 1).mul(255).round().byte()


def psnr(decoded: torch.Tensor, images: torch.Tensor) -> float:
    """Mean over images of the PSNR in dB, after rounding; images: uint8 [n, 3, h, w]."""
    errors = (to_uint8(decoded).float() - images.float()).square().flatten(1).mean(1).clamp(min=1e-3)
    return float((10 * torch.log10(255**2 / errors)).mean())
