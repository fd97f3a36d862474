"""StyleCLIP (c): a global direction in S, from a text alone, in one pass (Patashnik et al. 2021, section 6).

    dt = unit(mean over templates of target) - unit(mean over templates of neutral), normalised
    strength(c) = <dS(c), dt>, 0 where its size is below beta, divided by the largest size
    s_edited = s + alpha * strength * sigma

dS: the generator's channel relevance (channel_relevance.py), in the first iterations of a run, quick once it
is cached; then the inversion of the image where there is one; the last iteration is the edit. The opposite
alpha is the opposite edit.

Without a neutral text, ours: unit(neutral) becomes the unit mean of CLIP's embeddings of the generator's
images, so that nobody has to find the word for what they show.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch.nn import functional as F

from sfumato.common.errors import InvalidArgument
from sfumato.editor.channel_relevance import chunk_relevance, chunks_of, deviations, mean_embedding
from sfumato.editor.clip import Clip
from sfumato.editor.inversion import LatentState
from sfumato.editor.method import Inputs, Method, Models, Progress, choice, folder, real, text, whole
from sfumato.editor.optimised import iterate
from sfumato.editor.pixels import to_image
from sfumato.editor.templates import PHRASES


@dataclass(frozen=True)
class Options:
    """Defaults: orpatashnik/StyleCLIP."""

    prompt: str = text(required=True)
    neutral_prompt: str = text()  # what the image shows, in the same terms; empty: the generator's mean image
    generator: str = folder("faces", "stylegan2")
    seed: int = whole(0, 0, 2**63 - 1)
    alpha: float = real(4.0, -10.0, 10.0)
    beta: float = real(0.13, 0.0, 1.0)  # 0.08 to 0.3
    templates: str = choice("photo", "emoji")  # the phrases that the family's CLIP knows
    num_relevance_images: int = whole(100, 1, 1000)
    num_inversion_iterations: int = whole(1000, 1, 10_000)


def direction_of(options: Options, clip: Clip, models: Models) -> torch.Tensor:
    """dt [embedding], unit."""
    phrases = PHRASES[options.templates]
    if options.neutral_prompt:
        neutral = clip.embed_template(options.neutral_prompt, phrases)
    else:
        neutral = mean_embedding(models, clip, options.generator, options.num_relevance_images)
    return F.normalize(clip.embed_template(options.prompt, phrases) - neutral, dim=0)


def channel_strengths(relevance: torch.Tensor, direction: torch.Tensor, beta: float) -> torch.Tensor:
    """[channels] in [-1, 1], for relevance [channels, embedding]; all 0 where no channel reaches beta."""
    alignment = relevance @ direction
    kept = torch.where(alignment.abs() >= beta, alignment, torch.zeros_like(alignment))
    return kept / kept.abs().max().clamp(min=1e-8)


class State(LatentState):
    """The latents, the relevance of the channels so far, and the edited styles."""

    def __init__(self, options: Options, inputs: Inputs, models: Models) -> None:
        super().__init__(
            inputs,
            models,
            name=options.generator,
            seed=options.seed,
            num_inversion_iterations=options.num_inversion_iterations,
            num_edit_iterations=1,
        )
        self.options, self.models = options, models
        self.chunks = chunks_of(self.stylegan)
        self.sigmas = deviations(self.stylegan, models.device)
        num_channels = sum(chunk.last - chunk.first for chunk in self.chunks)
        embedding = self.clip.embed_texts([options.prompt]).shape[1]
        self.kept["relevance"] = torch.zeros(num_channels, embedding, device=models.device)
        self.num_iterations += len(self.chunks)
        self.inversion_starts = len(self.chunks)

    @cached_property
    def direction(self) -> torch.Tensor:
        """dt; the first iteration makes it."""
        return direction_of(self.options, self.clip, self.models)

    def strengths(self) -> torch.Tensor:
        """[channels], once the relevance is complete.

        Raises:
            InvalidArgument: no channel reaches beta.
        """
        strengths = channel_strengths(self.kept["relevance"], self.direction, self.options.beta)
        if not strengths.any():
            largest = float((self.kept["relevance"] @ self.direction).abs().max())
            raise InvalidArgument("beta", f"at most {largest:.3f}, for this text", self.options.beta)
        return strengths

    @torch.no_grad()
    def edited_styles(self, alpha: float) -> list[torch.Tensor]:
        """s + alpha * strength * sigma, of the latents as they are.

        Raises:
            InvalidArgument: as `strengths`.
        """
        strengths = self.strengths()
        styles, row = [style.clone() for style in self.stylegan.styles(self.w_plus(self.start))], 0
        for chunk in self.chunks:
            width = chunk.last - chunk.first
            columns = slice(chunk.first, chunk.last)
            change = strengths[row : row + width] * self.sigmas[chunk.style][columns]
            styles[chunk.style][:, columns] += alpha * change
            row += width
        return styles

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """The edit once it is made, before that the latents' image."""
        if self.iteration < self.num_iterations:
            return super().preview()
        return to_image((self.stylegan.synthesis(self.edited_styles(self.options.alpha)) + 1) / 2)


def check(options: Options, inputs: Inputs) -> None:
    """Raises InvalidArgument where the texts are one to CLIP."""
    if options.prompt.strip() == options.neutral_prompt.strip():
        raise InvalidArgument("neutral_prompt", "another text than prompt", options.neutral_prompt)


def start(options: Options, inputs: Inputs, models: Models) -> State:
    """
    Raises:
        InvalidArgument: as `check`, or the family has no such generator.
    """
    check(options, inputs)
    return State(options, inputs, models)


def step(state: State) -> dict[str, float]:
    """One chunk of the relevance, one iteration of the inversion, or the edit ("total": channels).

    Raises:
        InvalidArgument: no channel reaches beta, as the relevance is complete and before an inversion begins.
    """
    if state.iteration < len(state.chunks):
        chunk, options = state.chunks[state.iteration], state.options
        row = sum(earlier.last - earlier.first for earlier in state.chunks[: state.iteration])
        relevance = chunk_relevance(
            state.models, state.clip, options.generator, chunk, options.num_relevance_images
        )
        state.kept["relevance"][row : row + len(relevance)] = relevance
        if state.iteration + 1 == len(state.chunks):
            state.strengths()
        return {"total": float((relevance @ state.direction).abs().max())}
    if state.inverting:
        return state.invert()
    return {"total": float((state.strengths() != 0).sum())}


def run(state: State) -> Iterator[Progress]:
    """Iterates to the end of the run."""
    return iterate(state, step)


METHOD = Method("styleclip-direction", Options, ("clip", "stylegan2"), False, start, run, check)
