"""StyleGAN2 generators as this project's, whose names are rosinality's.

From rosinality's checkpoints, and from networks.pkl of NVIDIA's stylegan2-ada-pytorch.
"""

import math
import re
from typing import Any

from sfumato.common.checked_weights import WeightsError
from sfumato.common.stylegan2 import StyleGAN2
from sfumato.importer.pickles import Tensors

# What is left out: filters, which are constants, and statistics that the methods work out themselves.
_LEFT_OUT = re.compile(r"(resample_filter|w_avg|latent_avg)$")
_SHARED = {
    "weight": "conv.weight",
    "affine.weight": "conv.modulation.weight",
    "affine.bias": "conv.modulation.bias",
}
_CONV = {**_SHARED, "noise_strength": "noise.weight", "bias": "activate.bias"}
_TO_RGB = {**_SHARED, "bias": "bias"}


def from_rosinality(tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The arguments of StyleGAN2, and its weights: the names are the same.

    Raises:
        WeightsError: a tensor is missing that tells the architecture.
    """
    held = {name: tensor for name, tensor in tensors.items() if not _LEFT_OUT.search(name)}
    return config_of(held), held


def from_nvidia(tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The same from the names of stylegan2-ada-pytorch's generator ("skip" architecture, unconditional).

    Raises:
        WeightsError: a tensor that this architecture does not have.
    """
    held: Tensors = {}
    for name, tensor in tensors.items():
        if not _LEFT_OUT.search(name):
            renamed, reshaped = _from_nvidia(name, tensor)
            held[renamed] = reshaped
    # rosinality keeps the filters as buffers.
    config = config_of(held)
    buffers = {name: t for name, t in StyleGAN2(**config).state_dict().items() if name.endswith(".kernel")}
    return config, {**held, **buffers}


def _from_nvidia(name: str, tensor: Any) -> tuple[str, Any]:
    if found := re.match(r"^mapping\.fc(\d+)\.(weight|bias)$", name):
        return f"style.{int(found[1]) + 1}.{found[2]}", tensor
    if name == "synthesis.b4.const":
        return "input.input", tensor[None]
    found = re.match(r"^synthesis\.b(\d+)\.(conv0|conv1|torgb)\.(.*)$", name)
    if found is None:
        raise WeightsError(f"{name} is not of StyleGAN2's unconditional generator with skip connections")
    level, layer, part = int(math.log2(int(found[1]))) - 2, found[2], found[3]
    index = 0 if level == 0 else 2 * level - 1 + (layer == "conv1")  # of the layers with noise
    if part == "noise_const":
        return f"noises.noise_{index}", tensor[None, None]
    parts = _TO_RGB if layer == "torgb" else _CONV
    if part not in parts:
        raise WeightsError(f"{name} is not of StyleGAN2's unconditional generator with skip connections")
    if layer == "torgb":
        place = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
        tensor = tensor.view(1, -1, 1, 1) if part == "bias" else tensor
    else:
        place = "conv1" if level == 0 else f"convs.{index - 1}"
        tensor = tensor.reshape(1) if part == "noise_strength" else tensor
    return f"{place}.{parts[part]}", tensor[None] if part == "weight" else tensor


def config_of(held: Tensors) -> dict[str, Any]:
    """The arguments of StyleGAN2 that tensors of these names and shapes are of."""
    try:
        channels = [held["input.input"].shape[1]]
        while (name := f"convs.{2 * (len(channels) - 1)}.conv.weight") in held:
            channels.append(held[name].shape[1])
        num_mapping = sum(bool(re.match(r"^style\.\d+\.weight$", name)) for name in held)
        d = held["style.1.weight"].shape[1]
    except KeyError as error:
        raise WeightsError(f"not a StyleGAN2 generator: {error.args[0]} is missing") from error
    size = 4 * 2 ** (len(channels) - 1)
    return {"size": size, "channels": channels, "d": d, "num_mapping_layers": num_mapping}
