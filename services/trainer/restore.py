"""Checkpoints from an exported family, so that training goes on from what the repository holds."""

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

from sfumato.common.noised_clip import load_noised_clip
from sfumato.trainer.autoencoder import LATENT_CHANNELS, make_autoencoder
from sfumato.trainer.checkpoint import Checkpoint
from sfumato.trainer.clip import TEXT_WIDTH, make_clip
from sfumato.trainer.layout import LayoutHeads
from sfumato.trainer.loop import make_optimizer
from sfumato.trainer.noised_clip import NoisedClip
from sfumato.trainer.tokens import tokenizer_of, vocabulary_size
from sfumato.trainer.whole import whole


def restore(family: Path, judge: Path, checkpoints: Path) -> list[str]:
    """Writes the checkpoints that are missing and whose part the family has; gives the stages' names."""
    clip = make_clip(vocabulary_size(family / "tokenizer"))
    parts: dict[str, tuple[Path, Any]] = {
        "autoencoder": (family / "vae", make_autoencoder),
        "clip": (family / "clip", lambda: clip),
        "judge": (judge, lambda: clip),
        "unet": (family / "unet", lambda: None),
        "noised-clip": (family / "clip_noised", lambda: clip),
    }
    tokenizer = checkpoints / "tokenizer"
    if not tokenizer.is_dir():
        with whole(tokenizer) as fresh:
            shutil.copytree(family / "tokenizer", fresh)
    written = []
    for name, (folder, make) in parts.items():
        path = checkpoints / f"{name}.safetensors"
        if folder.is_dir() and not path.exists():
            Checkpoint(path, model := _load(name, family, folder, make()), make_optimizer(model, 1e-3)).save()
            written.append(name)
    return written


def _load(name: str, family: Path, folder: Path, model: Any) -> torch.nn.Module:
    """The part as its stage trains it, in float32."""
    if name == "unet":
        unet: Any = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
        text: Any = CLIPTextModel.from_pretrained(family / "text_encoder", torch_dtype=torch.float32)
        tokenizer = family / "tokenizer"
        layout = LayoutHeads(TEXT_WIDTH, vocabulary_size(tokenizer), tokenizer_of(tokenizer))
        return torch.nn.ModuleDict({"unet": unet, "text_encoder": text, "layout": layout})
    if name == "noised-clip":
        # The temperature is not exported: it starts as CLIP's, as the stage itself has it.
        scale = load_file(family / "clip" / "open_clip_model.safetensors")["logit_scale"].float()
        noised = NoisedClip(LATENT_CHANNELS, model.text_projection.shape[1], scale)
        noised.image.load_state_dict(load_noised_clip(folder).state_dict())
        return noised
    if name == "autoencoder":
        weights = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).state_dict()
    else:
        weights = load_file(folder / "open_clip_model.safetensors")
    loaded: torch.nn.Module = model.float()
    loaded.load_state_dict(weights)
    return loaded
