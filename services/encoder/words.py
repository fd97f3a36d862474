"""Which tokens a word has: byte-pair tokens end a word with `</w>`."""

from dataclasses import dataclass
from typing import Any

END_OF_WORD = "</w>"


@dataclass(frozen=True)
class Word:
    """A word as written, and its tokens from start to before end; token 0 is the start token."""

    text: str
    start_token: int
    end_token: int


def words_of(tokenizer: Any, text: str, max_tokens: int) -> list[Word]:
    """The words of a text whose tokens are all among the first max_tokens, the end token's place left out."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])[1:-1]
    offsets = encoded["offset_mapping"][1:-1]
    words, first = [], 0
    for index, token in enumerate(tokens[: max_tokens - 2]):
        if token.endswith(END_OF_WORD):
            words.append(Word(text[offsets[first][0] : offsets[index][1]], first + 1, index + 2))
            first = index + 1
    return words
