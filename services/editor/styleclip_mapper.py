"""StyleCLIP (b): a latent mapper, trained for one text (Patashnik et al. 2021, section 5).

    M(w) = (M_c(w_c), M_m(w_m), M_f(w_f)), layers 0-3, 4-7 and from 8 on;  the edit is w' = w + 0.1 M(w)

    min over M of  lambda_clip D_CLIP(G(w'), t) + lambda_l2 |0.1 M(w)|^2 + lambda_id (1 - <R(G(w')), R(G(w))>)

|.|^2: the mean of the squares over layers and channels, as in their code. Each part is a pixel norm and four
fully connected layers. Ranger is RAdam (Liu et al. 2020) with lookahead (Zhang et al. 2019) every 6 steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from sfumato.common.seeding import generator_of
from sfumato.common.stylegan2_layers import EqualLinear, PixelNorm
from sfumato.editor.clip import Clip
from sfumato.editor.losses import clamp_with_gradient, cosine_distance
from sfumato.editor.method import Inputs, Method, Models, Progress, Tensors, folder, real, text, whole
from sfumato.editor.optimised import Optimised, iterate
from sfumato.editor.pixels import to_image

GROUPS = ((0, 4), (4, 8), (8, None))  # coarse, medium, fine: layers of W+
OFFSET = 0.1
LOOKAHEAD_STEPS, LOOKAHEAD_SHARE = 6, 0.5
TRUNCATION = 0.7
NUM_PREVIEWS = 4


class Mapper(nn.Module):
    """M, for a generator of `num_layers` layers and latents of length d."""

    def __init__(self, num_layers: int, d: int) -> None:
        super().__init__()
        groups = [group for group in GROUPS if group[0] < num_layers]
        self.groups = groups
        self.parts = nn.ModuleList(
            nn.Sequential(PixelNorm(), *(EqualLinear(d, d, lr_multiplier=0.01, act=True) for _ in range(4)))
            for _ in groups
        )

    def forward(self, w_plus: torch.Tensor) -> torch.Tensor:
        """[n, layers, d] to the offset 0.1 M(w), of the same shape."""
        mapped = []
        for (first, last), part in zip(self.groups, self.parts, strict=True):
            rows = w_plus[:, first:last]
            mapped.append(part(rows.flatten(0, 1)).view_as(rows))
        return OFFSET * torch.cat(mapped, 1)


@torch.no_grad()
def redraw(mapper: Mapper, generator: torch.Generator) -> None:
    """New weights from the generator (on the CPU), as EqualLinear draws them."""
    for layer in mapper.modules():
        if isinstance(layer, EqualLinear):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.lr_multiplier)


@dataclass(frozen=True)
class Options:
    """Defaults: orpatashnik/StyleCLIP."""

    prompt: str = text(required=True)
    generator: str = folder("faces", "stylegan2")
    seed: int = whole(0, 0, 2**63 - 1)
    num_iterations: int = whole(50_000, 1, 100_000)
    learning_rate: float = real(0.5, 0.0, 10.0)  # Ranger
    batch_size: int = whole(2, 1, 64)
    lambda_clip: float = real(1.0, 0.0, 100.0)
    lambda_l2: float = real(0.8, 0.0, 100.0)
    lambda_id: float = real(0.1, 0.0, 100.0)  # 0 where the generator makes no faces


class State(Optimised):
    """The mapper, RAdam's moments and lookahead's slow weights."""

    def __init__(self, options: Options, models: Models) -> None:
        self.options, self.stylegan = options, models.stylegan2(options.generator)
        self.clip = Clip(models.clip, models.tokenizer, models.device)
        self.identity = models.identity if options.lambda_id else None
        self.text = self.clip.embed_texts([options.prompt])[0]
        self.mapper = Mapper(self.stylegan.num_layers, self.stylegan.d)
        redraw(self.mapper, generator_of(options.seed))
        self.mapper.to(models.device)
        trained: Tensors = dict(self.mapper.named_parameters())
        slow = {f"slow.{name}": parameter.detach().clone() for name, parameter in trained.items()}
        optimizer = torch.optim.RAdam(self.mapper.parameters(), lr=options.learning_rate, betas=(0.95, 0.999))
        generator = generator_of(options.seed, models.device)
        self.mean = self.stylegan.mean_w(generator)
        self.shown = self.sample(NUM_PREVIEWS, generator)
        super().__init__(options.num_iterations, trained, optimizer, generator, slow)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Truncated w_plus [n, layers, d] of random z."""
        z = torch.randn(n, self.stylegan.d, generator=generator, device=generator.device)
        w = self.mean + TRUNCATION * (self.stylegan.mapping(z) - self.mean)
        spread: torch.Tensor = self.stylegan.spread(w)
        return spread

    def paint(self, w_plus: torch.Tensor) -> torch.Tensor:
        """G(w), in [0, 1]."""
        return clamp_with_gradient((self.stylegan(w_plus) + 1) / 2)

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Samples of the generator above, and below them the same through the mapper."""
        edited = self.shown + self.mapper(self.shown)
        rows = [torch.cat(list(self.paint(w_plus)), -1) for w_plus in (self.shown, edited)]
        return to_image(torch.cat(rows, -2)[None])

    def result(self) -> dict[str, Image.Image | Tensors]:
        """The preview, and the mapper's weights with the generator's folder in their name."""
        weights = {
            f"{self.options.generator}/{name}": tensor.detach().clone()
            for name, tensor in self.trained.items()
        }
        return {"image": self.preview(), "mapper": weights}


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        NotFound: the family has no such generator, or no identity network though lambda_id is above 0.
    """
    return State(options, models)


def losses(state: State, w_plus: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weighted terms of the equation above."""
    options, offset = state.options, state.mapper(w_plus)
    image = state.paint(w_plus + offset)
    terms = {
        "clip": options.lambda_clip * cosine_distance(state.clip.embed_images(image), state.text).mean(),
        "l2": options.lambda_l2 * offset.square().mean(),
    }
    if state.identity is not None:
        with torch.no_grad():
            before = state.identity(state.paint(w_plus) * 2 - 1)
        terms["id"] = options.lambda_id * cosine_distance(state.identity(image * 2 - 1), before).mean()
    return terms


def step(state: State) -> dict[str, float]:
    """One iteration of RAdam on random latents; every 6th, lookahead."""
    values = state.descend(losses(state, state.sample(state.options.batch_size, state.generator)))
    if (state.iteration + 1) % LOOKAHEAD_STEPS == 0:
        with torch.no_grad():
            for name, fast in state.trained.items():
                slow = state.kept[f"slow.{name}"]
                slow.lerp_(fast, LOOKAHEAD_SHARE)
                fast.copy_(slow)
    return values


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("styleclip-mapper-training", Options, ("clip", "stylegan2", "identity"), False, start, run)
