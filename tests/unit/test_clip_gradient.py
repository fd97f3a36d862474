"""The composed gradient: what is said when something on the way is not finite."""

import pytest
import torch

from sfumato.common.errors import FailedPrecondition
from sfumato.gateway.clip_gradient import image_gradient
from sfumato.gateway.guidance import Point, classifier_free
from sfumato.gateway.guidance_options import PATHS

NAN = float("nan")


class Services:
    """Decoder and denoiser of a world where pixels are latents; one of their answers may be spoilt."""

    def __init__(self, spoilt: str) -> None:
        self.spoilt = spoilt

    def answer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, or NaN."""
        return tensor * NAN if name == self.spoilt else tensor

    async def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.answer("decode", latents)

    async def guide(self, image: torch.Tensor) -> torch.Tensor:
        return self.answer("guide", torch.ones_like(image))

    async def gradient(self, *arguments: object) -> torch.Tensor:
        gradient = arguments[-1]
        assert isinstance(gradient, torch.Tensor)
        return gradient

    async def close(self) -> None:
        """Nothing is held."""


async def gradient_of(path: str, services: Services, rows: torch.Tensor) -> torch.Tensor:
    """At step 5, at abar 0.25."""
    point = Point(4, 10, torch.ones(1, 1, 2, 2), 500.0, 0.25, "epsilon")
    return await image_gradient(
        point, rows, lambda r: classifier_free(r, 3.0), services.guide, services, services, path
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spoilt", ["decode", "guide"])
async def test_a_gradient_that_is_not_finite_names_the_step_and_what_to_do(path: str, spoilt: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"step 5 is not finite; lower guidance") as error:
        await gradient_of(path, Services(spoilt), torch.ones(2, 1, 2, 2))
    assert (error.value.field, error.value.code) == ("guidance.clip.scale", "FAILED_PRECONDITION")
    assert error.value.limit


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # d x0 / d x_t = 1 / sqrt(abar) = 2; the UNet's part, with its Jacobian the identity, is
        # -sqrt(1 - abar) / sqrt(abar) for the guided row sum (1 - 3) + 3 = 1.
        ("predicted_x0", 2 - 3**0.5),
        ("constant_noise", 2.0),
        ("noisy_latents", 1.0),
    ],
)
async def test_each_path_is_its_chain_rule(path: str, expected: float) -> None:
    class OfIdentity(Services):
        async def gradient(self, *arguments: object) -> torch.Tensor:
            gradient = await super().gradient(*arguments)
            return gradient.sum(0, keepdim=True)

    got = await gradient_of(path, OfIdentity(""), torch.zeros(2, 1, 2, 2))
    assert torch.allclose(got, torch.full((1, 1, 2, 2), expected))
