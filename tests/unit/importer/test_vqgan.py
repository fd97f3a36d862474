"""taming-transformers' layout: every key finds its place, and the model is the published one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import save_file
from torch.nn import functional as F

from sfumato.common.checked_weights import WeightsError
from sfumato.importer.parts import import_vqgan
from sfumato.importer.vqgan import vqmodel

Keys = dict[str, torch.Tensor]


def published(
    ch: int, mult: tuple[int, ...], attentive: set[int], z: int, entries: int, device: str = "cpu"
) -> Keys:
    """Random weights under the names of taming's Encoder, Decoder and quantiser."""
    generator = torch.Generator().manual_seed(0)
    keys: Keys = {}

    def put(name: str, *shape: int) -> None:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        made = torch.empty(shape, device="meta") if device == "meta" else None
        keys[name] = made if made is not None else torch.randn(shape, generator=generator) / fan_in**0.5

    def conv(name: str, c_in: int, c_out: int, side: int = 3) -> None:
        put(f"{name}.weight", c_out, c_in, side, side)
        put(f"{name}.bias", c_out)

    def norm(name: str, channels: int) -> None:
        put(f"{name}.weight", channels)
        put(f"{name}.bias", channels)

    def block(name: str, c_in: int, c_out: int) -> None:
        norm(f"{name}.norm1", c_in)
        conv(f"{name}.conv1", c_in, c_out)
        norm(f"{name}.norm2", c_out)
        conv(f"{name}.conv2", c_out, c_out)
        if c_in != c_out:
            conv(f"{name}.nin_shortcut", c_in, c_out, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", channels, channels, 1)

    def middle(half: str, channels: int) -> None:
        block(f"{half}.mid.block_1", channels, channels)
        attention(f"{half}.mid.attn_1", channels)
        block(f"{half}.mid.block_2", channels, channels)

    widths = [ch * factor for factor in mult]
    conv("encoder.conv_in", 3, ch)
    before = ch
    for level, width in enumerate(widths):
        for index in range(2):
            block(f"encoder.down.{level}.block.{index}", before, width)
            if level in attentive:
                attention(f"encoder.down.{level}.attn.{index}", width)
            before = width
        if level < len(widths) - 1:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder", before)
    norm("encoder.norm_out", before)
    conv("encoder.conv_out", before, z)
    conv("decoder.conv_in", z, before)
    middle("decoder", before)
    for level in reversed(range(len(widths))):
        for index in range(3):
            block(f"decoder.up.{level}.block.{index}", before, widths[level])
            if level in attentive:
                attention(f"decoder.up.{level}.attn.{index}", widths[level])
            before = widths[level]
        if level:
            conv(f"decoder.up.{level}.upsample.conv", before, before)
    norm("decoder.norm_out", before)
    conv("decoder.conv_out", before, 3)
    conv("quant_conv", z, z, 1)
    conv("post_quant_conv", z, z, 1)
    put("quantize.embedding.weight", entries, z)
    return keys


class Taming:
    """The forward passes of the paper's code (Esser et al. 2021), on the published names."""

    def __init__(self, keys: Keys, levels: int) -> None:
        self.keys, self.levels = keys, levels

    def conv(self, name: str, x: torch.Tensor, **options: Any) -> torch.Tensor:
        weight = self.keys[f"{name}.weight"]
        return F.conv2d(x, weight, self.keys[f"{name}.bias"], padding=weight.shape[-1] // 2, **options)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, self.keys[f"{name}.weight"], self.keys[f"{name}.bias"], 1e-6)

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        y = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", y)))
        return y + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.keys else x)

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if f"{name}.q.weight" not in self.keys:
            return x
        y = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", y).flatten(2) for part in "qkv")
        weights = (torch.einsum("ncq,nck->nqk", q, k) / q.shape[1] ** 0.5).softmax(-1)
        return x + self.conv(f"{name}.proj_out", torch.einsum("nqk,nck->ncq", weights, v).view(x.shape))

    def middle(self, half: str, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(f"{half}.mid.attn_1", self.block(f"{half}.mid.block_1", x))
        return self.block(f"{half}.mid.block_2", x)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv("encoder.conv_in", x)
        for level in range(self.levels):
            for index in range(2):
                x = self.block(f"encoder.down.{level}.block.{index}", x)
                x = self.attention(f"encoder.down.{level}.attn.{index}", x)
            if level < self.levels - 1:
                name = f"encoder.down.{level}.downsample.conv"
                weight, bias = self.keys[f"{name}.weight"], self.keys[f"{name}.bias"]
                x = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, stride=2)
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder", x)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x))

    def quantise(self, z: torch.Tensor) -> torch.Tensor:
        codebook, flat = self.keys["quantize.embedding.weight"], z.permute(0, 2, 3, 1)
        nearest = (flat[..., None, :] - codebook).square().sum(-1).argmin(-1)
        return codebook[nearest].permute(0, 3, 1, 2)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        x = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", z)))
        for level in reversed(range(self.levels)):
            for index in range(3):
                x = self.block(f"decoder.up.{level}.block.{index}", x)
                x = self.attention(f"decoder.up.{level}.attn.{index}", x)
            if level:
                up = F.interpolate(x, scale_factor=2, mode="nearest")
                x = self.conv(f"decoder.up.{level}.upsample.conv", up)
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)))


def test_an_imported_vqgan_computes_what_the_published_one_does(tmp_path: Path) -> None:
    keys = published(32, (1, 2, 2), {2}, 8, 40)
    save_file({**keys, "loss.discriminator.main.0.weight": torch.ones(1)}, tmp_path / "vqgan.safetensors")
    folder = import_vqgan(tmp_path / "vqgan.safetensors", tmp_path / "family")
    model: Any = VQModel.from_pretrained(folder, use_safetensors=True).double()
    reference = Taming({name: tensor.double() for name, tensor in keys.items()}, 3)
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        z = model.encode(image).latents
        torch.testing.assert_close(z, reference.encode(image))
        codes = reference.quantise(z)
        torch.testing.assert_close(model.quantize(z)[0], codes)
        torch.testing.assert_close(
            model.decode(codes, force_not_quantize=True).sample, reference.decode(codes)
        )


@pytest.mark.parametrize("entries", [1024, 16384])
def test_the_published_f16_models_have_a_place_for_every_key(entries: int) -> None:
    keys = published(128, (1, 1, 2, 2, 4), {4}, 256, entries, "meta")
    config, renamed = vqmodel(keys)
    with torch.device("meta"):
        expected = VQModel.from_config(config).state_dict()
    assert {name: tensor.shape for name, tensor in renamed.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


def test_what_is_no_vqgan_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    keys = published(32, (1, 2), set(), 8, 16)
    keys.pop("decoder.up.0.block.1.conv1.bias")
    save_file(keys, tmp_path / "vqgan.safetensors")
    with pytest.raises(WeightsError, match=r"decoder.up_blocks.1.resnets.1.conv1.bias is missing"):
        import_vqgan(tmp_path / "vqgan.safetensors", tmp_path / "family")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not a VQGAN"):
        import_vqgan(tmp_path / "other.safetensors", tmp_path / "family")
    assert not (tmp_path / "family" / "vqgan").exists()
