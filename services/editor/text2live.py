"""Text2LIVE for images (Bar-Tal et al. 2022): a generator trained on the one image paints an edit layer.

G(x) is a colour E and an opacity alpha at each pixel (section 3.1):

    composite = (1 - alpha) x + alpha E          screen = alpha E + (1 - alpha) green
    loss = composition (D(composite, target) + D_dir)     equations 3 and 4, D_dir: from source to target
         + screen D(screen, "... over a green screen")     equation 5 + structure |S(composite) - S(x)|^2
         equation 6, S: self-similarity of CLIP's keys + sparsity (0.01 |alpha|_1 + 0.01 Psi_0(alpha))
         equation 7, Psi_0(a) = 2 sigmoid(5 a) - 1 + bootstrap (1 - step / steps) |alpha - R(x)|^2   section
         3.3, R: CLIP's relevancy of the region's text

Images are float [1, 3, h, w] in [0, 1], the edit layer [1, 4, h, w].
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.optim.madgrad import MADGRAD
from torch.nn import functional as F

from sfumato.common.errors import InvalidArgument
from sfumato.common.seeding import generator_of, initialise
from sfumato.editor.attention import check_vit, look, relevancy, self_similarity
from sfumato.editor.clip import Clip
from sfumato.editor.losses import DISTANCES, directional_loss
from sfumato.editor.method import Inputs, Method, Models, Progress, Tensors, choice, real, text, whole
from sfumato.editor.optimised import Optimised, iterate
from sfumato.editor.pixels import fitted, to_image, to_tensor, working_size
from sfumato.editor.skip_unet import SkipUNet, num_scales_of
from sfumato.editor.templates import PHRASES, SCREENS
from sfumato.editor.video import Video
from sfumato.editor.views import clip_views, training_view

GREEN = (0.0, 177 / 255, 64 / 255)
L1, L0 = 0.01, 0.01
WHOLE_IMAGE_EVERY = 75
RATE_DECAY, LEAST_RATE = 0.99, 1e-5  # factor per iteration, down to


@dataclass(frozen=True)
class Options:
    """Defaults: omerbt/Text2LIVE, image."""

    prompt: str = text(required=True)  # what the result shows
    screen_prompt: str = text()  # what the edit layer shows, alone; empty: the prompt
    source_prompt: str = text()  # what the image shows; empty: no directional term
    region_prompt: str = text()  # what is to be changed; empty: no bootstrapping
    seed: int = whole(0, 0, 2**63 - 1)
    num_iterations: int = whole(1000, 1, 10_000)
    learning_rate: float = real(0.0025, 0.0, 10.0)  # MADGRAD
    channels: int = whole(128, 8, 256)
    num_scales: int = whole(7, 1, 7)  # fewer where the image is too small for them
    num_views: int = whole(16, 1, 256)
    templates: str = choice("photo", "emoji")  # the phrases that the family's CLIP knows
    distance: str = choice("spherical", "cosine")
    lambda_composition: float = real(1.0, 0.0, 1e3)
    lambda_screen: float = real(1.0, 0.0, 1e3)
    lambda_structure: float = real(2.0, 0.0, 1e3)
    lambda_sparsity: float = real(6.0, 0.0, 1e3)
    lambda_bootstrap: float = real(10.0, 0.0, 1e3)  # falls linearly to 0
    num_bootstrap_iterations: int = whole(0, 0, 10_000)  # 0: all


class State(Optimised):
    """The generator, and MADGRAD's sums."""

    l0 = L0

    def __init__(self, options: Any, network: SkipUNet, clip: Clip, image: torch.Tensor) -> None:
        optimizer = MADGRAD(network.parameters(), lr=options.learning_rate)
        generator = generator_of(options.seed, image.device)
        super().__init__(options.num_iterations, dict(network.named_parameters()), optimizer, generator)
        self.options, self.network, self.clip, self.image = options, network, clip, image
        phrases, screens = PHRASES[options.templates], SCREENS[options.templates]
        self.target = _in_templates(clip, options.prompt, phrases)
        self.layer = _in_templates(clip, options.screen_prompt or options.prompt, screens)
        self.source = _in_templates(clip, options.source_prompt, phrases) if options.source_prompt else None
        self.region = clip.embed_template(options.region_prompt, phrases) if options.region_prompt else None

    @torch.no_grad()
    def edit_layer(self) -> torch.Tensor:
        """G of the whole image."""
        layer: torch.Tensor = self.network(self.image)
        return layer

    def preview(self) -> Image.Image:
        """The composite."""
        return to_image(composite(self.edit_layer(), self.image))

    def result(self) -> Mapping[str, Image.Image | Video | Tensors]:
        """The composite, and the edit layer as RGBA (straight alpha)."""
        layer = self.edit_layer()
        return {"image": to_image(composite(layer, self.image)), "edit_layer": to_image(layer)}


def _in_templates(clip: Clip, words: str, templates: tuple[str, ...]) -> torch.Tensor:
    return clip.embed_texts([template.format(words) for template in templates])


