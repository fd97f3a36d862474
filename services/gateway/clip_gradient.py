"""The gradient of CLIP's similarity with respect to x_t, composed over the services by the chain rule.

    x0    = (x_t - sqrt(1 - abar) eps) / sqrt(abar)                 here
    image = D(x0)                                                    decoder
    g_img = d J / d image                                            encoder, which takes the cutouts
    g_x0  = g_img . dD/dx0                                           decoder
    g_xt  = (g_x0 - sqrt(1 - abar) g_x0 . deps/dx_t) / sqrt(abar)    denoiser, and here

The part that is computed here, from x_t and the rows' predictions to x0 (classifier-free guidance,
v-prediction and rescaling included), is differentiated by autograd; each service gives the vector-Jacobian
product of its own.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from sfumato.common.errors import FailedPrecondition
from sfumato.gateway.guidance import Point
from sfumato.gateway.guidance_options import CONSTANT_NOISE, NOISY_LATENTS, ClipOptions


@dataclass(frozen=True)
class Targets:
    """Unit vectors [targets, embedding_size] of texts and images, and a weight for each."""

    embeddings: torch.Tensor
    weights: tuple[float, ...]


class Decoding(Protocol):
    """An open stream of decodes and their gradients."""

    async def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [1, C, h, w] to pixels [1, 3, H, W], about -1 to 1."""

    async def gradient(self, image_gradient: torch.Tensor) -> torch.Tensor:
        """image_gradient . d pixels / d latents of the last decode: [1, C, h, w]."""

    async def close(self) -> None:
        """Frees what the stream holds."""


class DifferentiableDenoiser(Protocol):
    """An open trajectory whose last step can be differentiated."""

    async def gradient(self, step: int, noise_pred_gradient: torch.Tensor) -> torch.Tensor:
        """Sum over rows of gradient[row] . d noise_pred[row] / d latents: [1, C, h, w]."""


class ClipServices(Protocol):
    """What CLIP guidance asks of the encoder and the decoder."""

    async def embed_texts(self, texts: list[str], noised: bool = False) -> torch.Tensor:
        """Unit vectors [texts, embedding_size]; noised: to compare with in guide_latents."""

    async def embed_images(self, images: list[bytes], noised: bool = False) -> torch.Tensor:
        """Unit vectors [images, embedding_size]; noised: as of texts."""

    async def guide_image(
        self, image: torch.Tensor, targets: Targets, options: ClipOptions, seed: int
    ) -> torch.Tensor:
        """The objective's gradient with respect to the pixels."""

    async def guide_latents(
        self, latents: torch.Tensor, timestep: float, targets: Targets, scale: float
    ) -> torch.Tensor:
        """The noise-aware objective's gradient with respect to x_t."""

    def open_decoding(self) -> Decoding:
        """A stream for one trajectory's decodes."""


async def embed_targets(options: ClipOptions, services: ClipServices, noised: bool = False) -> Targets:
    """Embeds texts and image prompts, once for a request; noised: for the noise-aware CLIP."""
    parts = [await services.embed_texts(list(options.prompts), noised)]
    if options.image_prompts:
        parts.append(await services.embed_images(list(options.image_prompts), noised))
    return Targets(torch.cat(parts), options.prompt_weights + options.image_prompt_weights)


async def image_gradient(
    point: Point,
    rows: torch.Tensor,
    combine: Callable[[torch.Tensor], torch.Tensor],
    guide: Callable[[torch.Tensor], Awaitable[torch.Tensor]],
    decoding: Decoding,
    denoiser: DifferentiableDenoiser,
    path: str,
) -> torch.Tensor:
    """d J / d x_t, [1, C, h, w].

    Args:
        point: x_t and its noise level. rows: what the UNet predicted at x_t, [rows, C, h, w]; kept there
        for its gradient if the path needs it. combine: rows to the one prediction that the sampler takes.
        guide: an image to d J / d image. decoding, denoiser: the services' vector-Jacobian products. path:
        of guidance_options.PATHS.

    Raises:
        FailedPrecondition: something on the way is not finite.
    """
    if path == NOISY_LATENTS:
        return await _through_decoder(point.model_input, point, guide, decoding)
    with torch.enable_grad():
        x, r = point.model_input.clone().requires_grad_(), rows.clone().requires_grad_()
        x0 = point.predicted_x0(x, combine(r))
    g_x0 = await _through_decoder(x0.detach(), point, guide, decoding)
    if path == CONSTANT_NOISE:
        return g_x0 / point.alpha_cumprod**0.5
    g_x, g_rows = torch.autograd.grad(x0, (x, r), g_x0)
    g_rows = check_finite(g_rows, "The gradient with respect to the noise prediction", point)
    return g_x + await denoiser.gradient(point.index, g_rows)


async def _through_decoder(
    latents: torch.Tensor,
    point: Point,
    guide: Callable[[torch.Tensor], Awaitable[torch.Tensor]],
    decoding: Decoding,
) -> torch.Tensor:
    """d J(D(latents)) / d latents."""
    image = await decoding.decode(check_finite(latents, "The predicted image", point))
    g_image = await guide(check_finite(image, "The decoded image", point))
    return await decoding.gradient(check_finite(g_image, "CLIP's gradient", point))


def check_finite(tensor: torch.Tensor, what: str, point: Point) -> torch.Tensor:
    """The tensor, or FailedPrecondition where it has NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise FailedPrecondition(
            f"{what} of step {point.index + 1} is not finite; lower guidance.clip.scale or gradient_clamp, "
            f"or take more steps",
            field="guidance.clip.scale", limit="small enough for a finite gradient", value="NaN or infinity",
        )  # fmt: skip
    return tensor
