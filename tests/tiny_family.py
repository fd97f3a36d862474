"""A family of tiny random weights in the diffusers layout: for tests of everything but looks."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import sfumato.common  # noqa: F401  (before diffusers, for torchvision)
from sfumato.common.identity import save_identity
from sfumato.common.noised_clip import NoisedImageEncoder, save_noised_clip
from sfumato.common.stylegan2 import save_stylegan2
from tests.tiny_models import tiny_identity, tiny_stylegan2, tiny_vqgan

CONTEXT = 24
WIDTH = 32


def save_tiny_family(path: Path, latent_channels: int = 4) -> Path:
    """Writes the family (seeded, so always the same) and returns its folder."""
    torch.manual_seed(0)
    num_tokens = save_tokenizer(path / "tokenizer")
    text_encoder: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=num_tokens, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=CONTEXT, projection_dim=WIDTH,
            bos_token_id=num_tokens - 2, eos_token_id=num_tokens - 1, pad_token_id=num_tokens - 1,
        )
    )  # fmt: skip
    text_encoder.save_pretrained(path / "text_encoder")
    unet: Any = UNet2DConditionModel(
        sample_size=8, in_channels=latent_channels, out_channels=latent_channels, layers_per_block=1,
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=WIDTH, attention_head_dim=4,
        norm_num_groups=8,
    )  # fmt: skip
    unet.save_pretrained(path / "unet")
    vae: Any = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=latent_channels, norm_num_groups=4,
        sample_size=64,
    )  # fmt: skip
    vae.save_pretrained(path / "vae")
    DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    ).save_pretrained(path / "scheduler")  # fmt: skip
    save_clip(path / "clip", num_tokens)
    tiny_vqgan().save_pretrained(path / "vqgan")
    save_stylegan2(tiny_stylegan2(), path / "stylegan2" / "faces")
    save_identity(tiny_identity(), path / "identity")
    noised = NoisedImageEncoder(latent_channels, 8, width=32, layers=2, heads=4, embed_dim=WIDTH)
    save_noised_clip(path / "clip_noised", noised)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def save_clip(path: Path, num_tokens: int) -> None:
    """A tiny CLIP of 32-pixel images in open_clip's `local-dir:` layout."""
    config: dict[str, Any] = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
        "text_cfg": {
            "context_length": CONTEXT, "vocab_size": num_tokens, "width": 32, "heads": 4, "layers": 2,
        },
    }  # fmt: skip
    model: Any = open_clip.CLIP(**config)
    save_tokenizer(path)
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    config["text_cfg"]["hf_tokenizer_name"] = "CLIPTokenizer"
    preprocess = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (path / "open_clip_config.json").write_text(text)


def save_tokenizer(path: Path) -> int:
    """CLIP's byte-pair format with no merges: every byte is a token. Returns the vocabulary's size."""
    path.mkdir(parents=True, exist_ok=True)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + i) for i in range(256 - len(printable))]
    symbols = [chr(code) for code in printable] + others
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "do_lower_case": True, "add_prefix_space": False, "errors": "replace",
    }  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)
