"""The denoiser's attention: maps against a hook on diffusers' UNet, and what steering does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from sfumato.denoiser.attention import AttentionUNet, LayerMaps, by_resolution, num_cross_attention_layers
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.probes import Control

CPU = torch.device("cpu")
TOKENS = 24


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the denoiser has it; more threads only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unet(tiny_family: Path) -> TorchUNet:
    """As the denoiser loads it."""
    return TorchUNet(tiny_family, CPU)


@pytest.fixture(scope="module")
def attention(unet: TorchUNet) -> AttentionUNet:
    """Its twin that can be looked into."""
    return AttentionUNet(unet.model, CPU)


def inputs(rows: int, height: int = 8, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and conditioning of different rows."""
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(rows, 4, height, width, generator=generator)
    return latents, torch.randn(rows, TOKENS, 32, generator=generator)


def hooked_maps(unet: Any, latents: torch.Tensor, embeds: torch.Tensor) -> dict[int, torch.Tensor]:
    """Softmax probabilities in float64 from what enters each attn2, averaged: pixels to [pixels, tokens]."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output.double()))
        for name, module in unet.named_modules()
        if name.endswith(("attn2.to_q", "attn2.to_k"))
    ]
    with torch.no_grad():
        unet(latents, torch.tensor([500.0]), embeds)
    for hook in hooks:
        hook.remove()
    layers: dict[int, list[torch.Tensor]] = {}
    for name in (name for name in seen if name.endswith("to_q")):
        heads = unet.get_submodule(name.removesuffix(".to_q")).heads
        query, key = (
            seen[name[:-1] + kind][0].unflatten(-1, (heads, -1)).transpose(0, 1) for kind in ("q", "k")
        )
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        layers.setdefault(len(query[0]), []).append(scores.softmax(-1).mean(0))
    return {pixels: torch.stack(maps).mean(0) for pixels, maps in layers.items()}


def whole_of(levels: list[LayerMaps]) -> torch.Tensor:
    """All levels as one row of numbers."""
    return torch.cat([level.maps.flatten() for level in levels])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 6), (7, 9)])
def test_maps_are_the_probabilities_that_a_hook_on_the_unet_sees(
    unet: TorchUNet, attention: AttentionUNet, height: int, width: int
) -> None:
    latents, embeds = inputs(1, height, width)
    _, levels = attention.noise_pred_and_maps(latents, 500.0, Conditioning(embeds))
    expected = hooked_maps(unet.model, latents, embeds)
    assert [level.maps.shape[1] * level.maps.shape[2] for level in levels] == sorted(expected, reverse=True)
    for level in levels:
        flat = level.maps.flatten(1).T.double()
        assert torch.allclose(flat, expected[len(flat)], atol=1e-6)
    assert levels[0].maps.shape == (TOKENS, height, width)
    assert sum(level.num_layers for level in levels) == num_cross_attention_layers(unet.model)


def test_looking_changes_no_bit_of_the_prediction(unet: TorchUNet, attention: AttentionUNet) -> None:
    latents, embeds = inputs(1)
    seen, _ = attention.noise_pred_and_maps(latents, 500.0, Conditioning(embeds))
    assert torch.equal(seen, unet.noise_pred(latents, 500.0, Conditioning(embeds)))


def test_the_twin_holds_no_second_copy_of_the_weights(unet: TorchUNet, attention: AttentionUNet) -> None:
    own = {id(parameter) for parameter in unet.model.parameters()}
    assert {id(parameter) for parameter in attention.model.parameters()} == own


def control(inject: float = 1.0, **weights: float) -> Control:
    """Token i follows token i; weights by "t<index>"."""
    scale = torch.ones(TOKENS)
    for name, value in weights.items():
        scale[int(name[1:])] = value
    return Control(torch.eye(TOKENS), torch.full((TOKENS,), inject), scale)


def test_an_identity_edit_gives_the_target_the_sources_bits(attention: AttentionUNet) -> None:
    latents, embeds = inputs(1)
    both, twice = latents.repeat(2, 1, 1, 1), embeds.repeat(2, 1, 1)
    for replace in (True, False):
        noise_pred, (source, target) = attention.edit(
            both, 500.0, Conditioning(twice), control(), replace, replace
        )
        assert torch.equal(noise_pred[0], noise_pred[1])
        assert torch.equal(whole_of(source), whole_of(target))


def test_the_source_is_not_touched_by_the_edit(unet: TorchUNet, attention: AttentionUNet) -> None:
    latents, embeds = inputs(2)
    noise_pred, _ = attention.edit(latents, 500.0, Conditioning(embeds), control(t3=2.0), True, True)
    assert torch.allclose(
        noise_pred[:1], unet.noise_pred(latents[:1], 500.0, Conditioning(embeds[:1])), atol=1e-5
    )


def test_without_control_the_target_is_a_prediction_of_its_own(
    unet: TorchUNet, attention: AttentionUNet
) -> None:
    latents, embeds = inputs(2)
    noise_pred, _ = attention.edit(latents, 500.0, Conditioning(embeds), control(inject=0.0), True, False)
    assert torch.allclose(
        noise_pred[1:], unet.noise_pred(latents[1:], 500.0, Conditioning(embeds[1:])), atol=1e-5
    )


def test_shared_tokens_take_the_sources_columns_and_others_keep_their_own(attention: AttentionUNet) -> None:
    latents, embeds = inputs(2)
    some = Control(torch.eye(TOKENS), (torch.arange(TOKENS) < 5).float(), torch.ones(TOKENS))
    _, (source, target) = attention.edit(latents, 500.0, Conditioning(embeds), some, True, False)
    for of_source, of_target in zip(source, target, strict=True):
        assert torch.equal(of_source.maps[:5], of_target.maps[:5])
        assert not torch.allclose(of_source.maps[5:], of_target.maps[5:], atol=1e-4)


def test_self_attention_of_the_source_changes_the_target(attention: AttentionUNet) -> None:
    latents, embeds = inputs(2)
    own, _ = attention.edit(latents, 500.0, Conditioning(embeds), control(), False, False)
    injected, _ = attention.edit(latents, 500.0, Conditioning(embeds), control(), False, True)
    assert torch.equal(own[0], injected[0])
    assert not torch.allclose(own[1], injected[1], atol=1e-4)


def test_a_weight_scales_its_tokens_column_in_every_layer(attention: AttentionUNet) -> None:
    latents, embeds = inputs(1)
    both, twice = latents.repeat(2, 1, 1, 1), embeds.repeat(2, 1, 1)
    _, (source, target) = attention.edit(both, 500.0, Conditioning(twice), control(t3=-1.5), True, False)
    for of_source, of_target in zip(source, target, strict=True):
        assert torch.allclose(of_target.maps[3], -1.5 * of_source.maps[3])
        assert torch.equal(of_target.maps[4], of_source.maps[4])


def test_forwards_of_several_threads_do_not_meet(attention: AttentionUNet) -> None:
    latents, embeds = inputs(2)

    def run(scale: float) -> torch.Tensor:
        noise_pred, maps = attention.edit(latents, 500.0, Conditioning(embeds), control(t3=scale), True, True)
        return torch.cat([noise_pred.flatten(), whole_of(maps[1])])

    scales = [-2.0, -1.0, 0.5, 2.0] * 4
    alone = [run(scale) for scale in scales]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(run, scales))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_levels_round_up_as_the_unet_halves() -> None:
    maps = [torch.zeros(3, 7 * 5), torch.zeros(3, 4 * 3), torch.ones(3, 4 * 3)]
    levels = by_resolution(maps, 7, 5)
    assert [(level.num_layers, *level.maps.shape[1:]) for level in levels] == [(1, 7, 5), (2, 4, 3)]
    assert float(levels[1].maps.mean()) == 0.5


def test_a_unet_without_cross_attention_has_no_layers_to_look_at() -> None:
    unet: Any = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
    )  # fmt: skip
    assert num_cross_attention_layers(unet) == 0
