"""Sixteen mixed requests, and how diffusers' pipeline makes them in process: alone, in static batches."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from sfumato.gateway.sampling import make_scheduler
from sfumato_client.requests import GenerateOptions

CPU = torch.device("cpu")
SUBJECTS = ("a cat", "a dog", "a red heart", "a yellow star", "a fox", "a green tree", "an apple", "a fish")
STATIC_BATCH_RULE = (
    "one call of the pipeline takes one number of steps, one sampler, one guidance scale and one size for "
    "all of its images, so requests that agree in these four go together; prompts and seeds may differ. Of "
    "the largest batch sizes 1, 2, 4, 8 and 16 the one with the least total time counts"
)


@dataclass(frozen=True)
class Settings:
    """What a static batch has in common."""

    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    side: int  # pixels


@dataclass(frozen=True)
class Request:
    """One image."""

    settings: Settings
    prompt: str
    seed: int

    @property
    def options(self) -> GenerateOptions:
        """Of the client."""
        s = self.settings
        return {
            "seed": self.seed, "num_inference_steps": s.num_inference_steps, "scheduler": s.scheduler,
            "guidance_scale": s.guidance_scale, "width": s.side, "height": s.side,
        }  # fmt: skip


# Some settings are liked more than others: ten of the sixteen are one of three or four of a kind.
LIKED: tuple[tuple[int, Settings], ...] = (
    (4, Settings(30, "dpmpp_2m", 5.0, 64)),
    (3, Settings(20, "dpmpp_2m", 7.5, 64)),
    (3, Settings(25, "euler_a", 5.0, 96)),
    (2, Settings(20, "ddim", 3.0, 96)),
    (2, Settings(40, "euler", 7.5, 64)),
    (1, Settings(10, "unipc", 5.0, 64)),
    (1, Settings(15, "dpmpp_2m_karras", 4.0, 96)),
)


def mixed_requests() -> list[Request]:
    """The sixteen, those of one setting apart from each other as strangers' requests arrive."""
    settings = [setting for count, setting in LIKED for _ in range(count)]
    order = torch.randperm(len(settings), generator=torch.Generator().manual_seed(0)).tolist()
    return [Request(settings[i], SUBJECTS[seed % len(SUBJECTS)], seed) for seed, i in enumerate(order)]


class InProcess:
    """The pipeline in this process; on a CPU on torch's default number of threads."""

    def __init__(self, family: Path, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> None:
        pipeline: Any = StableDiffusionPipeline.from_pretrained(family, torch_dtype=dtype)
        self._pipeline, self._dtype = pipeline.to(device), dtype
        if device.type == "cuda":  # as the denoiser does, and diffusers' manual advises
            for model in (pipeline.unet, pipeline.vae):
                model.to(memory_format=torch.channels_last)
        self._pipeline.set_progress_bar_config(disable=True)
        self._config = self._pipeline.scheduler.config

    def compile(self, mode: str) -> None:
        """UNet and decoder by torch.compile, whole and for each shape anew; mode: its own."""
        for model in (self._pipeline.unet, self._pipeline.vae.decoder):
            model.compile(mode=mode, fullgraph=True, dynamic=False)

    def images(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Of requests of one setting, in one call."""
        s = requests[0].settings
        self._pipeline.scheduler = make_scheduler(s.scheduler, self._config)
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        # As the pipeline draws them in float32; in a half precision it would draw others.
        latent_side = s.side // self._pipeline.vae_scale_factor
        shape = 1, self._pipeline.unet.config.in_channels, latent_side, latent_side
        latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        images: list[Image.Image] = self._pipeline(
            [request.prompt for request in requests],
            num_inference_steps=s.num_inference_steps, guidance_scale=s.guidance_scale,
            height=s.side, width=s.side, generator=generators, latents=latents.to(self._dtype),
        ).images  # fmt: skip
        return images

    def batch(self, requests: Sequence[Request]) -> float:
        """Seconds for requests of one setting in one call."""
        start = time.perf_counter()
        self.images(requests)
        return time.perf_counter() - start

    def one_at_a_time(self, requests: Sequence[Request]) -> float:
        """Seconds for all."""
        return sum(self.batch([request]) for request in requests)

    def static_batches(self, requests: Sequence[Request], largest: int) -> float:
        """Seconds for all, by STATIC_BATCH_RULE."""
        return sum(self.batch(group) for group in static_groups(requests, largest))

    def model_share(self, request: Request, repeats: int) -> float:
        """Share of the pipeline's own time that its UNet, VAE and text encoder take."""
        spent = [0.0]
        restore = []
        for model in (self._pipeline.unet, self._pipeline.text_encoder, self._pipeline.vae.decoder):
            restore.append((model, model.forward))
            model.forward = _timed(model.forward, spent)
        try:
            total = sum(self.batch([request]) for _ in range(repeats))
        finally:
            for model, forward in restore:
                model.forward = forward
        return spent[0] / total


def static_groups(requests: Sequence[Request], largest: int) -> list[list[Request]]:
    """Batches that a pipeline can take together."""
    alike: dict[Settings, list[Request]] = defaultdict(list)
    for request in requests:
        alike[request.settings].append(request)
    return [group[i : i + largest] for group in alike.values() for i in range(0, len(group), largest)]


def _timed(function: Any, spent: list[float]) -> Any:
    def timed(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[0] += time.perf_counter() - start

    return timed
