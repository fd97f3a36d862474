"""StyleCLIP's global direction: the channel table, the strengths, alpha's sign, the cache."""

import pytest
import torch
from torch.nn import functional as F

from sfumato.common.errors import InvalidArgument
from sfumato.editor.channel_relevance import chunk_relevance, chunks_of, deviations
from sfumato.editor.method import Inputs
from sfumato.editor.styleclip_direction import METHOD, Options, channel_strengths, start
from sfumato.editor.templates import PHRASES
from tests.tiny_models import TinyModels
from tests.unit.editor.resuming import assert_resumes_bit_for_bit, finish
from tests.unit.editor.test_styleclip import face

ANGRY = {
    "prompt": "an angry face", "neutral_prompt": "a face", "templates": "emoji", "num_relevance_images": 3,
    "beta": 0.05,
}  # fmt: skip


def test_relevance_is_the_papers_difference_of_embeddings(models: TinyModels) -> None:
    state = start(Options(**ANGRY), Inputs(), models)
    chunk = state.chunks[1]
    table = chunk_relevance(models, state.clip, "faces", chunk, num_images=2)
    stylegan, channel = models.stylegan2("faces"), 3
    z = torch.randn(2, stylegan.d, generator=torch.Generator().manual_seed(1))
    sigma = deviations(stylegan, models.device)[chunk.style][channel]
    changes = []
    for row in z:
        embeds = []
        for sign in (5, -5):
            styles = [
                style.clone() for style in stylegan.styles(stylegan.spread(stylegan.mapping(row[None])))
            ]
            styles[chunk.style][0, channel] += sign * sigma
            embeds.append(state.clip.embed_images((stylegan.synthesis(styles) / 2 + 0.5).clamp(0, 1))[0])
        changes.append(embeds[0] - embeds[1])
    expected = F.normalize(torch.stack(changes).mean(0), dim=0)
    assert torch.allclose(table[channel - chunk.first], expected, atol=1e-4)


def test_chunks_cover_every_channel_but_torgbs(models: TinyModels) -> None:
    chunks = chunks_of(models.stylegan2("faces"))
    assert sum(chunk.last - chunk.first for chunk in chunks) == 12 + 12 + 8 + 8 + 6
    assert not {chunk.style for chunk in chunks} & {1, 4, 7}


def test_strengths_below_beta_are_zero_and_the_largest_is_one() -> None:
    relevance = torch.eye(3)
    strengths = channel_strengths(relevance, torch.tensor([0.9, -0.3, 0.05]), beta=0.1)
    assert torch.allclose(strengths, torch.tensor([1.0, -1 / 3, 0.0]))


def test_alphas_sign_reverses_the_edit(models: TinyModels) -> None:
    state = finish(METHOD, start(Options(**ANGRY), Inputs(), models))
    plain, up, down = (state.edited_styles(alpha) for alpha in (0.0, 3.0, -3.0))
    assert all(torch.allclose(a + b, 2 * c, atol=1e-4) for a, b, c in zip(up, down, plain, strict=True))

    def similarity(styles: list[torch.Tensor]) -> float:
        return float(state.clip.embed_images((state.stylegan.synthesis(styles) + 1) / 2)[0] @ state.direction)

    assert similarity(up) > similarity(plain) > similarity(down)


def test_the_table_is_computed_once(models: TinyModels) -> None:
    finish(METHOD, start(Options(**ANGRY), Inputs(), models))
    before = dict(models.cache)
    finish(METHOD, start(Options(**{**ANGRY, "prompt": "a sad face"}), Inputs(), models))
    assert models.cache.keys() == before.keys()
    assert all(models.cache[key] is before[key] for key in before)


def test_a_beta_that_no_channel_reaches_says_what_would_do(models: TinyModels) -> None:
    with pytest.raises(InvalidArgument, match=r"beta must be at most 0\.\d+"):
        finish(METHOD, start(Options(**{**ANGRY, "beta": 1.0}), Inputs(), models))
    with pytest.raises(InvalidArgument, match="another text"):
        start(Options(prompt="a face", neutral_prompt="a face"), Inputs(), models)


def test_without_a_neutral_text_the_generators_mean_image_is_neutral(models: TinyModels) -> None:
    options = Options(**{**ANGRY, "neutral_prompt": "", "num_relevance_images": 200})
    state = start(options, Inputs(), models)
    stylegan = models.stylegan2("faces")
    generator = torch.Generator().manual_seed(7)
    mean = stylegan.mapping(torch.randn(4096, stylegan.d, generator=generator)).mean(0, keepdim=True)
    w = mean + 0.7 * (stylegan.mapping(torch.randn(400, stylegan.d, generator=generator)) - mean)
    images = (stylegan(stylegan.spread(w)) / 2 + 0.5).clamp(0, 1)
    neutral = F.normalize(state.clip.embed_images(images).mean(0), dim=0)
    text = state.clip.embed_template("an angry face", PHRASES["emoji"])
    expected = F.normalize(text - neutral, dim=0)
    assert torch.allclose(state.direction, expected, atol=0.02)  # other samples of the same mean
    towards_a_face = start(Options(**ANGRY), Inputs(), models).direction
    assert float(towards_a_face @ expected) < 0.9


def test_a_beta_too_large_is_refused_before_the_inversion_begins(models: TinyModels) -> None:
    options = Options(**{**ANGRY, "beta": 1.0, "num_inversion_iterations": 4})
    state = start(options, Inputs(face(models)), models)
    with pytest.raises(InvalidArgument, match="beta"):
        finish(METHOD, state)
    assert state.iteration + 1 == len(state.chunks)


@pytest.mark.parametrize("neutral", ["a face", ""])
@pytest.mark.parametrize("at", [2, 7])
def test_it_resumes_bit_for_bit(models: TinyModels, at: int, neutral: str) -> None:
    options = Options(**{**ANGRY, "neutral_prompt": neutral}, num_inversion_iterations=4)
    assert_resumes_bit_for_bit(METHOD, options, Inputs(face(models)), models, at)
