"""The auxiliary loss asks for what captions say of the layout, and of nothing else."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.trainer.layout import LayoutHeads
from sfumato.trainer.tokens import tokenizer_of

FAMILY = Path(__file__).parents[3] / "deploy" / "models" / "emoji"
TOKENIZE = tokenizer_of(FAMILY / "tokenizer")
VOCABULARY = 1000


def heads_of(side: torch.Tensor, word: torch.Tensor) -> LayoutHeads:
    """Heads that read their answers off hidden states of side | word logits."""
    heads = LayoutHeads(len(side) + len(word), VOCABULARY, TOKENIZE)
    with torch.no_grad():
        for head, part in ((heads.side, side), (heads.word, word)):
            head.weight.zero_()
            head.bias.zero_()
            head.weight[:, part] = torch.eye(len(part))
    return heads


def hidden_states(caption: str, sides: dict[int, int], words: dict[int, str]) -> torch.Tensor:
    """[1, tokens, 4 + vocabulary]: sure of these sides and words at these places."""
    states = torch.zeros(1, TOKENIZE([caption]).shape[1], 4 + VOCABULARY)
    for place, side in sides.items():
        states[0, place, side] = 50.0
    for place, word in words.items():
        states[0, place, 4 + int(TOKENIZE([word])[0, 1])] = 50.0
    return states


@pytest.mark.parametrize(
    ("caption", "end", "first", "second"),
    [("a cat left of a star", 4, 0, 1), ("a cat right of a star", 4, 1, 0), ("a cat below a star", 3, 3, 2)],
)
def test_a_text_encoder_that_knows_the_layout_has_no_loss(
    caption: str, end: int, first: int, second: int
) -> None:
    heads = heads_of(torch.arange(4), torch.arange(4, 4 + VOCABULARY))
    sides = {end: first, end + 2: second, end + 3: second}
    tokens = TOKENIZE([caption])
    right = heads.loss(hidden_states(caption, sides, {end: "cat"}), tokens)
    swapped = heads.loss(hidden_states(caption, {**sides, end: second}, {end: "cat"}), tokens)
    other = heads.loss(hidden_states(caption, sides, {end: "dog"}), tokens)
    assert float(right) < 1e-6
    assert float(swapped) == pytest.approx(50 / 4)
    assert float(other) == pytest.approx(50 / 4)


def test_captions_without_a_relation_ask_for_nothing() -> None:
    heads = heads_of(torch.arange(4), torch.arange(4, 4 + VOCABULARY))
    states = nn.Parameter(torch.randn(2, 40, 4 + VOCABULARY))
    loss = heads.loss(states, TOKENIZE(["a cat on a blue background", ""]))
    loss.backward()
    assert float(loss) == 0
    assert states.grad is not None
    assert not states.grad.any()
