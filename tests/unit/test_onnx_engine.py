"""ONNX Runtime gives what torch gives, its graphs are kept, and nothing bad in the cache is ever used."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import torch

from sfumato.common import onnx_graph
from sfumato.common.onnx_graph import GraphError
from sfumato.decoder.engine_onnx import open_decode
from sfumato.decoder.engine_torch import TorchAutoencoder
from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_onnx import OnnxUNet, open_unet
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.encoder.engine_onnx import use_engine
from sfumato.encoder.engine_torch import TextEncoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def torch_unet(tiny_family: Path) -> TorchUNet:
    """The reference."""
    return TorchUNet(tiny_family, CPU)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that starts empty."""
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def unet(torch_unet: TorchUNet, cache: Path) -> OnnxUNet:
    """The engine, exported here."""
    return opened(torch_unet, cache)


def opened(torch_unet: TorchUNet, cache: Path) -> OnnxUNet:
    """The engine, not its fallback."""
    unet = open_unet(torch_unet, "onnxruntime", cache)
    assert isinstance(unet, OnnxUNet)
    return unet


@pytest.fixture
def own_cache(cache: Path, unet: OnnxUNet, tmp_path: Path) -> Path:
    """A copy of the cache with the graph in it, to damage."""
    return shutil.copytree(cache, tmp_path / "onnx")


