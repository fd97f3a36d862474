"""Which steps of different callers may share the UNet's forward on a device, and what they gain by it."""

from pathlib import Path
from typing import Any

import torch

from sfumato.common.forwards import Tensors, concatenated
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import TorchUNet, inputs
from tests.bench.step_profile import median_seconds, row_of

ROWS_OF_A_STEP = 2  # with and without the prompt: one forward always
STEPS = (2, 4, 8)  # 16 rows, which MAX_GPU_ROWS allows
REPEATS = 7


def rows_together(
    family: Path, device: torch.device, dtype: torch.dtype, side: int, tokens: int
) -> dict[str, Any]:
    """The denoiser's own trial of several steps together; side: of the latents.

    Returns:
        rows_that_fit: that memory has room for, None on a CPU. steps: for each number whether each step has
        the bits that it has alone, without which they go apart, and seconds together over apart.
    """
    unet = TorchUNet(family, device, dtype)
    latents, row = row_of(unet, side, tokens)
    unet.forward.warm(device, *inputs(latents, 500.0, row))
    found = [_together(unet, [_step(unet, latents, tokens, seed) for seed in range(n)]) for n in STEPS]
    return {
        "rows_that_fit": unet.forward.rows_at_most(latents) if device.type == "cuda" else None,
        "steps": found,
    }


def _together(unet: TorchUNet, steps: list[Tensors]) -> dict[str, Any]:
    forward, count = unet.forward, len(steps)
    forward.outcomes(steps)
    tried = {shapes[0]: same for shapes, same in forward.same_bits.items()}  # by the number of steps
    if count not in tried:
        return {"steps": count, "failed": "no memory for it"}
    many = concatenated(steps)
    together = median_seconds(lambda: forward.run(*many), REPEATS)
    apart = count * median_seconds(lambda: forward.run(*steps[0]), REPEATS)
    return {
        "steps": count, "same_bits": tried[count], "together_over_apart": round(together / apart, 3)
    }  # fmt: skip


def _step(unet: TorchUNet, latents: torch.Tensor, tokens: int, seed: int) -> Tensors:
    """The rows of a caller's step."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(ROWS_OF_A_STEP, tokens, unet.config.cross_attention_dim, generator=generator)
    return inputs(torch.randn(latents.shape, generator=generator), 100.0 * seed, Conditioning(embeds))
