"""The model services as the sampling loops see them."""

from collections.abc import Sequence
from typing import Protocol

import torch

from sfumato.common.linear_steps import LinearRun, RunResult
from sfumato.gateway.alignment import AttentionControl
from sfumato.gateway.attention_maps import AttentiveDenoiser
from sfumato.gateway.clip_gradient import ClipServices, DifferentiableDenoiser
from sfumato.gateway.conditioning import Conditioning, EncodedTexts
from sfumato.gateway.pace import Replaying
from sfumato.gateway.prompt_to_prompt import EditingDenoiser


class Denoiser(AttentiveDenoiser, DifferentiableDenoiser, EditingDenoiser, Replaying, Protocol):
    """An open trajectory at a denoiser."""

    async def noise_pred(
        self,
        step: int,
        latents: torch.Tensor,
        timestep: float,
        *,
        rows: Sequence[int] = (),
        keep_graph: bool = False,
    ) -> torch.Tensor:
        """[rows, C, h, w] for one latent [1, C, h, w]; rows: of the conditioning, none named: all."""

    async def run(self, step: int, run: LinearRun) -> RunResult:
        """Steps in a row, from `step` on."""

    async def close(self) -> None:
        """Frees what the stream holds."""


class Services(Protocol):
    """The model services as a generation sees them."""

    @property
    def gradients(self) -> ClipServices:
        """What CLIP guidance asks of encoder and decoder."""

    async def encode_text(self, texts: list[str], adapter: str = "") -> EncodedTexts:
        """The conditioning of each text, and its words; adapter: a LoRA adapter's name, or none."""

    async def encode_image(self, image: bytes, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the image's latents."""

    async def decode(self, latents: torch.Tensor, image_format: str) -> bytes:
        """The encoded image."""

    async def preview(self, latents: torch.Tensor, projection: torch.Tensor, image_format: str) -> bytes:
        """About the same, by the family's projection alone."""

    def open_trajectory(
        self, conditioning: Conditioning, control: AttentionControl | None = None
    ) -> Denoiser:
        """A stream for one trajectory; control: for an edit's."""
