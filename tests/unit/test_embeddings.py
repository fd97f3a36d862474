"""Texts that were encoded are kept, as long as the encoder holds the same weights."""

import torch

from sfumato.gateway.conditioning import EncodedTexts
from sfumato.gateway.embeddings import TRUST_SECONDS, EmbeddingsCache


class Encoder:
    """Counts what it encodes; its weights can be replaced."""

    def __init__(self) -> None:
        self.weights, self.texts = "first", list[str]()

    async def __call__(self, text: str, adapter: str) -> tuple[EncodedTexts, str]:
        self.texts.append(text)
        value = float(len(text) + 100 * (self.weights != "first") + 1000 * len(adapter))
        return EncodedTexts(torch.full((1, 4, 8), value), [len(text)], [[]]), self.weights


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_repeated_text_costs_no_call_and_gives_the_same() -> None:
    cache, encoder = EmbeddingsCache(2**20), Encoder()
    first = await cache.encoded(["", "a cat"], "", encoder)
    second = await cache.encoded(["a cat", ""], "", encoder)
    assert encoder.texts == ["", "a cat"]
    assert torch.equal(second.prompt_embeds, first.prompt_embeds.flip(0))
    assert second.num_truncated == [5, 0]


async def test_other_weights_are_noticed_when_the_connection_was_lost() -> None:
    cache, encoder = EmbeddingsCache(2**20), Encoder()
    await cache.encoded(["a cat"], "", encoder)
    encoder.weights = "second"
    cache.distrust()
    assert float((await cache.encoded(["a cat"], "", encoder)).prompt_embeds.max()) == 105
    encoder.weights = "first"  # and back: what the first encoded is still right
    cache.distrust()
    await cache.encoded(["a dog"], "", encoder)
    assert float((await cache.encoded(["a cat"], "", encoder)).prompt_embeds.max()) == 5
    assert encoder.texts == ["a cat", "a cat", "a dog"]


async def test_the_encoder_is_asked_again_after_a_time() -> None:
    clock = Clock()
    cache, encoder = EmbeddingsCache(2**20, clock), Encoder()
    await cache.encoded(["a cat"], "", encoder)
    clock.now += TRUST_SECONDS + 1
    await cache.encoded(["a cat"], "", encoder)
    assert encoder.texts == ["a cat", "a cat"]


async def test_the_least_recently_used_goes_when_bytes_run_out() -> None:
    cache, encoder = EmbeddingsCache(2 * (4 * 8 * 4 + 512)), Encoder()
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        await cache.encoded([text], "", encoder)
    assert encoder.texts == ["a", "bb", "ccc", "bb"]
    none = EmbeddingsCache(0)
    for _ in range(2):
        await none.encoded(["dddd"], "", encoder)
    assert encoder.texts[4:] == ["dddd", "dddd"]


async def test_families_have_their_own_encodings_whichever_was_asked_last() -> None:
    cache, one, other = EmbeddingsCache(2**20), Encoder(), Encoder()
    other.weights = "second"
    for _ in range(2):
        assert float((await cache.encoded(["a cat"], "", one)).prompt_embeds.max()) == 5
        assert float((await cache.encoded(["a cat"], "", other, "families/b")).prompt_embeds.max()) == 105
    assert one.texts == other.texts == ["a cat"]


async def test_an_adapters_encoding_is_another() -> None:
    cache, encoder = EmbeddingsCache(2**20), Encoder()
    plain = await cache.encoded(["a cat"], "", encoder)
    adapted = await cache.encoded(["a cat"], "style", encoder)
    again = await cache.encoded(["a cat"], "", encoder)
    assert encoder.texts == ["a cat", "a cat"]
    assert float(adapted.prompt_embeds.max()) == 5005
    assert torch.equal(again.prompt_embeds, plain.prompt_embeds)