def inputs(
    unet: TorchUNet, height: int, width: int, rows: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and conditioning, seeded."""
    generator = torch.Generator().manual_seed(height + 7 * width)
    latents = torch.randn(1, unet.config.in_channels, height, width, generator=generator)
    return latents, torch.randn(rows, tokens, unet.config.cross_attention_dim, generator=generator)


@pytest.mark.parametrize("timestep", [0.0, 1.0, 17.3333, 500.5, 998.9997, 999.0])
@pytest.mark.parametrize(
    ("height", "width", "rows", "tokens"),
    [(8, 8, 1, 24), (8, 8, 2, 24), (1, 1, 1, 1), (9, 9, 1, 24), (7, 12, 3, 5), (16, 24, 1, 77)],
)
def test_a_forward_equals_torchs(
    torch_unet: TorchUNet, unet: OnnxUNet, height: int, width: int, rows: int, tokens: int, timestep: float
) -> None:
    latents, prompt_embeds = inputs(torch_unet, height, width, rows, tokens)
    expected = torch_unet.noise_pred(latents, timestep, Conditioning(prompt_embeds))
    got = unet.noise_pred(latents, timestep, Conditioning(prompt_embeds))
    assert got.shape == expected.shape
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_fractional_timestep_is_not_rounded(torch_unet: TorchUNet, unet: OnnxUNet) -> None:
    latents, prompt_embeds = inputs(torch_unet, 8, 8, 1, 24)
    at = [unet.noise_pred(latents, timestep, Conditioning(prompt_embeds)) for timestep in (3.0, 3.4)]
    assert not torch.equal(*at)


def test_decoded_images_equal_torchs(tiny_family: Path, cache: Path) -> None:
    vae = TorchAutoencoder(tiny_family, CPU)
    decode = open_decode(vae, "onnxruntime", cache, num_threads=2)
    assert decode.run != vae.decode
    for height, width in ((8, 8), (1, 1), (9, 9), (7, 12), (16, 8)):
        latents = torch.randn(
            1, vae.latent_channels, height, width, generator=torch.Generator().manual_seed(1)
        )
        got, expected = (
            images.numpy().astype(np.int16) for (images,) in (decode.run(latents), vae.decode(latents))
        )
        assert got.shape == (1, height * 8, width * 8, 3)
        assert np.abs(got - expected).max() <= 1


def test_conditioning_equals_torchs(tiny_family: Path, cache: Path) -> None:
    encoder = TextEncoder(tiny_family, CPU)
    texts = ["", "a cat", "a cat on a blue background, far beyond the tokens that there are"]
    expected, cut, _ = encoder.encode(texts)
    use_engine(encoder, "onnxruntime", cache, num_threads=2)
    assert encoder.forward.run != encoder.hidden_states
    got, cut_again, _ = encoder.encode(texts)
    assert cut_again == cut
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_second_start_finds_the_graph(
    torch_unet: TorchUNet, unet: OnnxUNet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_: Any, **__: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(torch.onnx, "export", export)
    again = opened(torch_unet, cache)
    latents, prompt_embeds = inputs(torch_unet, 8, 8, 2, 24)
    assert torch.equal(
        again.noise_pred(latents, 5, Conditioning(prompt_embeds)),
        unet.noise_pred(latents, 5, Conditioning(prompt_embeds)),
    )


def test_other_weights_are_another_graph(torch_unet: TorchUNet, own_cache: Path, tmp_path: Path) -> None:
    changed = TorchUNet.__new__(TorchUNet)
    changed.__dict__ = {**torch_unet.__dict__, "weights": tmp_path / "weights"}
    changed.weights.mkdir()
    (changed.weights / "config.json").write_text("another family")
    opened(changed, own_cache)
    assert len(list(own_cache.glob("unet-*/model.onnx"))) == 2


def truncate(path: Path) -> None:
    """As a full disk leaves it."""
    os.truncate(path, path.stat().st_size // 2)


def flip_a_weight(path: Path) -> None:
    """One bit in the middle, which still loads."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_a_weight, Path.unlink])
def test_a_damaged_graph_is_made_again(torch_unet: TorchUNet, own_cache: Path, damage: Any) -> None:
    (file,) = own_cache.glob("unet-*/model.onnx")
    whole = file.read_bytes()
    damage(file)
    with structlog.testing.capture_logs() as lines:
        unet = opened(torch_unet, own_cache)
    assert any("damaged" in line["event"] for line in lines)
    assert file.read_bytes() == whole
    latents, prompt_embeds = inputs(torch_unet, 8, 8, 1, 24)
    unet.noise_pred(latents, 5, Conditioning(prompt_embeds))


def test_a_graph_that_differs_from_torch_is_not_used(
    torch_unet: TorchUNet, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Falls back to torch with a line in the log."""
    run = onnx_graph.Session.run
    monkeypatch.setattr(onnx_graph.Session, "run", lambda *inputs: 1.01 * run(*inputs))
    with structlog.testing.capture_logs() as lines:
        assert open_unet(torch_unet, "onnxruntime", own_cache) is torch_unet
    (line,) = (line for line in lines if line["log_level"] == "error")
    assert "differs from torch by 0.01" in line["error"]


def test_a_model_that_cannot_be_exported_stays_on_torch(
    torch_unet: TorchUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", export)
    with structlog.testing.capture_logs() as lines:
        assert open_unet(torch_unet, "auto", tmp_path) is torch_unet
    assert any("no such operator" in str(line.get("error")) for line in lines)
    assert not list(tmp_path.glob("*/*"))


def test_a_cache_that_cannot_be_written_is_said_and_done_without(
    torch_unet: TorchUNet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with structlog.testing.capture_logs() as lines:
        unet = opened(torch_unet, tmp_path / "file" / "cache")
    assert any("cannot be kept" in line["event"] for line in lines)
    latents, prompt_embeds = inputs(torch_unet, 8, 8, 1, 24)
    unet.noise_pred(latents, 5, Conditioning(prompt_embeds))


def test_a_gpu_without_its_provider_is_refused(torch_unet: TorchUNet, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    graph = onnx_graph.Graph("unet", torch_unet.model, torch_unet.weights, {}, {}, [])
    with pytest.raises(GraphError, match="onnxruntime-gpu"):
        onnx_graph.open_graph(graph, tmp_path, torch.device("cuda"), 1)


def test_a_graph_runs_on_the_gpu_that_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        onnx_graph.onnxruntime, "InferenceSession", lambda *_, **options: given.update(options)
    )
    for name, index in (("cuda", 0), ("cuda:1", 1)):
        onnx_graph.Session(tmp_path / "model.onnx", [], torch.device(name), 1)
        assert given["providers"] == [("CUDAExecutionProvider", {"device_id": index})]


@pytest.mark.parametrize("engine", ["tensorflow", "", "ONNX"])
def test_an_unknown_engine_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_DENOISER_ENGINE", engine)
    with pytest.raises(ValueError, match="'auto', 'torch', 'onnxruntime' or 'triton'"):
        DenoiserSettings()
