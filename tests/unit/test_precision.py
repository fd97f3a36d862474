"""The UNet in half precision: near float32's predictions, half the memory, float32 outside."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from sfumato.denoiser.attention import AttentionUNet
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.models import load_models
from sfumato.denoiser.probes import Control

CPU = torch.device("cpu")


def test_bfloat16_predicts_what_float32_does_to_its_precision(tiny_family: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    given = latents, 400.0, Conditioning(torch.randn(2, 24, 32, generator=generator))
    whole, half = TorchUNet(tiny_family, CPU), TorchUNet(tiny_family, CPU, torch.bfloat16)
    expected, got = whole.noise_pred(*given), half.noise_pred(*given)
    assert got.dtype == torch.float32
    assert float((got - expected).norm() / expected.norm()) < 0.03
    seen, maps = AttentionUNet(half.model, CPU).noise_pred_and_maps(latents, 400.0, given[2][:1])
    assert torch.equal(seen, half.noise_pred(latents, 400.0, given[2][:1]))
    assert maps[0].maps.dtype == torch.float32
    kept = half.linearise(latents, 400.0, given[2][:1])
    assert (kept.output.dtype, kept.vjp(torch.ones_like(latents)).dtype) == (torch.float32, torch.float32)
    sizes = [sum(p.nbytes for p in unet.model.parameters()) for unet in (whole, half)]
    assert sizes[1] * 2 == sizes[0]


def test_attention_is_steered_in_half_too(tiny_family: Path) -> None:
    """The target has the source's attention, reweighted, in both precisions."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator).repeat(2, 1, 1, 1)
    given = Conditioning(torch.randn(2, 24, 32, generator=generator))
    control = Control(torch.eye(24), torch.ones(24), torch.full((24,), 1.5))

    def edited(dtype: torch.dtype) -> torch.Tensor:
        unet = AttentionUNet(TorchUNet(tiny_family, CPU, dtype).model, CPU)
        return unet.edit(latents, 400.0, given, control, True, True)[0]

    expected, got = edited(torch.float32), edited(torch.bfloat16)
    assert got.dtype == torch.float32
    assert float((got - expected).norm() / expected.norm()) < 0.03


def test_loading_in_half_leaves_the_process_its_default_precision(
    tiny_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other families may be in the middle of a step."""
    defaults = []
    monkeypatch.setattr(torch, "set_default_dtype", defaults.append)
    TorchUNet(tiny_family, CPU, torch.bfloat16)
    assert set(defaults) <= {torch.float32}


def test_a_precision_is_part_of_what_bits_depend_on(tiny_family: Path) -> None:
    """Replicas and replays of the same engine are held to the same bits."""
    float32, half = (
        load_models(tiny_family, DenoiserSettings(engine="torch", dtype=dtype), CPU).engine
        for dtype in ("float32", "bfloat16")
    )
    assert half == float32.replace(",", " bfloat16,")
    loose = load_models(tiny_family, DenoiserSettings(engine="torch", batch_invariant=False), CPU)
    assert loose.engine == ""  # nothing promises the same bits, so nobody is judged by them
    assert not loose.unets.unet.forward.batch_invariant


def test_half_precision_and_a_graphs_engine_do_not_go_together() -> None:
    assert DenoiserSettings(dtype="bfloat16").unet_engine == "torch"
    assert DenoiserSettings().unet_engine == "auto"
    with pytest.raises(ValidationError, match="needs engine torch"):
        DenoiserSettings(dtype="float16", engine="onnxruntime")
