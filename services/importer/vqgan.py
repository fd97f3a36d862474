"""taming-transformers' VQGAN (Esser et al. 2021) as diffusers' VQModel: keys renamed, nothing left over."""

import re
from typing import Any

from sfumato.common.checked_weights import WeightsError
from sfumato.importer.pickles import Tensors

_LEVEL = re.compile(r"^(encoder|decoder)\.(down|up)\.(\d+)\.(.*)$")
_NAMES = (
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vqmodel(tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The arguments of diffusers' VQModel, and its weights.

    Args:
        tensors: with taming's names; those of its training losses are left out.

    Raises:
        WeightsError: a tensor is missing that tells the architecture.
    """
    held = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
    try:
        config = _config(held)
    except KeyError as error:
        raise WeightsError(f"not a VQGAN of taming-transformers: {error.args[0]} is missing") from error
    levels = len(config["block_out_channels"])
    return config, dict(_renamed(name, tensor, levels) for name, tensor in held.items())


def _config(held: Tensors) -> dict[str, Any]:
    channels: list[int] = []
    while (name := f"encoder.down.{len(channels)}.block.0.conv1.weight") in held:
        channels.append(held[name].shape[0])
    if not channels:
        raise KeyError("encoder.down.0.block.0.conv1.weight")
    attentive = [f"encoder.down.{level}.attn.0.q.weight" in held for level in range(len(channels))]
    layers = sum(f"encoder.down.0.block.{index}.conv1.weight" in held for index in range(16))
    codebook = held["quantize.embedding.weight"]
    return {
        "in_channels": held["encoder.conv_in.weight"].shape[1],
        "out_channels": held["decoder.conv_out.weight"].shape[0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": [f"{'Attn' if seen else ''}DownEncoderBlock2D" for seen in attentive],
        "up_block_types": [f"{'Attn' if seen else ''}UpDecoderBlock2D" for seen in reversed(attentive)],
        "latent_channels": held["encoder.conv_out.weight"].shape[0],
        "num_vq_embeddings": codebook.shape[0],
        "vq_embed_dim": codebook.shape[1],
        "sample_size": 256,
    }


def _renamed(name: str, tensor: Any, levels: int) -> tuple[str, Any]:
    if found := _LEVEL.match(name):
        half, way, level, rest = found.groups()
        index = int(level) if way == "down" else levels - 1 - int(level)  # taming's up.0 is the last
        rest = re.sub(r"^block\.", "resnets.", rest)
        rest = re.sub(r"^attn\.", "attentions.", rest)
        rest = re.sub(r"^(down|up)sample\.", r"\1samplers.0.", rest)
        name = f"{half}.{way}_blocks.{index}.{rest}"
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    if found := re.match(r"^(.*attentions\.\d+)\.(norm|q|k|v|proj_out)\.(weight|bias)$", name):
        prefix, part, kind = found.groups()
        name = f"{prefix}.{_ATTENTION[part]}.{kind}"
        if kind == "weight" and tensor.ndim == 4:  # a convolution of 1x1 is a linear layer
            tensor = tensor[:, :, 0, 0]
    return name, tensor
