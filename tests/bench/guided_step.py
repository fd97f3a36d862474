"""One CLIP-guided step through the services against the same step in one process by autograd, in one run.

`python -m tests.bench.guided_step` prints seconds per step of both and their ratio, measured alternately so
that a busy machine slows both. Both take DDIM steps from one noise, with CLIP through the predicted x0, the
same cutouts and the gradient through decoder and UNet.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sfumato.decoder.engine_torch import TorchAutoencoder
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.encoder.cutouts import make_cutouts
from sfumato.encoder.engine_torch import JointEncoder, TextEncoder
from sfumato.gateway.guidance import clamped, score_form, x0_of
from sfumato.gateway.sampling import make_scheduler, noise_levels, set_timesteps
from sfumato_client import Client
from sfumato_client.stack import local_stack

PROMPT, SCALE, CUTOUTS = "a cat on a blue background", 100.0, 4
CPU = torch.device("cpu")


class OneProcess:
    """All models in one process, as a script would hold them."""

    def __init__(self, family: Path) -> None:
        self.unet, self.vae = TorchUNet(family, CPU), TorchAutoencoder(family, CPU)
        self.joint = JointEncoder(f"local-dir:{family / 'clip'}", CPU)
        self.null = TextEncoder(family, CPU).encode([""])[0].clone()
        self.text = self.joint.embed_texts([PROMPT]).clone()

    def sample(self, scheduler_config: dict[str, Any], num_steps: int) -> float:
        """Seconds per step of one image."""
        scheduler = make_scheduler("ddim", scheduler_config)
        timesteps = set_timesteps(scheduler, num_steps, 1.0)
        levels = noise_levels(scheduler, timesteps)
        config, generator = self.unet.config, torch.Generator().manual_seed(1)
        side = config.sample_size
        latents = torch.randn(1, config.in_channels, side, side, generator=generator)
        start = time.perf_counter()
        for index, (timestep, level) in enumerate(zip(timesteps, levels, strict=True)):
            latents = self._step(scheduler, latents, timestep, level, index)
        return (time.perf_counter() - start) / num_steps

    def _step(
        self, scheduler: Any, latents: torch.Tensor, timestep: torch.Tensor, level: float, index: int
    ) -> torch.Tensor:
        kind = scheduler.config.prediction_type
        x = latents.detach().requires_grad_()
        noise_pred = self.unet.model(x, timestep, self.null, return_dict=False)[0]
        x0 = x0_of(x, noise_pred, level, kind)
        image = self.vae.model.decode(x0 / self.vae.scaling_factor, return_dict=False)[0]
        cutouts = make_cutouts(image, self.joint.image_size, CUTOUTS, 1.0, index)
        similarity = (self.joint.features_of(cutouts) @ self.text.T).mean()
        gradient = clamped(torch.autograd.grad(SCALE * similarity, x)[0], 1.0)
        guided = score_form(noise_pred.detach(), gradient, level, kind)
        after: torch.Tensor = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        return after


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    one_process = OneProcess(arguments.family)
    config = json.loads((arguments.family / "scheduler" / "scheduler_config.json").read_text())
    with (
        tempfile.TemporaryDirectory() as logs,
        local_stack(arguments.family, log_dir=Path(logs)) as stack,
        Client(stack.target) as client,
    ):

        def served() -> float:
            result = client.generate(
                PROMPT, seed=1, num_inference_steps=arguments.steps, scheduler="ddim", guidance="clip",
                clip_guidance_scale=SCALE, num_cutouts=CUTOUTS,
            )  # fmt: skip
            return result.timings.denoise_seconds / arguments.steps

        for _ in range(2):
            one_process.sample(config, arguments.steps), served()
        pairs = [(one_process.sample(config, arguments.steps), served()) for _ in range(arguments.repeats)]
    alone, through = (statistics.median(column) for column in zip(*pairs, strict=True))
    figures = {
        "one_process_ms": round(1000 * alone, 2),
        "served_ms": round(1000 * through, 2),
        "guided_step_ratio": round(through / alone, 3),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
