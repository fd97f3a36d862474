"""VQGAN+CLIP: generation and editing (Crowson et al. 2022; defaults of nerdyrodent/VQGAN-CLIP).

CLIP's loss is descended over z, the continuous latents of a VQGAN in front of its codebook:

    min over z of  sum_i weight_i D(CLIP(views of G(q(z))), t_i)  +  init_weight |z - z_0|^2 / 2

q takes the nearest codebook entry and passes the gradient straight through (Esser et al. 2021, equation 2).
After each step z is clamped to the codebook's range in each channel. z_0: an image's latents, or a random
start.

z: float [1, d, height / f, width / f]; the image: [1, 3, height, width] in [0, 1].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from sfumato.common.augmentations import uniform
from sfumato.common.errors import InvalidArgument
from sfumato.common.seeding import generator_of
from sfumato.editor.clip import Clip
from sfumato.editor.cutouts import make_cutouts
from sfumato.editor.losses import Targets, clamp_with_gradient, prompt_loss
from sfumato.editor.method import (
    ImagePrompt,
    Inputs,
    Method,
    Models,
    Progress,
    Prompt,
    Tensors,
    choice,
    prompts,
    real,
    whole,
)
from sfumato.editor.optimised import Optimised, iterate
from sfumato.editor.pixels import fitted, to_image, to_tensor, working_size


@dataclass(frozen=True)
class Options:
    """Defaults: nerdyrodent/VQGAN-CLIP."""

    prompts: tuple[Prompt, ...] = prompts()
    image_prompts: tuple[ImagePrompt, ...] = ()
    noise_prompts: int = whole(0, 0, 8)  # random unit embeddings, weight 1
    seed: int = whole(0, 0, 2**63 - 1)
    num_iterations: int = whole(500, 1, 20_000)
    learning_rate: float = real(0.1, 1e-6, 10.0)  # Adam
    size: int = whole(0, 0, 1024)  # longest side, pixels; 0: the image's, at most 512, or the VQGAN's own
    start: str = choice("codes", "gradient", "noise")  # where a generation without an image begins
    init_weight: float = real(0.0, 0.0, 1e4)
    num_cutouts: int = whole(32, 1, 256)
    cutouts: str = choice("pooled", "cropped")
    cutout_power: float = real(1.0, 0.1, 10.0)
    distance: str = choice("spherical", "cosine")


def quantise(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The nearest codebook row [k, d] at each place of z [1, d, h, w]; the gradient is that of z."""
    rows = z.permute(0, 2, 3, 1)
    squared = rows.square().sum(-1, keepdim=True) + codebook.square().sum(1) - 2 * rows @ codebook.T
    nearest = codebook[squared.argmin(-1)].permute(0, 3, 1, 2)
    return z + (nearest - z).detach()


class State(Optimised):
    """z and Adam's moments."""

    def __init__(
        self, options: Options, vqgan: Any, clip: Clip, z: torch.Tensor, generator: torch.Generator
    ) -> None:
        self.z = z.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([self.z], lr=options.learning_rate)
        super().__init__(options.num_iterations, {"z": self.z}, optimizer, generator)
        self.options, self.vqgan, self.clip, self.z0 = options, vqgan, clip, z.detach().clone()
        self.codebook: torch.Tensor = vqgan.quantize.embedding.weight
        self.targets: Targets

    def decode(self) -> torch.Tensor:
        """G(q(z)), in [0, 1]."""
        decoded = self.vqgan.decode(quantise(self.z, self.codebook), force_not_quantize=True).sample
        return clamp_with_gradient((decoded + 1) / 2)

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """The image of z."""
        return to_image(self.decode())

    def result(self) -> dict[str, Image.Image | Tensors]:
        """The image of z."""
        return {"image": self.preview()}


def check(options: Options, inputs: Inputs) -> None:
    """
    Raises:
        InvalidArgument: there is nothing to aim at.
    """
    if not (options.prompts or options.image_prompts or options.noise_prompts):
        raise InvalidArgument("prompts", "given, or image prompts or noise prompts", "empty")


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        InvalidArgument: as `check`, or the image is of less than 8 pixels.
    """
    check(options, inputs)
    clip = Clip(models.clip, models.tokenizer, models.device)
    generator = generator_of(options.seed, models.device)
    factor = 2 ** (len(models.vqgan.config.block_out_channels) - 1)
    size = working_size(inputs.image, options.size, models.vqgan.config.sample_size, factor)
    if inputs.image is not None:
        pixels = to_tensor(fitted(inputs.image, size), models.device)
        z = encode(models.vqgan, pixels)
    else:
        z = first_latents(options.start, models.vqgan, size, factor, generator)
    state = State(options, models.vqgan, clip, z, generator)
    dimensions = clip.embed_texts([""]).shape[1]
    noise = torch.randn(options.noise_prompts, dimensions, generator=generator, device=models.device)
    noise = F.normalize(noise, dim=-1)
    state.targets = clip.targets(options.prompts, options.image_prompts, inputs.image_prompts, noise)
    return state


@torch.no_grad()
def encode(vqgan: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pre-quantisation latents of pixels in [0, 1]."""
    latents: torch.Tensor = vqgan.encode(pixels * 2 - 1).latents
    return latents


@torch.no_grad()
def first_latents(
    kind: str, vqgan: Any, size: tuple[int, int], factor: int, generator: torch.Generator
) -> torch.Tensor:
    """Random codebook entries, or the latents of a gradient between random colours, or of noise."""
    width, height = size
    device = generator.device
    if kind == "codes":
        codebook = vqgan.quantize.embedding.weight
        grid = (1, height // factor, width // factor)
        indices = torch.randint(len(codebook), grid, generator=generator, device=device)
        codes: torch.Tensor = codebook[indices].permute(0, 3, 1, 2)
        return codes
    if kind == "noise":
        return encode(vqgan, uniform(generator, 0, 1, 1, 3, height, width))
    corners = uniform(generator, 0, 1, 1, 3, 2, 2)
    return encode(vqgan, F.interpolate(corners, size=(height, width), mode="bilinear", align_corners=True))


def losses(state: State, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weighted terms of the equation above."""
    options = state.options
    views = make_cutouts(
        image, options.cutouts, options.num_cutouts, state.clip.side, options.cutout_power, state.generator
    )
    terms = {"clip": prompt_loss(state.clip.embed_images(views), state.targets, options.distance)}
    if options.init_weight:
        terms["init"] = options.init_weight * F.mse_loss(state.z, state.z0) / 2
    return terms


def step(state: State) -> dict[str, float]:
    """One iteration of Adam; then z goes back into the codebook's range, channel by channel."""
    values = state.descend(losses(state, state.decode()))
    low = state.codebook.amin(0).view(1, -1, 1, 1)
    high = state.codebook.amax(0).view(1, -1, 1, 1)
    with torch.no_grad():
        state.z.copy_(state.z.clamp(low, high))
    return values


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("vqgan-clip", Options, ("clip", "vqgan"), False, start, run, check)
