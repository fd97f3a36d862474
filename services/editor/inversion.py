"""Latents of a StyleGAN2: where an edit starts, and an image's inversion (Karras et al. 2020, section 5).

    min over w in W+ (or W) of  |G(w + noise) - x|^2 + perceptual D_keys(G(w + noise), x)

from the mean latent, Adam 0.1 with ramps, noise on w that fades (appendix D). Instead of LPIPS, whose VGG no
family brings, D_keys: 1 - cos of the key tokens of CLIP's vision transformer, averaged over layers and
places. The generator's own noise stays fixed, so there is none to regularise.

w_plus: float [1, layers, d]; images: [1, 3, size, size] in [0, 1].
"""

import math
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from sfumato.common.seeding import generator_of
from sfumato.editor.attention import check_vit, look
from sfumato.editor.clip import Clip
from sfumato.editor.losses import clamp_with_gradient
from sfumato.editor.method import Inputs, Models, Tensors
from sfumato.editor.optimised import Optimised
from sfumato.editor.pixels import fitted, to_image, to_tensor

TRUNCATION = 0.7
RATE, RAMP_UP, RAMP_DOWN = 0.1, 0.05, 0.25
NOISE, NOISE_RAMP = 0.05, 0.75
PERCEPTUAL = 1.0


def ramped(rate: float, progress: float) -> float:
    """The learning rate at a progress of 0 to 1: linear over the first 5 %, cosine over the last 25 %."""
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - progress) / RAMP_DOWN))
    return rate * down * min(1.0, progress / RAMP_UP)


class LatentState(Optimised):
    """A latent under Adam: inverted first where there is an image, then edited for `num_edit_iterations`.

    Args:
        name: folder under the family's stylegan2/.
        num_inversion_iterations: where there is an image; without one a face is drawn by the seed.
        space: "w_plus", or "w" for one w in all layers.
    """

    def __init__(
        self,
        inputs: Inputs,
        models: Models,
        *,
        name: str,
        seed: int,
        num_inversion_iterations: int,
        num_edit_iterations: int,
        space: str = "w_plus",
    ) -> None:
        self.stylegan = models.stylegan2(name)
        self.clip = Clip(models.clip, models.tokenizer, models.device)
        generator = generator_of(seed, models.device)
        z = torch.randn(1, self.stylegan.d, generator=generator, device=models.device)
        sampled = self.stylegan.mapping(
            torch.randn(1024, self.stylegan.d, generator=generator, device=z.device)
        )
        mean, self.deviation = sampled.mean(0, keepdim=True), sampled.std(0).mean()
        self.image: torch.Tensor | None = None
        self.num_inversion, self.inversion_starts = 0, 0
        w = mean + TRUNCATION * (self.stylegan.mapping(z) - mean)
        if inputs.image is not None:
            check_vit(models.clip.visual)
            side = self.stylegan.size
            self.image, w = to_tensor(fitted(inputs.image, (side, side)), models.device), mean
            self.num_inversion = num_inversion_iterations
        latents = w[:, None] if space == "w" else self.stylegan.spread(w)
        self.latents = latents.clone().requires_grad_()
        optimizer = torch.optim.Adam([self.latents], lr=RATE)
        kept = {"start": latents.clone()}
        num_iterations = self.num_inversion + num_edit_iterations
        super().__init__(num_iterations, {"latents": self.latents}, optimizer, generator, kept)

    @property
    def start(self) -> torch.Tensor:
        """The latents that are edited: the inversion's result, or the sampled ones."""
        return self.kept["start"]

    def w_plus(self, latents: torch.Tensor) -> torch.Tensor:
        """[1, layers, d] of latents in W+ or W."""
        return latents.expand(-1, self.stylegan.num_layers, -1)

    def paint(self, latents: torch.Tensor) -> torch.Tensor:
        """G(w), in [0, 1]."""
        return clamp_with_gradient((self.stylegan(self.w_plus(latents)) + 1) / 2)

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """The image of the latents."""
        return to_image(self.paint(self.latents))

    def result(self) -> dict[str, Image.Image | Tensors]:
        """The image, and the start's image."""
        with torch.no_grad():
            return {"image": self.preview(), "start": to_image(self.paint(self.start))}

    @property
    def inverting(self) -> bool:
        """Whether the next iteration is the inversion's."""
        return 0 <= self.iteration - self.inversion_starts < self.num_inversion

    def invert(self) -> dict[str, float]:
        """One iteration of the inversion; the last one makes its result the start of the edit."""
        assert self.image is not None
        done = self.iteration - self.inversion_starts
        progress = done / self.num_inversion
        self.set_rate(ramped(RATE, progress))
        strength = NOISE * self.deviation * max(0.0, 1 - progress / NOISE_RAMP) ** 2
        noise = torch.randn(self.latents.shape, generator=self.generator, device=self.latents.device)
        painted = self.paint(self.latents + strength * noise)
        terms = {
            "inversion_mse": F.mse_loss(painted, self.image),
            "inversion_keys": PERCEPTUAL * keys_distance(self.clip, painted, self.image),
        }
        values = self.descend(terms)
        if done + 1 == self.num_inversion:
            self.start.copy_(self.latents.detach())
            self.optimizer.state.clear()
        return values


def keys_distance(clip: Clip, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cos of two images' key tokens over the layers and places of CLIP's ViT."""
    visual: Any = clip.model.visual
    keys = look(visual, clip.normalise(torch.cat([clip.stretch(a), clip.stretch(b)]))).keys
    layers = [1 - F.cosine_similarity(layer[0], layer[1], dim=-1).mean() for layer in keys]
    return torch.stack(layers).mean()
