"""A small byte-pair vocabulary in CLIP's file format, learnt from captions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sfumato.trainer.scenes import caption, draw_scene
from sfumato.trainer.vocabulary import COLOURS, EMOJI, STYLES
from sfumato.trainer.whole import whole

CONTEXT = 40
SIZE = 1500
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(folder: Path, seed: int = 0) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json."""
    rng = np.random.default_rng(seed)
    texts = [caption(draw_scene(rng), rng) for _ in range(20_000)]
    texts += [word for emoji in EMOJI for word in (emoji.noun, *emoji.synonyms)] + [*COLOURS, *STYLES]
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    split = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(texts, trainer)
    with whole(folder) as fresh:
        _write(fresh, tokenizer, alphabet)


def _write(folder: Path, tokenizer: Tokenizer, alphabet: list[str]) -> None:
    """CLIP's order: bytes, bytes that end a word, merges, start, end."""
    learnt = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in learnt]
    words = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet), *("".join(pair) for pair in merges)]
    unique = [*dict.fromkeys(words), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(unique)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "bos_token": START, "eos_token": END,
        "unk_token": END, "pad_token": END, "do_lower_case": True, "errors": "replace",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def vocabulary_size(folder: Path) -> int:
    """Number of tokens."""
    return len(json.loads((folder / "vocab.json").read_text()))


def tokenizer_of(folder: Path) -> Callable[[list[str]], torch.Tensor]:
    """Texts to int64 [texts, CONTEXT], padded as the diffusers pipeline pads."""
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder)

    def encode(texts: list[str]) -> torch.Tensor:
        ids = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
        tensor: torch.Tensor = ids.input_ids
        return tensor

    return encode
