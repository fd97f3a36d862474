"""LoRA adapters in each published format change the weights by (alpha / rank) B A, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sfumato.common.adapters import read_change
from sfumato.common.checked_weights import WeightsError
from sfumato.common.errors import ResourceExhausted
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.unets import Adapters
from sfumato.encoder.engine_torch import TextEncoder

CPU = torch.device("cpu")
RANK, ALPHA = 3, 6.0
UNET_LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1",
)
TEXT_LAYERS = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.mark.parametrize("ranks", [(0, 0), (3, 4)])
def test_halves_that_do_not_fit_each_other_are_refused(tmp_path: Path, ranks: tuple[int, int]) -> None:
    a, b = torch.zeros(ranks[0], 8), torch.zeros(8, ranks[1])
    name = f"unet.{UNET_LAYERS[0]}"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="which are of no rank"):
        read_change(tmp_path / "a.safetensors", "unet")


def layer_of(model: Any, name: str) -> torch.Tensor:
    weight: torch.Tensor = model.get_submodule(name).weight
    return weight


def pairs_for(model: Any, names: tuple[str, ...]) -> Pairs:
    """Random halves (A, B) for the layers."""
    torch.manual_seed(3)
    pairs = {}
    for name in names:
        c_out, c_in, *sides = layer_of(model, name).shape
        tail = [1] * len(sides)
        pairs[name] = torch.randn(RANK, c_in, *sides) * 0.3, torch.randn(c_out, RANK, *tail) * 0.3
    return pairs


def kohya(unet: Pairs, text: Pairs) -> dict[str, torch.Tensor]:
    """As kohya's scripts and most published files name them; alpha beside the pair."""
    found = {}
    for prefix, pairs in (("lora_unet_", unet), ("lora_te_text_model_", text)):
        for name, (a, b) in pairs.items():
            key = prefix + name.replace(".", "_")
            found |= {
                f"{key}.lora_down.weight": a,
                f"{key}.lora_up.weight": b,
                f"{key}.alpha": torch.tensor(ALPHA),
            }
    return found


def peft(unet: Pairs, text: Pairs) -> dict[str, torch.Tensor]:
    """As diffusers saves them today."""
    found = {}
    for prefix, pairs in (("unet.", unet), ("text_encoder.text_model.", text)):
        for name, (a, b) in pairs.items():
            found |= {f"{prefix}{name}.lora_A.weight": a, f"{prefix}{name}.lora_B.weight": b}
    return found


def older(unet: Pairs, text: Pairs) -> dict[str, torch.Tensor]:
    """As diffusers saved them before; alpha is the rank."""
    found = {}
    for prefix, pairs, kind in (
        ("unet.", unet, "lora"),
        ("text_encoder.text_model.", text, "lora_linear_layer"),
    ):
        for name, (a, b) in pairs.items():
            found |= {f"{prefix}{name}.{kind}.down.weight": a, f"{prefix}{name}.{kind}.up.weight": b}
    return found


FORMATS: dict[str, tuple[Any, float, dict[str, str]]] = {
    "kohya": (kohya, ALPHA / RANK, {}),
    "peft": (peft, 1.0, {}),
    "peft with alpha": (
        peft,
        ALPHA / RANK,
        {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": ALPHA, "text_encoder.lora_alpha": ALPHA})},
    ),
    "older": (older, 1.0, {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_an_adapter_changes_its_layers_as_the_paper_says(
    name: str, tiny_family: Path, tmp_path: Path
) -> None:
    write, scale, metadata = FORMATS[name]
    unet, text = TorchUNet(tiny_family, CPU), TextEncoder(tiny_family, CPU)
    of_unet, of_text = pairs_for(unet.model, UNET_LAYERS), pairs_for(text.model, TEXT_LAYERS)
    file = tmp_path / "style.safetensors"
    save_file({key: t.contiguous() for key, t in write(of_unet, of_text).items()}, file, metadata or None)
    for before, after, pairs in (
        (unet.model, unet.with_adapter(file).model, of_unet),
        (text.model, text.with_adapter(file).model, of_text),
    ):
        for layer, weight in before.named_parameters():
            changed = dict(after.named_parameters())[layer]
            owner = layer.removesuffix(".weight")
            if owner not in pairs:
                assert changed is weight  # shared, not copied
                continue
            a, b = pairs[owner]
            delta = torch.einsum("or,ri->oi", b.flatten(1).double(), a.flatten(1).double()).view(weight.shape)
            torch.testing.assert_close(
                changed.double(), weight.double() + scale * delta, rtol=1e-5, atol=1e-6
            )


def test_with_and_without_the_adapter_are_two_models_at_once(tiny_family: Path, tmp_path: Path) -> None:
    unet = TorchUNet(tiny_family, CPU)
    file = tmp_path / "style.safetensors"
    save_file(peft(pairs_for(unet.model, UNET_LAYERS), {}), file)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    given = latents, 300.0, Conditioning(torch.randn(1, 24, 32, generator=generator))
    before = unet.noise_pred(*given)
    adapted = unet.with_adapter(file)
    after = adapted.noise_pred(*given)
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.equal(unet.noise_pred(*given), before)
    kept = adapted.linearise(*given)
    torch.testing.assert_close(kept.output, after)


def test_what_is_no_adapter_of_the_model_is_named(tiny_family: Path, tmp_path: Path) -> None:
    unet, file = TorchUNet(tiny_family, CPU), tmp_path / "other.safetensors"
    for tensors, told in (
        ({"weight": torch.ones(1)}, "not of a LoRA adapter"),
        ({"unet.nowhere.lora_A.weight": torch.ones(2, 4), "unet.nowhere.lora_B.weight": torch.ones(4, 2)},
         "no layer nowhere"),
        ({"unet.conv_in.lora_A.weight": torch.ones(2, 4)}, "one half"),
        ({"unet.conv_out.lora_A.weight": torch.ones(2, 9), "unet.conv_out.lora_B.weight": torch.ones(4, 2)},
         "conv_out changes"),
    ):  # fmt: skip
        save_file(tensors, file)
        with pytest.raises(WeightsError, match=told):
            unet.with_adapter(file)
    file.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(WeightsError, match="pickle"):
        read_change(file, "unet")


async def test_an_adapter_that_memory_has_no_room_for_is_refused_as_such(tmp_path: Path) -> None:
    class Full:
        def with_adapter(self, file: Path) -> TorchUNet:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    base: Any = Full()
    with pytest.raises(ResourceExhausted, match="has memory for at present"):
        await Adapters(base, {"style": tmp_path / "style.safetensors"}, 1).get("style")
