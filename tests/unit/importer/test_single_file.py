"""One-file Stable Diffusion checkpoints: the family that comes out holds the same weights."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.common.checked_weights import WeightsError
from sfumato.common.family_check import check_family
from sfumato.importer.single_file import import_single_file

Keys = dict[str, torch.Tensor]
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_unet(name: str, layers: int, attentive: set[int]) -> str:
    """CompVis' name of diffusers' parameter; attentive: up blocks with attention."""
    for new, old in TOP.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old, 1)
    found = re.match(r"^(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)$", name)
    assert found is not None, name
    half, block, kind, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "resnets":
        part, _, tail = rest.partition(".")
        rest = f"{RESNET[part]}.{tail}"
    place = 1 if kind == "attentions" else 0
    if half == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{block * (layers + 1) + layers}.{2 if block in attentive else 1}.{rest}"
    first = 1 if half == "down_blocks" else 0
    side = "input_blocks" if half == "down_blocks" else "output_blocks"
    return f"{side}.{first + block * (layers + 1) + index}.{place}.{rest}"


def original_vae(name: str, tensor: torch.Tensor, levels: int) -> tuple[str, torch.Tensor]:
    """The same for the autoencoder."""
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    name = name.replace("down_blocks.", "down.").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"(down|up)samplers\.0\.", r"\1sample.", name)
    if "mid_block.attentions.0" in name:
        head, kind = name.replace("mid_block.attentions.0", "mid.attn_1").rsplit(".", 1)
        for new, old in ATTENTION.items():
            head = head.replace(f".{new}", f".{old}")
        linear = kind == "weight" and tensor.ndim == 2
        return f"{head}.{kind}", tensor[:, :, None, None] if linear else tensor
    return name, tensor


def one_file(family: Path) -> Keys:
    """The family as CompVis would have saved it."""
    keys: Keys = {}
    for name, tensor in load_file(family / "unet" / "diffusion_pytorch_model.safetensors").items():
        keys[f"model.diffusion_model.{original_unet(name, 1, {1})}"] = tensor
    for name, tensor in load_file(family / "vae" / "diffusion_pytorch_model.safetensors").items():
        renamed, reshaped = original_vae(name, tensor, 4)
        keys[f"first_stage_model.{renamed}"] = reshaped.contiguous()
    for name, tensor in load_file(family / "text_encoder" / "model.safetensors").items():
        prefix = "cond_stage_model.transformer.text_model."
        keys[f"{prefix}{name.removeprefix('text_model.')}"] = tensor
    return keys


def test_a_one_file_checkpoint_becomes_the_family_that_it_was_made_of(
    tiny_family: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(one_file(tiny_family), file)
    family = import_single_file(file, tmp_path / "families" / "mine", str(tiny_family))
    assert check_family(family).errors == []
    for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"),
                       ("text_encoder", "model")):  # fmt: skip
        got, expected = (load_file(folder / part / f"{name}.safetensors") for folder in (family, tiny_family))
        assert got.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(got[key], tensor), key


def test_what_is_no_checkpoint_is_refused_and_leaves_nothing(tiny_family: Path, tmp_path: Path) -> None:
    file, family = tmp_path / "model.safetensors", tmp_path / "mine"
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(WeightsError, match="no Stable Diffusion checkpoint"):
        import_single_file(file, family, str(tiny_family))
    assert not family.exists()
    family.mkdir()
    save_file(one_file(tiny_family), file)
    with pytest.raises(WeightsError, match="exists already"):
        import_single_file(file, family, str(tiny_family))
