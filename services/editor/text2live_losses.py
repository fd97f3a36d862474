"""The losses of Text2LIVE's edit layer (Bar-Tal et al. 2022, section 3), and the options that they ask for.

text2live.py has the equations. Images are float [1, 3, h, w] in [0, 1], the edit layer [1, 4, h, w].
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from sfumato.common.seeding import generator_of
from sfumato.editor.attention import look, relevancy, self_similarity
from sfumato.editor.clip import Clip
from sfumato.editor.losses import DISTANCES, directional_loss
from sfumato.editor.method import choice, real, text, whole
from sfumato.editor.views import clip_views

if TYPE_CHECKING:
    from sfumato.editor.text2live import State

GREEN = (0.0, 177 / 255, 64 / 255)
L1, L0 = 0.01, 0.01


@dataclass(frozen=True)
class LayerOptions:
    """What an image and a clip have in common. Defaults: omerbt/Text2LIVE."""

    prompt: str = text(required=True)  # what the result shows
    screen_prompt: str = text()  # what the edit layer shows, alone; empty: the prompt
    source_prompt: str = text()  # what the image or clip shows; empty: no directional term
    region_prompt: str = text()  # what is to be changed; empty: no bootstrapping
    seed: int = whole(0, 0, 2**63 - 1)
    learning_rate: float = real(0.0025, 1e-5, 10.0)  # MADGRAD
    channels: int = whole(128, 8, 256)
    num_scales: int = whole(7, 1, 7)  # fewer where the image or atlas is too small for them
    templates: str = choice("photo", "emoji")  # the phrases that the family's CLIP knows
    distance: str = choice("spherical", "cosine")
    lambda_composition: float = real(1.0, 0.0, 1e3)
    lambda_screen: float = real(1.0, 0.0, 1e3)
    lambda_bootstrap: float = real(10.0, 0.0, 1e3)  # falls linearly to 0
    num_bootstrap_iterations: int = whole(0, 0, 10_000)  # 0: all


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


def losses(state: "State", x: torch.Tensor, layer: torch.Tensor) -> dict[str, torch.Tensor]:
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


def composition_losses(state: "State", x: torch.Tensor, edited: torch.Tensor) -> dict[str, torch.Tensor]:
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
