"""Tiny random families of Stable Diffusion's other architectures, each in the published layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_family import CONTEXT, WIDTH, save_tiny_family, save_tokenizer

POOLED = 40
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": POOLED + 6 * 8,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def save_sdxl(path: Path) -> Path:
    """SDXL: two text encoders, a pooled embedding, sizes as numbers."""
    save_tiny_family(path)
    num_tokens = save_tokenizer(path / "tokenizer_2")
    torch.manual_seed(6)
    for part, kind, width, projected in (
        ("text_encoder", CLIPTextModel, WIDTH, WIDTH),
        ("text_encoder_2", CLIPTextModelWithProjection, 48, POOLED),
    ):
        model: Any = kind(_text_config(num_tokens, width, projected))
        model.save_pretrained(path / part)
    _save_unet(path, cross_attention_dim=WIDTH + 48, **SDXL)
    EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
        timestep_spacing="leading",
    ).save_pretrained(path / "scheduler")  # fmt: skip
    index = json.loads((path / "model_index.json").read_text())
    for part in ("safety_checker", "requires_safety_checker", "feature_extractor"):
        index.pop(part)
    index |= {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def save_refiner(path: Path) -> Path:
    """SDXL's refiner: its second text encoder alone, whose pooled embedding is as wide as its tokens."""
    save_sdxl(path)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(path / part)
    torch.manual_seed(8)
    model: Any = CLIPTextModelWithProjection(_text_config(save_tokenizer(path / "tokenizer_2"), 48, 48))
    model.save_pretrained(path / "text_encoder_2")
    _save_unet(
        path, **{**SDXL, "cross_attention_dim": 48, "projection_class_embeddings_input_dim": 48 + 5 * 8}
    )
    index = json.loads((path / "model_index.json").read_text())
    index |= {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "force_zeros_for_empty_prompt": False,
        "requires_aesthetics_score": True,
        "text_encoder": [None, None],
        "tokenizer": [None, None],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def save_v_prediction(path: Path) -> Path:
    """Stable Diffusion 2.1: v-prediction, head sizes by level, linear projections."""
    save_tiny_family(path)
    file = path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    _save_unet(path, attention_head_dim=(2, 4), use_linear_projection=True, cross_attention_dim=WIDTH)
    return path


def save_lcm(path: Path) -> Path:
    """A latent consistency model: the guidance scale is an input of the UNet."""
    save_tiny_family(path)
    _save_unet(path, time_cond_proj_dim=16, cross_attention_dim=WIDTH)
    LCMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=True,
    ).save_pretrained(path / "scheduler")  # fmt: skip
    index = json.loads((path / "model_index.json").read_text())
    index |= {
        "_class_name": "LatentConsistencyModelPipeline",
        "scheduler": ["diffusers", "LCMScheduler"],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def save_pixels(path: Path) -> Path:
    """Pixel space as far as it is served: latents as large as the image, three channels, GLIDE's schedule."""
    save_tiny_family(path, latent_channels=3)
    _save_unet(path, sample_size=64, in_channels=3, out_channels=3, cross_attention_dim=WIDTH)
    vae: Any = AutoencoderKL(block_out_channels=(8,), latent_channels=3, norm_num_groups=4, sample_size=64)
    vae.save_pretrained(path / "vae")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(path / "scheduler")
    return path


def _text_config(num_tokens: int, width: int, projected: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=num_tokens, hidden_size=width, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=CONTEXT, projection_dim=projected,
        bos_token_id=num_tokens - 2, eos_token_id=num_tokens - 1, pad_token_id=num_tokens - 1,
    )  # fmt: skip


def _save_unet(path: Path, **changes: Any) -> None:
    torch.manual_seed(7)
    options: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        **changes,
    }
    unet: Any = UNet2DConditionModel(
        layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, **options
    )
    unet.save_pretrained(path / "unet")
