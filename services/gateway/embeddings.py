"""Encoded texts that are kept, so that a repeated prompt costs no call of the encoder.

By the digest of the text and of the encoder's weights. Each text is encoded by a call of its own: what it is
encoded beside must not show in its bits.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import torch

from sfumato.common.metrics import count_lookup
from sfumato.gateway.conditioning import EncodedTexts

TRUST_SECONDS = 60.0  # how long after an answer of the encoder its weights are taken for those that it has
OVERHEAD_BYTES = 512  # of an entry, its words included

# Of a text and an adapter's name: its encoding, and the weights' digest.
Encode = Callable[[str, str], Awaitable[tuple[EncodedTexts, str]]]


@dataclass(frozen=True)
class Key:
    """A text under the weights that encode it."""

    weights_digest: str
    adapter: str
    text: bytes  # BLAKE2b of it

    @classmethod
    def of(cls, weights_digest: str, adapter: str, text: str) -> "Key":
        """Of a text itself."""
        return cls(weights_digest, adapter, hashlib.blake2b(text.encode(), digest_size=32).digest())


class EmbeddingsCache:
    """The least recently used goes first. Not for several threads."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds; one that never jumps."""
        self._max_bytes, self._clock = max_bytes, clock
        self._entries: OrderedDict[Key, EncodedTexts] = OrderedDict()
        self._num_bytes = 0
        self._trusted: dict[str, tuple[str, float]] = {}  # by family: the weights' digest, and until when

    def distrust(self) -> None:
        """The encoder may be another now: the next text asks it."""
        self._trusted.clear()

    async def encoded(self, texts: list[str], adapter: str, encode: Encode, family: str = "") -> EncodedTexts:
        """The texts' encodings, kept ones and by `encode`, which encodes with that family."""
        return joined(await asyncio.gather(*(self._one(text, adapter, encode, family) for text in texts)))

    async def _one(self, text: str, adapter: str, encode: Encode, family: str) -> EncodedTexts:
        digest, until = self._trusted.get(family, ("", float("-inf")))
        if self._clock() < until:
            key = Key.of(digest, adapter, text)
            if key in self._entries:
                self._entries.move_to_end(key)
                count_lookup("text_embeddings", hit=True)
                return self._entries[key]
        count_lookup("text_embeddings", hit=False)
        encoded, weights_digest = await encode(text, adapter)
        self._trusted[family] = weights_digest, self._clock() + TRUST_SECONDS
        if weights_digest:
            self._keep(Key.of(weights_digest, adapter, text), encoded)
        return encoded

    def _keep(self, key: Key, encoded: EncodedTexts) -> None:
        if key in self._entries:
            return
        self._entries[key] = encoded
        self._num_bytes += size_of(encoded)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._num_bytes -= size_of(oldest)


def size_of(encoded: EncodedTexts) -> int:
    """Bytes, about."""
    pooled = encoded.pooled_prompt_embeds
    return OVERHEAD_BYTES + encoded.prompt_embeds.nbytes + (0 if pooled is None else pooled.nbytes)


def joined(parts: list[EncodedTexts]) -> EncodedTexts:
    """Several texts' encodings as one."""
    pooled = [part.pooled_prompt_embeds for part in parts]
    return EncodedTexts(
        torch.cat([part.prompt_embeds for part in parts]),
        [count for part in parts for count in part.num_truncated],
        [words for part in parts for words in part.words],
        torch.cat([tensor for tensor in pooled if tensor is not None]) if None not in pooled else None,
    )
