"""SDXL, two text encoders and more conditioning, in the Open Inference Protocol's tables and on Triton."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.denoiser.conditioning import Conditioning
from sfumato.denoiser.config import DenoiserSettings
from sfumato.denoiser.engine_onnx import unet_graph
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.denoiser.open_models import open_models as denoiser_models
from sfumato.denoiser.step_queue import StepQueue
from sfumato.encoder.config import EncoderSettings
from sfumato.encoder.engine_torch import TextEncoder
from sfumato.encoder.open_models import open_models as encoder_models
from sfumato.encoder.rows import EncoderRows
from tests.tiny_family import CONTEXT, WIDTH
from tests.tiny_variants import POOLED, save_sdxl

CPU = torch.device("cpu")
EXPORT = Path(__file__).parents[2] / "deploy" / "triton" / "export.py"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sdxl(tmp_path_factory.mktemp("families") / "sdxl")


@pytest.fixture(scope="module")
def unet(sdxl: Path) -> TorchUNet:
    return TorchUNet(sdxl, CPU)


def exporter() -> Any:
    """deploy/triton/export.py as a module."""
    spec = importlib.util.spec_from_file_location("export", EXPORT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_unet_takes_its_pooled_embeddings_and_sizes_too(unet: TorchUNet) -> None:
    queue = StepQueue(2)
    (model,) = denoiser_models(unet, queue, DenoiserSettings())  # type: ignore[call-arg]
    shapes = {tensor.name: tensor.shape for tensor in model.inputs}
    assert shapes == {
        "latents": (-1, 4, -1, -1), "timestep": (-1, 1), "prompt_embeds": (-1, -1, WIDTH + 48),
        "pooled_prompt_embeds": (-1, POOLED), "time_ids": (-1, 6),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    latents, given = noise(2, 4, 8, 8), (noise(2, CONTEXT, WIDTH + 48), noise(2, POOLED), noise(2, 6))
    named = dict(zip(("prompt_embeds", "pooled_prompt_embeds", "time_ids"), given, strict=True))
    output = await model.infer(
        ["noise_pred"], latents=latents, timestep=torch.tensor([[7.0], [500]]), **named
    )
    queue.close()
    for row, timestep in enumerate((7.0, 500.0)):
        expected = unet.noise_pred(latents[row : row + 1], timestep, Conditioning(*given)[row : row + 1])
        assert torch.equal(output["noise_pred"][row : row + 1], expected)


async def test_texts_give_the_pooled_embeddings_too(sdxl: Path) -> None:
    encoder, executor = TextEncoder(sdxl, CPU), ThreadPoolExecutor(1)
    rows = EncoderRows(executor, 1)
    (model,) = encoder_models(encoder, None, rows, EncoderSettings(), list)  # type: ignore[call-arg]
    names = [tensor.name for tensor in model.outputs]
    output = await model.infer(names, texts=[b"a cat", b""])
    rows.close()
    executor.shutdown()
    expected = encoder.encode(["a cat", ""])
    assert torch.equal(output["prompt_embeds"], expected.prompt_embeds)
    assert expected.pooled_prompt_embeds is not None
    assert torch.equal(output["pooled_prompt_embeds"], expected.pooled_prompt_embeds)
    assert {tensor.name: tensor.shape for tensor in model.outputs}["pooled_prompt_embeds"] == (-1, POOLED)


@pytest.mark.parametrize(("device", "kind"), [("cpu", 2), ("cuda", 1)])
def test_triton_is_told_every_input_and_batches_rows(unet: TorchUNet, device: str, kind: int) -> None:
    config = exporter().configuration(unet_graph(unet), torch.zeros(2, 4, 9, 11), device, 32)
    dims = {tensor.name: list(tensor.dims) for tensor in [*config.input, *config.output]}
    assert dims == {
        "latents": [4, -1, -1], "timestep": [1], "prompt_embeds": [-1, WIDTH + 48],
        "pooled_prompt_embeds": [POOLED], "time_ids": [6], "noise_pred": [4, -1, -1],
    }  # fmt: skip
    assert [tensor.name for tensor in config.input if tensor.HasField("reshape")] == ["timestep"]
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (32, True)
    assert config.instance_group[0].kind == kind
