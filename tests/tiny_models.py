"""Tiny random models for the editing methods, in memory: right in everything but looks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sfumato.common.torchvision_ops  # noqa: F401  (before open_clip)

import open_clip  # isort: skip
import torch
from diffusers import VQModel

from sfumato.common.identity import IdentityNetwork
from sfumato.common.stylegan2 import StyleGAN2

SIDE, CONTEXT, VOCABULARY = 32, 16, 128


def tiny_clip() -> Any:
    """An open_clip CLIP: a ViT of patch 8 on 32 pixels, four layers."""
    torch.manual_seed(1)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": SIDE, "layers": 4, "width": 32, "head_width": 8, "patch_size": 8},
        text_cfg={
            "context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 2,
        },
    )  # fmt: skip
    open_clip.model.set_model_preprocess_cfg(model, {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)})
    return model.eval().requires_grad_(False)


def tiny_tokenizer(texts: list[str]) -> torch.Tensor:
    """Characters as tokens, ended by the largest."""
    rows = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        codes = [min(ord(letter), VOCABULARY - 2) for letter in text[: CONTEXT - 1]] + [VOCABULARY - 1]
        row[: len(codes)] = torch.tensor(codes)
    return rows


def tiny_vqgan() -> Any:
    """A diffusers VQModel, f = 4, a codebook of 16 entries that is spread out as a trained one's is."""
    torch.manual_seed(2)
    model: Any = VQModel(
        block_out_channels=(8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, num_vq_embeddings=16, norm_num_groups=4,
        sample_size=SIDE,
    )  # fmt: skip
    model.quantize.embedding.weight.data.normal_()
    return model.eval().requires_grad_(False)


def tiny_stylegan2() -> StyleGAN2:
    """Of 16 pixels, six layers in W+; its images stay within [-1, 1], as a trained one's do."""
    torch.manual_seed(3)
    model = StyleGAN2(16, [12, 8, 6], d=10, num_mapping_layers=2).eval().requires_grad_(False)
    for layer in (model.to_rgb1, *model.to_rgbs):
        layer.conv.weight.mul_(0.1)
    return model


def tiny_identity() -> IdentityNetwork:
    """Of 16 pixels."""
    torch.manual_seed(4)
    return IdentityNetwork(16, (4, 8), 6).eval().requires_grad_(False)


class TinyModels:
    """What sfumato.editor.method.Models promises, on the CPU."""

    family = Path("tiny")
    device = torch.device("cpu")
    raft = None

    def __init__(self) -> None:
        self.clip = tiny_clip()
        self.tokenizer = tiny_tokenizer
        self.vqgan = tiny_vqgan()
        self.identity, self.generators = tiny_identity(), {"faces": tiny_stylegan2()}
        self.cache: dict[str, dict[str, torch.Tensor]] = {}

    def stylegan2(self, name: str) -> StyleGAN2:
        """By its folder's name."""
        return self.generators[name]

    def cached(
        self, name: str, parts: tuple[str, ...], compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Computed once, then remembered."""
        if name not in self.cache:
            self.cache[name] = compute()
        return self.cache[name]
