"""One image's guidance: from a point of its trajectory to the prediction and the gradient that steer it.

Which calls a step makes is all that the kinds differ in:

    none, cfg       denoiser
    clip            denoiser, decoder, encoder, decoder back, denoiser back (path predicted_x0)
    noised_clip     denoiser, encoder
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sfumato.gateway.clip_gradient import (
    ClipServices,
    Decoding,
    DifferentiableDenoiser,
    Targets,
    check_finite,
    image_gradient,
)
from sfumato.gateway.guidance import Guided, Point, clamped, classifier_free, finite, row_weights
from sfumato.gateway.guidance_options import PREDICTED_X0, ClipOptions
from sfumato.gateway.linear_trajectory import Mix
from sfumato.gateway.parameters import Parameters
from sfumato.gateway.stages import stage


def mix(p: Parameters, index: int, num_steps: int) -> Mix:
    """What a step takes of the rows' predictions, under no guidance but plain classifier-free."""
    if not p.guided:
        return Mix((), (1.0,))
    if not p.guidance.is_active(index, num_steps):  # the null text is not needed
        return Mix((p.prompt_row,), (1.0,))
    return Mix((), row_weights(p.guidance_scale))


class NoisePred(Protocol):
    """The denoiser's forward pass, or what watches it."""

    async def __call__(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        *,
        rows: Sequence[int] = (),
        keep_graph: bool = False,
    ) -> torch.Tensor:
        """[rows, C, h, w] for one latent [1, C, h, w]; rows: of the conditioning, none named: all."""


@dataclass(frozen=True)
class Steering:
    """Calls what the request's kind of guidance needs.

    Attributes:
        parameters: the request's.
        seed: of the image; each step's cutouts are drawn from it and the step.
        noise_pred: the denoiser's forward pass.
        denoiser: its backward pass.
        targets: what CLIP compares with; None where the kind does not use it.
        services: encoder and decoder.
        decoding: the decoder's stream; None where the kind does not decode.
    """

    parameters: Parameters
    seed: int
    noise_pred: NoisePred
    denoiser: DifferentiableDenoiser
    targets: Targets | None = None
    services: ClipServices | None = None
    decoding: Decoding | None = None

    async def __call__(self, point: Point) -> Guided:
        """The prediction to take at this point, and the gradient to follow.

        Raises:
            SfumatoError: a prediction or gradient is not finite.
        """
        p, guidance = self.parameters, self.parameters.guidance
        active = guidance.is_active(point.index, point.num_steps)
        clip = guidance.clip if active else None
        rows = await self.noise_pred(
            point.index,
            point.model_input,
            point.timestep,
            rows=mix(p, point.index, point.num_steps).rows,
            keep_graph=self.decoding is not None and clip is not None and clip.path == PREDICTED_X0,
        )
        combine = functools.partial(
            classifier_free, guidance_scale=p.guidance_scale, rescale=guidance.rescale
        )
        noise_pred = finite(combine(rows), point.index)
        if clip is None:
            return Guided(noise_pred)
        with stage("guide"):
            gradient = await self._gradient(point, rows, combine, clip)
        gradient = check_finite(gradient, "The gradient", point)
        return Guided(noise_pred, clamped(gradient, clip.gradient_clamp))

    async def _gradient(
        self, point: Point, rows: torch.Tensor, combine: "functools.partial[torch.Tensor]", clip: ClipOptions
    ) -> torch.Tensor:
        services, targets = self.services, self.targets
        assert services is not None
        assert targets is not None
        if self.decoding is None:
            return await services.guide_latents(point.model_input, point.timestep, targets, clip.scale)
        seed = (self.seed * 1_000_003 + point.index) % 2**63
        return await image_gradient(
            point,
            rows,
            combine,
            lambda image: services.guide_image(image, targets, clip, seed),
            self.decoding,
            self.denoiser,
            clip.path,
        )
