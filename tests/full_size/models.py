"""Stable Diffusion 1.5, 2.1 and XL at their published sizes, with random weights, in the published layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

CONTEXT = 77
CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
CLIP_H: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "projection_dim": 512, "hidden_act": "gelu",
}  # fmt: skip
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
CROSS, DOWN, UP = "CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D"
CROSS_UP = "CrossAttnUpBlock2D"
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True, "block_out_channels": (320, 640, 1280),
        "down_block_types": (DOWN, CROSS, CROSS), "up_block_types": (CROSS_UP, CROSS_UP, UP),
        "transformer_layers_per_block": (1, 2, 10), "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip


def save_family(name: str, family: Path, tokenizer: Path) -> Path:
    """Writes the family, one part in memory at a time; about 4, 5 and 14 GB.

    Args:
        name: sd15, sd21 or sdxl.
        family: the folder.
        tokenizer: CLIP's byte-pair format; any, since the weights are random.
    """
    torch.manual_seed(0)
    scaling = 0.13025 if name == "sdxl" else 0.18215
    _save(UNet2DConditionModel(**UNETS[name]), family / "unet")
    _save(
        AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2,
            sample_size=512, scaling_factor=scaling,
        ),
        family / "vae",
    )  # fmt: skip
    towers: dict[str, tuple[Any, dict[str, Any]]] = {
        "sd15": {"": (CLIPTextModel, CLIP_L)},
        "sd21": {"": (CLIPTextModel, CLIP_H)},
        "sdxl": {"": (CLIPTextModel, CLIP_L), "_2": (CLIPTextModelWithProjection, CLIP_G)},
    }[name]
    for suffix, (kind, options) in towers.items():
        config = CLIPTextConfig(max_position_embeddings=CONTEXT, **options)
        _save(kind(config), family / f"text_encoder{suffix}")
        shutil.copytree(tokenizer, family / f"tokenizer{suffix}")
        file = family / f"tokenizer{suffix}" / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": CONTEXT}))
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    if name == "sdxl":
        EulerDiscreteScheduler(**schedule, timestep_spacing="leading").save_pretrained(family / "scheduler")
    else:
        prediction = "v_prediction" if name == "sd21" else "epsilon"
        DDIMScheduler(
            **schedule, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction
        ).save_pretrained(family / "scheduler")
    (family / "model_index.json").write_text(json.dumps(_index(name)))
    return family


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def _index(name: str) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if name == "sdxl" else "StableDiffusionPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler" if name == "sdxl" else "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if name == "sdxl":
        return index | {
            "force_zeros_for_empty_prompt": True,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    return index | {"safety_checker": [None, None], "feature_extractor": [None, None]}
