"""The UNet in torch (eager)."""

import copy
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel

from sfumato.common.adapters import adapted, read_change
from sfumato.common.family import part_of
from sfumato.common.family_parts import check_part
from sfumato.common.forwards import Forward, Tensors, torch_rows
from sfumato.common.gradients import Linearised, linearise
from sfumato.common.traced import Traced
from sfumato.denoiser.conditioning import Conditioning, needed

# While diffusers makes a model, parameters that anything in the process sets lie on the meta device.
_patched = threading.Lock()

MAX_AREA = 64 * 64  # latent pixels of a CPU's forward; larger rows gain nothing from company, and take memory


class Unet(Protocol):
    """A UNet for forward passes, whichever engine runs it.

    Attributes:
        config: the model's.
        forward: takes latents [rows, in_channels, height, width], timesteps [rows] and the conditioning's
            tensors [rows, ...]; gives noise_pred [rows, out_channels, height, width]. float32, on the CPU.
    """

    config: Any
    forward: Forward

    def noise_pred(self, latents: torch.Tensor, timestep: float, conditioning: Conditioning) -> torch.Tensor:
        """The UNet's prediction for one latent under each row of conditioning.

        Args:
            latents: float32 [1, in_channels, height, width].
            timestep: of the noise schedule.
            conditioning: one row for each prediction.

        Returns:
            float32 [rows, out_channels, height, width], on the CPU.
        """
        (result,) = self.forward.run(*inputs(latents, timestep, conditioning))
        return result


def inputs(latents: torch.Tensor, timestep: float, conditioning: Conditioning) -> Tensors:
    """What Unet.forward takes for one latent [1, C, h, w] under each row of conditioning."""
    rows = len(conditioning)
    timesteps = torch.full((rows,), timestep, dtype=torch.float32)
    return latents.expand(rows, -1, -1, -1), timesteps, *conditioning.tensors.values()


def unet_forward(config: Any, device: torch.device, run: Callable[..., Tensors], max_rows: int) -> Forward:
    """Unet.forward, of a UNet of this configuration; run and max_rows as Forward has them."""
    area = MAX_AREA if device.type == "cpu" else sys.maxsize  # on a GPU `warm` finds the bound
    return Forward("unet", run, max_rows, area * int(config.in_channels))


class TorchUNet(Unet):
    """The family's unet/, in float32, or a half precision; in float64 to check gradients by.

    Latents, noise predictions and gradients are float32 outside of it, whatever its own precision.
    """

    def __init__(self, family: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.weights = part_of(family, "unet")
        variant = check_part(family, "unet").variant
        # Halves become so below: diffusers would make them the whole process's default meanwhile, and other
        # families may be in the middle of a step.
        with _patched:
            model: Any = UNet2DConditionModel.from_pretrained(
                self.weights, use_safetensors=True, variant=variant, torch_dtype=torch.float32
            )
        model = model.to(device=device, dtype=dtype)
        if device.type == "cuda":  # where tensor cores want the channels last
            model = model.to(memory_format=torch.channels_last)
        self.device, self.dtype = device, dtype
        self.config = model.config
        self.takes = ("prompt_embeds", *needed(self.config))
        self._use(model.eval().requires_grad_(False))

    def _use(self, model: Any) -> None:
        self.model = model
        self._traced = Traced(self.predict)
        self.forward = unet_forward(self.config, self.device, self.noise_preds, torch_rows(self.device))

    def with_adapter(self, file: Path) -> "TorchUNet":
        """The UNet with a LoRA adapter in it; shares the weights that do not change.

        Raises:
            WeightsError: it is not an adapter of this UNet.
        """
        changed = copy.copy(self)
        change = read_change(file, "unet", self.config)
        with _patched:
            changed._use(adapted(self.model, change, str(file)))
        changed.forward.max_elements = self.forward.max_elements
        changed.forward.batch_invariant = self.forward.batch_invariant
        return changed

    @torch.inference_mode()
    def noise_preds(self, latents: torch.Tensor, timesteps: torch.Tensor, *given: torch.Tensor) -> Tensors:
        """As Unet.forward has it."""
        sample, *others = (tensor.to(self.device, self.dtype) for tensor in (latents, *given))
        # A fractional timestep stays float32; whole ones give the same embedding either way.
        result = self.predict(sample, timesteps.to(self.device), *others)
        return (result.to("cpu", latents.dtype),)

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
