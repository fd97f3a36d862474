"""Stage 4: checkpoints to the family's folder, in the layouts that diffusers and open_clip read."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from sfumato.common.noised_clip import save_noised_clip
from sfumato.trainer.autoencoder import LATENT_CHANNELS, make_autoencoder
from sfumato.trainer.checkpoint import average_of, part
from sfumato.trainer.clip import MEAN, STD, TEXT_WIDTH, model_config
from sfumato.trainer.noised_clip import NoisedClip
from sfumato.trainer.tokens import CONTEXT, vocabulary_size
from sfumato.trainer.unet import NOISE_SCHEDULE, make_unet

INDEX = {
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


def text_encoder_from(clip: dict[str, torch.Tensor], vocabulary: int) -> Any:
    """open_clip's text tower as transformers' CLIPTextModel: the same function, other names; in eval mode."""
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=TEXT_WIDTH, intermediate_size=TEXT_WIDTH * 4, num_hidden_layers=4,
        num_attention_heads=6, max_position_embeddings=CONTEXT, projection_dim=128, hidden_act="gelu",
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip
    model: Any = CLIPTextModel(config)
    names = {
        "embeddings.token_embedding.weight": clip["token_embedding.weight"],
        "embeddings.position_embedding.weight": clip["positional_embedding"],
        "final_layer_norm.weight": clip["ln_final.weight"],
        "final_layer_norm.bias": clip["ln_final.bias"],
    }
    for layer in range(4):
        source, target = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = clip[f"{source}.attn.in_proj_{kind}"].chunk(3)
            for letter, third in zip("qkv", parts, strict=True):
                names[f"{target}.self_attn.{letter}_proj.{kind}"] = third
            names[f"{target}.self_attn.out_proj.{kind}"] = clip[f"{source}.attn.out_proj.{kind}"]
            for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")):
                names[f"{target}.{ours}.{kind}"] = clip[f"{source}.{theirs}.{kind}"]
            names[f"{target}.mlp.fc1.{kind}"] = clip[f"{source}.mlp.c_fc.{kind}"]
            names[f"{target}.mlp.fc2.{kind}"] = clip[f"{source}.mlp.c_proj.{kind}"]
    prefix = "text_model." if any(key.startswith("text_model.") for key in model.state_dict()) else ""
    model.load_state_dict({f"{prefix}{name}": tensor for name, tensor in names.items()}, strict=False)
    expected = {key for key in model.state_dict() if not key.endswith("position_ids")}
    if expected != {f"{prefix}{name}" for name in names}:
        raise ValueError(
            f"text tower keys differ: {sorted(expected ^ {prefix + name for name in names})[:4]}"
        )
    return model.eval()


def export_clip(clip: dict[str, torch.Tensor], tokenizer: Path, folder: Path) -> None:
    """open_clip's `local-dir:` layout, float16, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(vocabulary_size(tokenizer))
    config["text_cfg"]["hf_tokenizer_name"] = "CLIPTokenizer"
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (folder / "open_clip_config.json").write_text(text)
    half = {name: tensor.half().contiguous() for name, tensor in clip.items()}
    save_file(half, folder / "open_clip_model.safetensors")
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


def export_noised_clip(checkpoint: Path, clip: dict[str, torch.Tensor], folder: Path) -> None:
    """clip_noised/, float16, where it was trained."""
    if checkpoint.exists():
        model = NoisedClip(LATENT_CHANNELS, clip["text_projection"].shape[1], clip["logit_scale"])
        model.load_state_dict(average_of(checkpoint))
        save_noised_clip(folder, model.image.half())


def export(checkpoints: Path, family: Path, judge: Path) -> None:
    """Writes the family, and the judge where there is one, from a folder of checkpoints."""
    tokenizer = checkpoints / "tokenizer"
    clip = average_of(checkpoints / "clip.safetensors")
    vae = make_autoencoder()
    vae.load_state_dict(average_of(checkpoints / "autoencoder.safetensors"))
    scale = float(load_file(checkpoints / "latents.safetensors")["scaling_factor"])
    vae.register_to_config(scaling_factor=scale)
    unet, text_encoder = make_unet(), text_encoder_from(clip, vocabulary_size(tokenizer))
    weights = average_of(checkpoints / "unet.safetensors")
    unet.load_state_dict(part(weights, "unet."))
    text_encoder.load_state_dict(part(weights, "text_encoder."))
    for name, model in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
        model.half().save_pretrained(family / name, safe_serialization=True)
    scheduler: Any = DDIMScheduler(**NOISE_SCHEDULE)
    scheduler.save_pretrained(family / "scheduler")
    _add_to_json(family / "scheduler" / "scheduler_config.json", {"skip_prk_steps": True})
    shutil.copytree(tokenizer, family / "tokenizer", dirs_exist_ok=True)
    export_clip(clip, tokenizer, family / "clip")
    if (checkpoints / "judge.safetensors").exists():
        export_clip(average_of(checkpoints / "judge.safetensors"), tokenizer, judge)
    export_noised_clip(checkpoints / "noised-clip.safetensors", clip, family / "clip_noised")
    (family / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")


def _add_to_json(path: Path, values: dict[str, Any]) -> None:
    """Adds keys that another scheduler class reads from the same file (PNDM's, as in Stable Diffusion)."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2) + "\n")
