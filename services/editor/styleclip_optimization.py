"""StyleCLIP (a): latent optimisation (Patashnik et al. 2021, section 4; defaults of orpatashnik/StyleCLIP).

    min over w in W+ of  D_CLIP(G(w), t) + lambda_l2 |w - w_0|^2 + lambda_id (1 - <R(G(w)), R(G(w_0))>)

D_CLIP = 1 - cos. w_0: the inversion of the image, or without one a face by the seed. R: the family's identity
network. Adam 0.1, warm-up over the first 5 % and cosine decay over the last 25 % of the iterations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sfumato.editor.cutouts import make_cutouts
from sfumato.editor.inversion import LatentState, ramped
from sfumato.editor.losses import cosine_distance
from sfumato.editor.method import Inputs, Method, Models, Progress, choice, folder, real, text, whole
from sfumato.editor.optimised import iterate


@dataclass(frozen=True)
class Options:
    """Defaults: orpatashnik/StyleCLIP."""

    prompt: str = text(required=True)
    generator: str = folder("faces", "stylegan2")
    seed: int = whole(0, 0, 2**63 - 1)
    latent_space: str = choice("w_plus", "w")
    num_iterations: int = whole(300, 1, 10_000)
    learning_rate: float = real(0.1, 0.0, 10.0)  # Adam's largest
    lambda_l2: float = real(0.008, 0.0, 100.0)  # 0.005 to 0.008 typical
    lambda_id: float = real(0.005, 0.0, 100.0)  # 0 where the generator makes no faces
    num_cutouts: int = whole(0, 0, 256)  # augmented views; 0, the paper's: the image alone
    num_inversion_iterations: int = whole(1000, 1, 10_000)


class State(LatentState):
    """The latents, with the text and the start's identity."""

    def __init__(self, options: Options, inputs: Inputs, models: Models) -> None:
        super().__init__(
            inputs,
            models,
            name=options.generator,
            seed=options.seed,
            num_inversion_iterations=options.num_inversion_iterations,
            num_edit_iterations=options.num_iterations,
            space=options.latent_space,
        )
        self.options = options
        self.text = self.clip.embed_texts([options.prompt])[0]
        self.identity = models.identity if options.lambda_id else None
        self._start_features: torch.Tensor | None = None

    @torch.no_grad()
    def start_features(self) -> torch.Tensor:
        """R(G(w_0)), once w_0 is known."""
        if self._start_features is None:
            assert self.identity is not None
            self._start_features = self.identity(self.paint(self.start) * 2 - 1)
        return self._start_features


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        NotFound: the family has no such generator, or no identity network though lambda_id is above 0.
    """
    return State(options, inputs, models)


def losses(state: State, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weighted terms of the equation above."""
    options, image = state.options, state.paint(latents)
    views = image
    if options.num_cutouts:
        n, side = options.num_cutouts, state.clip.side
        views = torch.cat(
            [state.clip.resize(image), make_cutouts(image, "pooled", n, side, 1, state.generator)]
        )
    terms = {"clip": cosine_distance(state.clip.embed_images(views), state.text).mean()}
    terms["l2"] = options.lambda_l2 * (latents - state.start).square().sum()
    if state.identity is not None:
        features = state.identity(image * 2 - 1)
        terms["id"] = options.lambda_id * cosine_distance(features, state.start_features()).mean()
    return terms


def step(state: State) -> dict[str, float]:
    """One iteration of the inversion, or behind it of the edit."""
    if state.inverting:
        return state.invert()
    progress = (state.iteration - state.num_inversion) / state.options.num_iterations
    state.set_rate(ramped(state.options.learning_rate, progress))
    return state.descend(losses(state, state.latents))


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("styleclip-optimization", Options, ("clip", "stylegan2", "identity"), False, start, run)
