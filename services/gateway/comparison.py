"""One prompt and one noise under several settings of guidance, from one encoding of the texts."""

import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import torch

from sfumato.gateway.alignment import AttentionControl
from sfumato.gateway.clip_gradient import ClipServices
from sfumato.gateway.conditioning import Conditioning, EncodedTexts
from sfumato.gateway.events import Event
from sfumato.gateway.generation import Generation
from sfumato.gateway.model_services import Denoiser, Services
from sfumato.gateway.pace import Pace
from sfumato.gateway.parameters import FamilyInfo, Parameters
from sfumato.gateway.row_steps import row_steps


class EncodedOnce:
    """The services, but texts come from what was encoded before."""

    def __init__(self, services: Services, texts: Sequence[str], encoded: EncodedTexts) -> None:
        self._services = services
        self._rows = {text: row for row, text in enumerate(texts)}
        self._encoded = encoded

    @property
    def gradients(self) -> ClipServices:
        """As the services'."""
        return self._services.gradients

    async def encode_text(self, texts: list[str], adapter: str = "") -> EncodedTexts:
        """As the services', of texts that were encoded."""
        return self._encoded.select([self._rows[text] for text in texts])

    async def encode_image(self, image: bytes, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As the services'."""
        return await self._services.encode_image(image, width, height)

    async def decode(self, latents: torch.Tensor, image_format: str) -> bytes:
        """As the services'."""
        return await self._services.decode(latents, image_format)

    async def preview(self, latents: torch.Tensor, projection: torch.Tensor, image_format: str) -> bytes:
        """As the services'."""
        return await self._services.preview(latents, projection, image_format)

    def open_trajectory(
        self, conditioning: Conditioning, control: AttentionControl | None = None
    ) -> Denoiser:
        """As the services'."""
        return self._services.open_trajectory(conditioning, control)


@dataclass
class Comparison:
    """Runs the settings one after another; the images of one setting run side by side."""

    settings: Sequence[Parameters]
    family: FamilyInfo
    services: Services
    max_input_pixels: int
    pace: Pace
    deadline: float = math.inf  # by time.monotonic, as Generation's

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Each setting's events, with its index; as Generation.events, from the same seeds."""
        texts = list(dict.fromkeys(text for p in self.settings for text in p.conditioning_texts))
        encoded = await self.services.encode_text(texts, self.settings[0].adapter)
        once = EncodedOnce(self.services, texts, encoded)
        costs = [row_steps(parameters, self.family) for parameters in self.settings]
        for index, parameters in enumerate(self.settings):
            # Each setting has its share of the time that is left.
            now, share = time.monotonic(), costs[index] / sum(costs[index:])
            end = now + share * (self.deadline - now)
            generation = Generation(
                parameters, self.family, once, self.max_input_pixels, self.pace, costs[index], end
            )
            async for event in generation.events():
                yield index, event
