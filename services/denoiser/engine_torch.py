"""The UNet in torch (eager)."""

from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel

from sfumato.common.family import part_of
from sfumato.common.gradients import Linearised, linearise
from sfumato.common.traced import Traced


class Unet(Protocol):
    """A UNet for forward passes, whichever engine runs it."""

    config: Any

    def noise_pred(self, latents: torch.Tensor, timestep: float, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """As TorchUNet.noise_pred."""


class TorchUNet:
    """The family's unet/, in float32; in float64 to check gradients by."""

    def __init__(self, family: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.weights = part_of(family, "unet")
        model: Any = UNet2DConditionModel.from_pretrained(self.weights, use_safetensors=True)
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        self.config = self.model.config
        self._traced = Traced(lambda *inputs: self.model(*inputs, return_dict=False)[0])

    @torch.inference_mode()
    def noise_pred(self, latents: torch.Tensor, timestep: float, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """The UNet's prediction for one latent under each row of conditioning.

        Args:
            latents: float32 [1, in_channels, height, width].
            timestep: of the noise schedule.
            prompt_embeds: float32 [rows, tokens, cross_attention_dim].

        Returns:
            float32 [rows, out_channels, height, width], on the CPU.
        """
        rows = len(prompt_embeds)
        sample = latents.to(self.device).expand(rows, -1, -1, -1)
        timesteps = torch.tensor([timestep], device=self.device).expand(rows)
        # A fractional timestep stays float32; whole ones give the same embedding either way.
        result: torch.Tensor = self.model(
            sample, timesteps, prompt_embeds.to(self.device), return_dict=False
        )[0]
        return result.cpu()

    def linearise(self, latents: torch.Tensor, timestep: float, prompt_embeds: torch.Tensor) -> Linearised:
        """The prediction for one row of conditioning, kept for its vector-Jacobian product.

        Args:
            latents: [1, in_channels, height, width].
            timestep: of the noise schedule.
            prompt_embeds: [1, tokens, cross_attention_dim].
        """
        timesteps = torch.tensor([timestep], device=self.device)
        embeds = prompt_embeds.to(self.device, self.dtype)
        return linearise(lambda x: self._traced(x, timesteps, embeds), latents.to(self.device, self.dtype))
