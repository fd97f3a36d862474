"""What CLIP guidance climbs, and its gradient: of an image, and of a noised latent.

Image (Crowson's CLIP-guided diffusion; the similarity as in guided-diffusion's classifier form):

    J(x) = s * sum_i w_i mean_k cos(f(cut_k(x)), g_i) - s_tv * TV(x) - s_range * R(x)

Latent (GLIDE, Nichol et al. 2021, section 4.2), f the noise-aware CLIP: J(z_t) = s * sum_i w_i f(z_t, t) .
g_i. Weights are taken as they are given, not normalised.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from sfumato.encoder.cutouts import make_cutouts
from sfumato.encoder.engine_torch import JointEncoder
from sfumato.encoder.noised import NoisedClip


@dataclass(frozen=True)
class Targets:
    """Unit vectors [targets, embed_dim] and their weights [targets]."""

    embeddings: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class ImageObjective:
    """Options of J(x)."""

    num_cutouts: int  # 1 or more; 1: the centred square
    cut_power: float  # above 0
    seed: int  # of the cutouts
    similarity_scale: float  # s
    tv_scale: float  # s_tv, 150 beside s = 1000 is typical
    range_scale: float  # s_range, 50 beside s = 1000 is typical


@dataclass(frozen=True)
class Guided:
    """The terms before their scales, and the objective's gradient, of the input's shape."""

    similarity: float
    total_variation: float
    range: float
    gradient: torch.Tensor


def similarity(features: torch.Tensor, targets: Targets) -> torch.Tensor:
    """sum_i w_i mean_k f_k . g_i for unit f [cutouts, embed_dim]: a scalar."""
    return (features @ targets.embeddings.T).mean(0) @ targets.weights


def total_variation(image: torch.Tensor) -> torch.Tensor:
    """Mean squared difference to the neighbours on the right and below (edges repeated): a scalar."""
    padded = F.pad(image, (0, 1, 0, 1), "replicate")
    right = padded[..., :-1, 1:] - padded[..., :-1, :-1]
    below = padded[..., 1:, :-1] - padded[..., :-1, :-1]
    return (right.square() + below.square()).mean()


def range_loss(image: torch.Tensor) -> torch.Tensor:
    """Mean square of what lies beyond [-1, 1]: a scalar."""
    return (image - image.clamp(-1, 1)).square().mean()


def guide_image(
    joint: JointEncoder, image: torch.Tensor, targets: Targets, objective: ImageObjective
) -> Guided:
    """J(x) and dJ/dx for x [1, 3, height, width], RGB in [-1, 1]."""
    with torch.enable_grad():
        x = image.detach().to(joint.device, joint.dtype).clone().requires_grad_()
        cutouts = make_cutouts(
            x, joint.image_size, objective.num_cutouts, objective.cut_power, objective.seed
        )
        likeness = similarity(joint.traced_features(cutouts), _like(targets, x))
        variation, overflow = total_variation(x), range_loss(x)
        total = (
            objective.similarity_scale * likeness
            - objective.tv_scale * variation
            - objective.range_scale * overflow
        )
        gradient = torch.autograd.grad(total, x)[0].cpu()
    return Guided(likeness.item(), variation.item(), overflow.item(), gradient)


def guide_latents(
    noised: NoisedClip,
    latents: torch.Tensor,
    timestep: float,
    targets: Targets,
    similarity_scale: float,
) -> Guided:
    """J(z_t) and dJ/dz_t for z_t [1, C, h, w], variance preserving."""
    with torch.enable_grad():
        z = latents.detach().to(noised.device, noised.dtype).clone().requires_grad_()
        likeness = similarity(noised.features(z, timestep), _like(targets, z))
        gradient = torch.autograd.grad(similarity_scale * likeness, z)[0].cpu()
    return Guided(likeness.item(), 0.0, 0.0, gradient)


def _like(targets: Targets, x: torch.Tensor) -> Targets:
    return Targets(targets.embeddings.to(x.device, x.dtype), targets.weights.to(x.device, x.dtype))
