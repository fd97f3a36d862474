"""Words and their tokens."""

from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from sfumato.encoder.words import words_of


@pytest.fixture(scope="module")
def tokenizer(tiny_family: Path) -> Any:
    """Every byte is a token."""
    return CLIPTokenizer.from_pretrained(tiny_family / "tokenizer")


def test_each_word_has_the_tokens_that_spell_it(tokenizer: Any) -> None:
    text = "A cat,  on Blue"
    ids = tokenizer(text)["input_ids"]
    for word in words_of(tokenizer, text, 24):
        spelt = tokenizer.decode(ids[word.start_token : word.end_token]).strip()
        assert spelt == word.text.lower()
    assert [word.text for word in words_of(tokenizer, text, 24)] == ["A", "cat", ",", "on", "Blue"]


def test_a_letter_of_two_bytes_is_one_letter_of_a_word(tokenizer: Any) -> None:
    words = words_of(tokenizer, "café x", 24)
    assert [(word.text, word.start_token, word.end_token) for word in words] == [("café", 1, 6), ("x", 6, 7)]


def test_words_that_are_cut_are_left_out(tokenizer: Any) -> None:
    assert [word.text for word in words_of(tokenizer, "abc defg", 7)] == ["abc"]
    assert [word.text for word in words_of(tokenizer, "abc defg", 9)] == ["abc", "defg"]


def test_the_null_text_has_no_words(tokenizer: Any) -> None:
    assert words_of(tokenizer, "", 24) == []
