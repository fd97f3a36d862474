"""Text2LIVE for images (Bar-Tal et al. 2022): a generator trained on the one image paints an edit layer.

G(x) is a colour E and an opacity alpha at each pixel (section 3.1):

    composite = (1 - alpha) x + alpha E          screen = alpha E + (1 - alpha) green
    loss = composition (D(composite, target) + D_dir)        equations 3 and 4, D_dir: from source to target
         + screen D(screen, "... over a green screen")       equation 5
         + structure |S(composite) - S(x)|^2                 equation 6, S: self-similarity of CLIP's keys
         + sparsity (0.01 |alpha|_1 + 0.01 Psi_0(alpha))     equation 7, Psi_0(a) = 2 sigmoid(5 a) - 1
         + bootstrap (1 - step / steps) |alpha - R(x)|^2     section 3.3, R: CLIP's relevancy of a text

Images are float [1, 3, h, w] in [0, 1], the edit layer [1, 4, h, w].
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.optim.madgrad import MADGRAD

from sfumato.common.errors import InvalidArgument
from sfumato.common.seeding import generator_of, initialise
from sfumato.editor.attention import check_vit
from sfumato.editor.clip import Clip
from sfumato.editor.method import Inputs, Method, Models, Progress, Tensors, real, whole
from sfumato.editor.optimised import Optimised, iterate
from sfumato.editor.pixels import fitted, to_image, to_tensor, working_size
from sfumato.editor.skip_unet import SkipUNet, num_scales_of
from sfumato.editor.templates import PHRASES, SCREENS
from sfumato.editor.text2live_losses import L0, LayerOptions, composite, losses
from sfumato.editor.video import Video
from sfumato.editor.views import training_view

WHOLE_IMAGE_EVERY = 75
RATE_DECAY, LEAST_RATE = 0.99, 1e-5  # factor per iteration, down to


@dataclass(frozen=True)
class Options(LayerOptions):
    """Defaults: omerbt/Text2LIVE, image."""

    num_iterations: int = whole(1000, 1, 10_000)
    num_views: int = whole(16, 1, 256)
    lambda_structure: float = real(2.0, 0.0, 1e3)
    lambda_sparsity: float = real(6.0, 0.0, 1e3)


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
