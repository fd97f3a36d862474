"""Deep image prior, with and without CLIP (Ulyanov, Vedaldi, Lempitsky 2018).

An untrained skip U-Net f_theta(z) with a fixed noise z is the prior: theta is fitted to the one image. It
learns the picture long before it learns the noise, so stopping early denoises (section 3.1), and a loss on
the known pixels alone inpaints (section 3.3). With prompts, CLIP's loss on cutouts joins in; without an
image it is all there is, and the network paints.

    min over theta of  reconstruction_weight |m (f_theta(z + n) - x)|^2 + sum_i weight_i D(CLIP(views), t_i)

Image, mask and output: the image's size, limited to the option; pixels in [0, 1].
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from sfumato.common.augmentations import uniform
from sfumato.common.errors import InvalidArgument
from sfumato.common.seeding import generator_of, initialise
from sfumato.editor.clip import Clip
from sfumato.editor.cutouts import make_cutouts
from sfumato.editor.losses import Targets, prompt_loss
from sfumato.editor.method import (
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
from sfumato.editor.skip_unet import SkipUNet, num_scales_of

INPUT_CHANNELS, INPUT_RANGE = 32, 0.1  # z ~ U(0, 0.1)


@dataclass(frozen=True)
class Options:
    """Defaults: the paper's code (DmitryUlyanov/deep-image-prior), and of CLIP's part VQGAN-CLIP's."""

    prompts: tuple[Prompt, ...] = prompts()
    seed: int = whole(0, 0, 2**63 - 1)
    num_iterations: int = whole(1800, 1, 20_000)  # denoising 1800 to 3000, inpainting up to 6000
    learning_rate: float = real(0.01, 1e-6, 1.0)  # Adam
    size: int = whole(0, 0, 1024)  # longest side, pixels; 0: the image's, at most 512, or CLIP's
    channels: int = whole(128, 8, 256)
    num_scales: int = whole(5, 1, 7)  # fewer where the image is too small for them
    input_noise: float = real(1 / 30, 0.0, 1.0)  # standard deviation of n, anew each iteration
    average_decay: float = real(0.99, 0.0, 0.9999)  # of the exponential average of outputs, the result
    reconstruction_weight: float = real(1.0, 0.0, 1e4)
    num_cutouts: int = whole(32, 1, 256)
    cutouts: str = choice("pooled", "cropped")
    cutout_power: float = real(1.0, 0.1, 10.0)
    distance: str = choice("spherical", "cosine")


class State(Optimised):
    """theta, Adam's moments, and the average of the outputs."""

    def __init__(
        self, options: Options, network: SkipUNet, generator: torch.Generator, z: torch.Tensor
    ) -> None:
        trained: Tensors = dict(network.named_parameters())
        optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        average = torch.zeros(1, 3, *z.shape[-2:], device=z.device)
        super().__init__(options.num_iterations, trained, optimizer, generator, {"average": average})
        self.options, self.network, self.z = options, network, z
        self.clip: Clip | None = None
        self.targets: Targets | None = None
        self.image: torch.Tensor | None = None  # [1, 3, h, w]
        self.known: torch.Tensor | None = None  # [1, 1, h, w], 1 where the image is to be kept; None: no mask

    def preview(self) -> Image.Image:
        """The average so far; known pixels of an inpainting are the image's own."""
        # Weights of the average sum to 1 - decay^k after k iterations.
        weight = 1 - self.options.average_decay ** max(1, self.iteration)
        pixels = self.kept["average"] / weight
        if self.image is not None and self.known is not None:
            pixels = self.known * self.image + (1 - self.known) * pixels
        return to_image(pixels)

    def result(self) -> dict[str, Image.Image | Tensors]:
        """The average of the outputs."""
        return {"image": self.preview()}


def check(options: Options, inputs: Inputs) -> None:
    """
    Raises:
        InvalidArgument: neither image nor prompts.
    """
    if inputs.image is None and not options.prompts:
        raise InvalidArgument("prompts", "given where there is no image", "empty")


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        InvalidArgument: neither image nor prompts, or an image of less than 8 pixels.
    """
    check(options, inputs)
    generator = generator_of(options.seed, models.device)
    clip = Clip(models.clip, models.tokenizer, models.device) if options.prompts else None
    width, height = working_size(inputs.image, options.size, clip.side if clip else 0)
    scales = num_scales_of(height, width, options.num_scales)
    network = SkipUNet(INPUT_CHANNELS, 3, options.channels, num_scales=scales)
    initialise(network, generator_of(options.seed))
    z = uniform(generator, 0, INPUT_RANGE, 1, INPUT_CHANNELS, height, width)
    state = State(options, network.to(models.device), generator, z)
    state.clip = clip
    if clip:
        state.targets = clip.targets(options.prompts)
    if inputs.image is not None:
        state.image = to_tensor(fitted(inputs.image, (width, height)), models.device)
    if inputs.mask is not None and inputs.image is not None:
        mask = inputs.mask.convert("L").resize((width, height), Image.Resampling.NEAREST)
        state.known = (to_tensor(mask, models.device) < 0.5).float()
    return state


def losses(state: State, output: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weighted terms of the equation above."""
    options, terms = state.options, {}
    if state.image is not None:
        error = (output - state.image).square()
        error = error if state.known is None else error * state.known
        terms["reconstruction"] = options.reconstruction_weight * error.mean()
    if state.clip and state.targets:
        views = make_cutouts(
            output,
            options.cutouts,
            options.num_cutouts,
            state.clip.side,
            options.cutout_power,
            state.generator,
        )
        terms["clip"] = prompt_loss(state.clip.embed_images(views), state.targets, options.distance)
    return terms


def step(state: State) -> dict[str, float]:
    """One iteration of Adam, and of the average."""
    noise = torch.randn(state.z.shape, generator=state.generator, device=state.z.device)
    output: torch.Tensor = state.network(state.z + state.options.input_noise * noise)
    values = state.descend(losses(state, output))
    decay = state.options.average_decay
    state.kept["average"].mul_(decay).add_(output.detach(), alpha=1 - decay)
    return values


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("deep-image-prior", Options, ("clip",), False, start, run, check)
