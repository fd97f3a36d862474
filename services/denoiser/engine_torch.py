"""The UNet in torch (eager)."""

import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel

from sfumato.common.adapters import adapted, read_change
from sfumato.common.family import part_of
from sfumato.common.family_parts import check_part
from sfumato.common.gradients import Linearised, linearise
from sfumato.common.traced import Traced
from sfumato.denoiser.conditioning import Conditioning, needed


class Unet(Protocol):
    """A UNet for forward passes, whichever engine runs it: an engine has noise_preds."""

    config: Any
    max_rows_together: int  # of different trajectories in one forward, where that pays; 1: it does not

    def noise_pred(self, latents: torch.Tensor, timestep: float, conditioning: Conditioning) -> torch.Tensor:
        """The UNet's prediction for one latent under each row of conditioning.

        Args:
            latents: float32 [1, in_channels, height, width].
            timestep: of the noise schedule.
            conditioning: one row for each prediction.

        Returns:
            float32 [rows, out_channels, height, width], on the CPU.
        """
        rows = len(conditioning)
        timesteps = torch.full((rows,), timestep, dtype=torch.float32)
        return self.noise_preds(latents.expand(rows, -1, -1, -1), timesteps, conditioning)

    def noise_preds(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Predictions for rows of their own latents and timesteps.

        Args:
            latents: float32 [rows, in_channels, height, width].
            timesteps: float32 [rows], of the noise schedule.
            conditioning: one row for each.

        Returns:
            float32 [rows, out_channels, height, width], on the CPU.
        """
        raise NotImplementedError


class TorchUNet(Unet):
    """The family's unet/, in float32, or a half precision; in float64 to check gradients by.

    Latents, noise predictions and gradients are float32 outside of it, whatever its own precision.
    """

    max_rows_together = 1  # torch picks its kernels' blocking by the number of rows

    def __init__(self, family: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.weights = part_of(family, "unet")
        variant = check_part(family, "unet").variant
        model: Any = UNet2DConditionModel.from_pretrained(
            self.weights, use_safetensors=True, variant=variant, torch_dtype=dtype
        )
        model = model.to(device=device, dtype=dtype)
        if device.type == "cuda":  # where tensor cores want the channels last
            model = model.to(memory_format=torch.channels_last)
        self.model = model.eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        self.config = self.model.config
        self.takes = ("prompt_embeds", *needed(self.config))
        self._traced = Traced(self.predict)

    def with_adapter(self, file: Path) -> "TorchUNet":
        """The UNet with a LoRA adapter in it; shares the weights that do not change.

        Raises:
            WeightsError: it is not an adapter of this UNet.
        """
        changed = copy.copy(self)
        changed.model = adapted(self.model, read_change(file, "unet", self.config), str(file))
        changed._traced = Traced(changed.predict)
        return changed

    @torch.inference_mode()
    def noise_preds(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """As Unet has it."""
        sample = latents.to(self.device, self.dtype)
        given = conditioning.to(self.device, self.dtype).arguments
        # A fractional timestep stays float32; whole ones give the same embedding either way.
        result: torch.Tensor = self.model(sample, timesteps.to(self.device), **given, return_dict=False)[0]
        return result.to("cpu", latents.dtype)

    def linearise(self, latents: torch.Tensor, timestep: float, conditioning: Conditioning) -> Linearised:
        """The prediction for one row of conditioning, kept for its vector-Jacobian product.

        Args:
            latents: [1, in_channels, height, width].
            timestep: of the noise schedule.
            conditioning: one row.
        """
        timesteps = torch.tensor([timestep], device=self.device)
        given = conditioning.to(self.device, self.dtype).tensors.values()

        def prediction(x: torch.Tensor) -> torch.Tensor:
            return self._traced(x.to(self.dtype), timesteps, *given).to(latents.dtype)

        return linearise(prediction, latents.to(self.device))

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        """given: the conditioning's tensors that this UNet takes, in their order."""
        arguments = Conditioning(**dict(zip(self.takes, given, strict=True))).arguments
        result: torch.Tensor = self.model(latents, timesteps, **arguments, return_dict=False)[0]
        return result
