"""Losses under CLIP, as pure functions of unit embeddings.

Embeddings are float [..., d] of length 1. Distances keep the leading dimensions; the caller averages over
views.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F


def spherical_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """2 arcsin(|a - b| / 2)^2: half the squared angle (Crowson et al. 2022, VQGAN-CLIP, section 2)."""
    # The clamp keeps the root's gradient finite where a = b.
    chord = (a - b).square().sum(-1).clamp(min=1e-12).sqrt()
    return 2 * (chord / 2).clamp(max=1 - 1e-6).arcsin().square()


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - cos, 0 to 2."""
    return 1 - (a * b).sum(-1)


DISTANCES = {"spherical": spherical_distance, "cosine": cosine_distance}


def directional_loss(change: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - cos of two differences of embeddings, of any length (StyleGAN-NADA; Text2LIVE, equation 4)."""
    return 1 - F.cosine_similarity(change, wanted, dim=-1, eps=1e-8)


@dataclass(frozen=True)
class Targets:
    """What views shall match: texts and images alike, m of them."""

    embeds: torch.Tensor  # [m, d], unit
    weights: torch.Tensor  # [m]; negative: push away
    stops: torch.Tensor  # [m]; the loss has no gradient below


def prompt_loss(views: torch.Tensor, targets: Targets, distance: str = "spherical") -> torch.Tensor:
    """Weighted sum over targets of the mean distance of the views [n, d].

    A negative weight turns the distance's sign, so that its stop is reached from above as well.
    """
    signs = targets.weights.sign()
    distances = signs * DISTANCES[distance](views[:, None], targets.embeds[None])
    kept = torch.maximum(distances, targets.stops)
    return (targets.weights.abs() * kept.mean(0)).sum()


class ClampWithGradient(torch.autograd.Function):
    """Clamps; the gradient passes inside the range, and outside only where descent leads back into it."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor, low: float, high: float
    ) -> torch.Tensor:
        """x clamped to [low, high]."""
        ctx.save_for_backward(x)
        ctx.low, ctx.high = low, high  # type: ignore[attr-defined]
        return x.clamp(low, high)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grads: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        """Of (x - clamp(x)) and the gradient, equal signs mean that the step x - lr * grad goes back."""
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        overflow = x - x.clamp(ctx.low, ctx.high)  # type: ignore[attr-defined]
        return grads[0] * (grads[0] * overflow >= 0), None, None


def clamp_with_gradient(x: torch.Tensor, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """x clamped to [low, high], trainable from outside."""
    clamped: torch.Tensor = ClampWithGradient.apply(x, low, high)  # type: ignore[no-untyped-call]
    return clamped
