"""How a target prompt's tokens follow a source prompt's."""

import pytest
import torch

from sfumato.common.errors import InvalidArgument
from sfumato.gateway.alignment import align, column_weights, places_of, resolve_kind, shared_words
from sfumato.gateway.attention_maps import Word

TOKENS = 12


def words(text: str) -> list[Word]:
    """One token per letter behind the first, as "cat" has two: enough to tell words and tokens apart."""
    result, token = [], 1
    for word in text.split():
        size = max(1, len(word) - 1)
        result.append(Word(word, token, token + size))
        token += size
    return result


def ones() -> torch.Tensor:
    """No word is scaled."""
    return torch.ones(TOKENS)


def test_the_same_prompt_follows_itself_token_by_token() -> None:
    for kind in ("replace", "refine"):
        control = align(kind, words("a cat on b"), words("a cat on b"), ones())
        assert torch.equal(control.mapper, torch.eye(TOKENS))
        assert torch.equal(control.inject, torch.ones(TOKENS))


def test_a_swapped_word_takes_the_old_words_columns() -> None:
    control = align("replace", words("a cat b"), words("a dog b"), ones())
    assert torch.equal(control.mapper, torch.eye(TOKENS))


def test_a_swapped_word_of_more_tokens_shares_the_old_words_attention_equally() -> None:
    source, target = words("a cat b"), words("a horse b")  # 2 tokens, 4 tokens
    control = align("replace", source, target, ones())
    attention = torch.rand(5, TOKENS).softmax(-1)
    followed = attention @ control.mapper
    old, new = attention[:, 2:4].sum(1), followed[:, 2:6]
    assert torch.allclose(new, (old / 4)[:, None].expand(-1, 4))
    assert torch.allclose(followed[:, 6], attention[:, 4])  # "b"
    assert torch.allclose(followed[:, 7:].sum(1), attention[:, 5:].sum(1))  # end and padding
    assert torch.allclose(followed.sum(1), torch.ones(5))


def test_replacing_keeps_attention_a_probability_when_words_get_shorter() -> None:
    control = align("replace", words("a horse b"), words("a ox b"), ones())
    assert torch.allclose(control.mapper.sum(1), torch.ones(TOKENS))


def test_added_words_keep_their_own_attention_and_shared_ones_follow() -> None:
    source, target = words("a cat b"), words("a red cat b")
    control = align("refine", source, target, ones())
    assert control.inject.tolist() == [1, 1, 0, 0, *[1] * 8]  # tokens 2 and 3 are "red"
    followed = torch.arange(TOKENS).float() @ control.mapper
    assert followed[[0, 1, 4, 5, 6, 7]].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_alignment_is_the_longest_common_subsequence() -> None:
    pairs = shared_words(words("the cat and the dog"), words("dog and a the big Dog"))
    assert [(old.text, new.text) for old, new in pairs] == [("and", "and"), ("the", "the"), ("dog", "Dog")]


def test_left_out_words_are_skipped() -> None:
    control = align("refine", words("a red cat b"), words("a cat b"), ones())
    assert (torch.arange(TOKENS).float() @ control.mapper)[1:5].tolist() == [1, 4, 5, 6]


def test_the_kind_is_chosen_by_the_number_of_words() -> None:
    assert resolve_kind("", words("a cat"), words("a dog")) == "replace"
    assert resolve_kind("", words("a cat"), words("a red cat")) == "refine"
    assert resolve_kind("refine", words("a cat"), words("a dog")) == "refine"


@pytest.mark.parametrize(("kind", "said"), [("replace", "2 words in prompt and 3"), ("swap", "refine")])
def test_a_kind_that_cannot_be_is_refused(kind: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as error:
        resolve_kind(kind, words("a cat"), words("a red cat"))
    assert error.value.field == "kind"


def test_every_occurrence_of_a_phrase_is_scaled() -> None:
    prompt = words("a red cat a red dog")
    assert [word.start_token for word in places_of("RED cat", prompt)] == [2, 4]
    weights = column_weights({"red": 2.0, "dog": -1.0}, prompt, TOKENS)
    assert weights.tolist() == [1, 1, 2, 2, 1, 1, 1, 2, 2, -1, -1, 1]


@pytest.mark.parametrize("phrase", ["fox", "cat red", ""])
def test_a_word_that_the_prompt_lacks_is_refused(phrase: str) -> None:
    with pytest.raises(InvalidArgument, match="a, red, cat") as error:
        column_weights({phrase: 2.0}, words("a red cat"), TOKENS)
    assert error.value.field == "weights.word"