def composite(layer: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """(1 - alpha) below + alpha E."""
    colour, alpha = layer[:, :3], layer[:, 3:]
    return (1 - alpha) * below + alpha * colour


def sparsity(alpha: torch.Tensor, l0: float = L0) -> torch.Tensor:
    """Equation 7: L1, and a smooth count of what is not 0."""
    return L1 * alpha.mean() + l0 * (2 * torch.sigmoid(5 * alpha) - 1).mean()


def structure_loss(clip: Clip, edited: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Equation 6, on the keys of the last layer."""
    both = clip.normalise(clip.stretch(torch.cat([edited, image])))
    similarity = self_similarity(look(clip.model.visual, both).keys[-1])
    return F.mse_loss(similarity[0], similarity[1].detach())


def check(options: Options, inputs: Inputs) -> None:
    """
    Raises:
        InvalidArgument: no image or prompt, or an image of one colour.
    """
    if inputs.image is None:
        raise InvalidArgument("image", "given", "nothing", "Text2LIVE edits an image.")
    if not options.prompt.strip():
        raise InvalidArgument("prompt", "a text", "empty")
    check_varied(np.asarray(inputs.image.convert("RGB")), "image")


def check_varied(pixels: np.ndarray, field: str) -> None:
    """Raises InvalidArgument where pixels [h, w, 3] are all alike: the generator divides by their spread."""
    if (pixels == pixels[0, 0]).all():
        advice = "The generator has nothing to start from."
        raise InvalidArgument(field, "of more than one colour", "of one", advice)


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        InvalidArgument: as `check`, an image of less than 8 pixels, or a CLIP without a plain ViT.
    """
    check(options, inputs)
    assert inputs.image is not None
    clip = Clip(models.clip, models.tokenizer, models.device)
    check_vit(clip.model.visual)
    width, height = working_size(inputs.image, 0, clip.side)
    image = to_tensor(fitted(inputs.image, (width, height)), models.device)
    # The smallest view is 0.8 of the image.
    scales = num_scales_of(int(0.8 * height), int(0.8 * width), options.num_scales)
    network = SkipUNet(3, 4, options.channels, num_scales=scales)
    initialise(network, generator_of(options.seed))
    return State(options, network.to(models.device), clip, image)


def losses(state: State, x: torch.Tensor, layer: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weighted terms; those of weight 0 are not computed."""
    options, clip, alpha = state.options, state.clip, layer[:, 3:]
    edited, terms = composite(layer, x), {"sparsity": options.lambda_sparsity * sparsity(alpha, state.l0)}
    if options.lambda_composition:
        terms |= composition_losses(state, x, edited)
    if options.lambda_screen:
        green = torch.tensor(GREEN, device=x.device).view(1, 3, 1, 1)
        views = clip_views(composite(layer, green), options.num_views, clip.side, state.generator)
        wanted = subset_mean(state.layer, state.generator)
        distance = DISTANCES[options.distance](clip.embed_images(views), wanted).mean()
        terms["screen"] = options.lambda_screen * distance
    if options.lambda_structure:
        terms["structure"] = options.lambda_structure * structure_loss(clip, edited, x)
    left = 1 - state.iteration / (options.num_bootstrap_iterations or options.num_iterations)
    if state.region is not None and options.lambda_bootstrap and left > 0:
        seen = relevancy(clip.model.visual, clip.normalise(clip.stretch(x)), state.region)
        wanted = F.interpolate(seen, size=x.shape[-2:], mode="bilinear", align_corners=False)
        terms["bootstrap"] = options.lambda_bootstrap * left * F.mse_loss(alpha, wanted)
    return terms


def composition_losses(state: State, x: torch.Tensor, edited: torch.Tensor) -> dict[str, torch.Tensor]:
    """Equations 3 and 4, on the same views of the composite and of the input."""
    options, clip = state.options, state.clip
    seed = int(torch.randint(2**62, (), generator=state.generator, device=x.device))
    views = clip_views(edited, options.num_views, clip.side, generator_of(seed, x.device))
    embeds, target = clip.embed_images(views), subset_mean(state.target, state.generator)
    distance = DISTANCES[options.distance](embeds, target).mean()
    terms = {"composition": options.lambda_composition * distance}
    if state.source is not None:
        with torch.no_grad():
            before = clip_views(x, options.num_views, clip.side, generator_of(seed, x.device))
            change = target - subset_mean(state.source, state.generator)
            embeds_before = clip.embed_images(before)
        direction = directional_loss(embeds - embeds_before, change).mean()
        terms["direction"] = options.lambda_composition * direction
    return terms


def subset_mean(embeds: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The unit mean [d] of a random half of a text's templates [k, d]."""
    order = torch.randperm(len(embeds), generator=generator, device=embeds.device)
    return F.normalize(embeds[order[: -(-len(embeds) // 2)]].mean(0), dim=-1)


def step(state: State) -> dict[str, float]:
    """One iteration of MADGRAD on a view of the image, every 75th on the whole."""
    options = state.options
    state.set_rate(max(LEAST_RATE, options.learning_rate * RATE_DECAY**state.iteration))
    x = state.image
    if state.iteration % WHOLE_IMAGE_EVERY:
        x = training_view(x, state.generator)
    layer: torch.Tensor = state.network(x)
    return state.descend(losses(state, x, layer))


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("text2live", Options, ("clip",), True, start, run, check)
