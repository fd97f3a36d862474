"""How a target prompt's tokens follow a source prompt's: prompt-to-prompt (Hertz et al. 2022), section 3.2.

Replace ("word swap"): word i follows word i. Refine ("adding a new phrase"): words that both prompts share,
in order, follow each other, A(j) in the paper; the rest keep their own attention. What comes out is the
denoiser's AttentionControl: attention to target token j is sum_i source_i mapper[i, j] where inject[j].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sfumato.common.errors import InvalidArgument
from sfumato.gateway.attention_maps import Word

KINDS = ("replace", "refine")
MAX_WEIGHT = 2.0


@dataclass(frozen=True)
class AttentionControl:
    """Shapes: mapper [tokens, tokens], source tokens down; inject and weights [tokens] of the target."""

    mapper: torch.Tensor
    inject: torch.Tensor
    weights: torch.Tensor


def resolve_kind(kind: str, source: Sequence[Word], target: Sequence[Word]) -> str:
    """The kind asked for, or by the number of words where "" is.

    Raises:
        InvalidArgument: no such kind, or replace with unequal numbers of words.
    """
    equal = len(source) == len(target)
    if kind == "":
        return "replace" if equal else "refine"
    if kind not in KINDS:
        raise InvalidArgument("kind", f"one of {', '.join(KINDS)}", kind)
    if kind == "replace" and not equal:
        counts = f"{len(source)} words in prompt and {len(target)} in target_prompt"
        advice = "Ask for refine where words are added or left out."
        raise InvalidArgument("kind", "refine where the prompts differ in their number of words",
                              f"replace, with {counts}", advice)  # fmt: skip
    return kind


def align(
    kind: str, source: Sequence[Word], target: Sequence[Word], weights: torch.Tensor
) -> AttentionControl:
    """The control for a resolved kind; weights [tokens] are the target's, from column_weights."""
    num_tokens = len(weights)
    pairs = list(zip(source, target, strict=True)) if kind == "replace" else shared_words(source, target)
    mapper, inject = torch.zeros(num_tokens, num_tokens), torch.zeros(num_tokens)
    mapper[0, 0] = inject[0] = 1  # the start token
    for old, new in pairs:
        _follow(mapper, inject, range(old.start_token, old.end_token), range(new.start_token, new.end_token))
    tails = (range(words[-1].end_token if words else 1, num_tokens) for words in (source, target))
    _follow_tail(mapper, inject, *tails)
    return AttentionControl(mapper, inject, weights)


def shared_words(source: Sequence[Word], target: Sequence[Word]) -> list[tuple[Word, Word]]:
    """The longest common subsequence of the prompts' words, without regard to case, as pairs in order."""
    old, new = ([word.text.lower() for word in words] for words in (source, target))
    # longest[i][j]: of old[i:] and new[j:]
    longest = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in reversed(range(len(old))):
        for j in reversed(range(len(new))):
            same = old[i] == new[j]
            longest[i][j] = 1 + longest[i + 1][j + 1] if same else max(longest[i + 1][j], longest[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        if old[i] == new[j]:
            pairs.append((source[i], target[j]))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _follow(mapper: torch.Tensor, inject: torch.Tensor, old: range, new: range) -> None:
    """A word's tokens follow a word's: one by one where there are as many, else in equal shares."""
    if len(old) == len(new):
        mapper[list(old), list(new)] = 1
    else:
        mapper[old.start : old.stop, new.start : new.stop] = 1 / len(new)
    inject[new.start : new.stop] = 1


def _follow_tail(mapper: torch.Tensor, inject: torch.Tensor, old: range, new: range) -> None:
    """The end token and the padding behind it, one by one; the last target token takes what is left over."""
    common = min(len(old), len(new))
    if not common:
        return
    mapper[list(old[:common]), list(new[:common])] = 1
    mapper[old.start + common : old.stop, new[common - 1]] = 1
    inject[new.start : new.stop] = 1


def places_of(phrase: str, words: Sequence[Word]) -> list[Word]:
    """Every occurrence of one or more words in a row, without regard to case: all of their words."""
    wanted, texts = phrase.lower().split(), [word.text.lower() for word in words]
    size = len(wanted)
    starts = [i for i in range(len(texts) - size + 1) if size and texts[i : i + size] == wanted]
    return [word for start in starts for word in words[start : start + size]]


def column_weights(scales: Mapping[str, float], words: Sequence[Word], num_tokens: int) -> torch.Tensor:
    """What each target token's attention is multiplied by, [num_tokens].

    Args:
        scales: c of each phrase, -2 to 2.
        words: of the target prompt.
        num_tokens: of the conditioning.

    Raises:
        InvalidArgument: a phrase that the prompt does not have.
    """
    weights = torch.ones(num_tokens)
    for phrase, scale in scales.items():
        found = places_of(phrase, words)
        if not found:
            known = ", ".join(word.text for word in words)
            raise InvalidArgument("weights.word", f"words of target_prompt ({known})", phrase)
        for word in found:
            weights[word.start_token : word.end_token] = scale
    return weights
