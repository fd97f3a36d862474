"""GLIDE's noised CLIP (openai/glide-text2im's clip_image_enc.pt and clip_text_enc.pt) as GlideClip."""

import math
import re
from typing import Any

from sfumato.common.checked_weights import WeightsError
from sfumato.common.glide_clip import CLASS_NAME
from sfumato.importer.pickles import Tensors

_NAMES = (
    (r"^input\.w_t$", "timesteps.weight"),
    (r"^input\.patch_proj$", "patches.weight"),
    (r"^input\.w_voc$", "tokens.weight"),
    (r"^input\.w_pos$", "positions"),
    (r"^input\.ln\.", "norm."),
    (r"^block_(\d+)\.", r"blocks.\1."),
    (r"\.f_attn\.ln\.", ".norm_1."),
    (r"\.f_attn\.f_([qkv])\.", r".to_\1."),
    (r"\.f_attn\.f_c\.", ".to_out."),
    (r"\.f_mlp\.ln\.", ".norm_2."),
    (r"\.f_mlp\.f_([12])\.", r".linear_\1."),
    (r"^output\.ln\.", "projection.norm."),
    (r"^output\.f\.", "projection.linear."),
    (r"\.[gw]$", ".weight"),
    (r"\.b$", ".bias"),
)


def glide_clip(image: Tensors, text: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The arguments of GlideClip, and its weights.

    Args:
        image, text: of the two published files.

    Raises:
        WeightsError: a tensor is missing that tells the architecture.
    """
    try:
        config = _config(image, text)
    except KeyError as error:
        raise WeightsError(f"not GLIDE's noised CLIP: {error.args[0]} is missing") from error
    towers = (("image", image), ("text", text))
    return config, {f"{tower}.{_renamed(name)}": t for tower, held in towers for name, t in held.items()}


def _config(image: Tensors, text: Tensors) -> dict[str, Any]:
    num_timesteps, image_width = image["blocks.input.w_t"].shape
    patch_size = image["blocks.input.patch_proj"].shape[-1]
    vocabulary_size, text_width = text["blocks.input.w_voc"].shape
    return {
        "_class_name": CLASS_NAME,
        "side": math.isqrt(image["blocks.input.w_pos"].shape[0] - 1) * patch_size,
        "patch_size": patch_size,
        "num_timesteps": num_timesteps,
        "image_width": image_width,
        "image_layers": _num_layers(image),
        "vocabulary_size": vocabulary_size,
        "context_length": text["blocks.input.w_pos"].shape[0],
        "text_width": text_width,
        "text_layers": _num_layers(text),
        "embed_dim": image["blocks.output.f.w"].shape[0],
    }


def _num_layers(held: Tensors) -> int:
    return sum(bool(re.match(r"^blocks\.block_\d+\.f_attn\.f_q\.w$", name)) for name in held)


def _renamed(name: str) -> str:
    name = name.removeprefix("blocks.")
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name
