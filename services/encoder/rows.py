"""Texts and images to rows of the encoder's forwards, and back."""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import torch
from PIL import Image

from sfumato.common.batching import RowQueue
from sfumato.common.work import run
from sfumato.encoder.engine_torch import EncodedTexts, TextEncoder
from sfumato.encoder.noised import Space
from sfumato.encoder.words import Word


class EncoderRows:
    """Tokens and pixels are made beside the models' thread; tokens on one, since tokenizers have state."""

    def __init__(self, executor: Executor, num_file_threads: int) -> None:
        """executor: the models' thread; num_file_threads: image files read at a time."""
        self._queue = RowQueue(executor, 1)
        self._tokenizers = ThreadPoolExecutor(1, "tokenizer")
        self._files = ThreadPoolExecutor(num_file_threads, "files")

    async def encode(self, encoder: TextEncoder, texts: list[str]) -> EncodedTexts:
        """The conditioning of each text; its bits do not depend on which texts come with it."""
        tokens = await run(self._tokenizers, "tokens", encoder.tokenize, texts)
        results = await self._queue.rows(encoder.forward, *tokens.ids) if tokens.encoded else ()
        return encoder.encoded(tokens, results)

    async def words(self, encoder: TextEncoder, texts: list[str]) -> list[list[Word]]:
        """As TextEncoder.words."""
        return await run(self._tokenizers, "words", encoder.words, texts)

    async def embed_texts(self, space: Space, texts: list[str]) -> torch.Tensor:
        """Unit vectors [texts, embedding_size]; a call's texts go together."""
        tokens = await run(self._tokenizers, "tokens", space.tokenize, texts)
        return (await self._queue.bundle(space.text_forward, tokens))[0]

    async def embed_images(self, space: Space, images: Callable[[], list[Image.Image]]) -> torch.Tensor:
        """Unit vectors [images, embedding_size]; images: opens them. A call's images go together."""
        pixels = await run(self._files, "read_image", lambda: space.pixels(images()))
        return (await self._queue.bundle(space.image_forward, pixels))[0]

    def close(self) -> None:
        """Drops what waits and ends the threads."""
        self._queue.close()
        self._tokenizers.shutdown(cancel_futures=True)
        self._files.shutdown(cancel_futures=True)
