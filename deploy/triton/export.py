"""Writes a Triton model repository from a family: unet, decoder and text_encoder.

Each is the graph that the services would run themselves, exported and checked against torch, with a Python
backend that runs ONNX Runtime.

    python deploy/triton/export.py models --family deploy/models/emoji
    python deploy/triton/export.py models --family /weights/sd15 --device cuda --max-rows 32
    tritonserver --model-repository models
    SFUMATO_DENOISER_ENGINE=triton SFUMATO_DENOISER_TRITON_URL=127.0.0.1:8001 python -m sfumato.denoiser
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype

from sfumato.common.onnx_graph import DIGEST, Graph, open_graph
from sfumato.decoder.engine_onnx import decoder_graph
from sfumato.decoder.engine_torch import TorchAutoencoder
from sfumato.denoiser.engine_onnx import unet_graph
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato.encoder.engine_onnx import text_graph
from sfumato.encoder.engine_torch import TextEncoder

CPU = torch.device("cpu")
GRAPHS: dict[str, Callable[[Path], Graph]] = {
    "unet": lambda family: unet_graph(TorchUNet(family, CPU)),
    "decoder": lambda family: decoder_graph(TorchAutoencoder(family, CPU)),
    "text_encoder": lambda family: text_graph(TextEncoder(family, CPU)),
}
OUTPUTS = {"unet": "noise_pred", "decoder": "pixels", "text_encoder": "hidden_states"}


def main() -> None:
    """Writes the repository."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path, help="folder, made if need be; its models are replaced")
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"), help="folder of weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where Triton runs them")
    parser.add_argument("--max-rows", type=int, default=16, help="most UNet rows of one forward")
    arguments = parser.parse_args()
    arguments.repository.mkdir(parents=True, exist_ok=True)
    for name, graph_of in GRAPHS.items():
        if name == "text_encoder" and (arguments.family / "text_encoder_2").is_dir():
            print("two text encoders stay in the encoder, on torch: not written", flush=True)
            continue
        write_model(graph_of(arguments.family), arguments.repository, arguments.device, arguments.max_rows)
        print(f"{arguments.repository / name}: written", flush=True)


def write_model(graph: Graph, repository: Path, device: str, max_rows: int) -> None:
    """The graph's folder: config.pbtxt, 1/model.py, 1/model.onnx.

    Raises:
        GraphError: the graph differs from torch, or cannot be exported.
    """
    with tempfile.TemporaryDirectory(dir=repository, prefix=".export-") as temporary:
        cache, made = Path(temporary) / "cache", Path(temporary) / "model"
        session = open_graph(graph, cache, CPU, os.cpu_count() or 1)
        (exported,) = cache.glob(f"{graph.name}-*/")
        exported.rename(cache / "1")
        (cache / "1" / DIGEST).unlink()
        made.mkdir()
        shutil.move(cache / "1", made / "1")
        shutil.copy(Path(__file__).with_name("model.py"), made / "1" / "model.py")
        output = session.run(*graph.inputs.values())
        config = configuration(graph, output, device, max_rows)
        (made / "config.pbtxt").write_text(text_format.MessageToString(config))
        made.chmod(0o755)
        shutil.rmtree(repository / graph.name, ignore_errors=True)
        made.rename(repository / graph.name)


def configuration(
    graph: Graph, output: torch.Tensor, device: str, max_rows: int
) -> model_config_pb2.ModelConfig:
    """What Triton is told; a graph with rows is batched.

    Args:
        graph: what is served.
        output: for the graph's examples, for its shape.
        device: cpu or cuda.
        max_rows: of one forward.
    """
    rows = all(graph.dynamic_axes.get(name, {}).get(0) == "rows" for name in graph.inputs)
    config = model_config_pb2.ModelConfig(
        name=graph.name, backend="python", max_batch_size=max_rows if rows else 0
    )
    for name, tensor in graph.inputs.items():
        described(config.input.add(), name, tensor, graph.dynamic_axes.get(name, {}), rows)
    described(config.output.add(), OUTPUTS[graph.name], output, graph.dynamic_axes.get("output", {}), rows)
    if rows:
        config.dynamic_batching.SetInParent()
    # As the denoiser does: rows beside each other on a thread each. The others come one at a time.
    cores = os.cpu_count() or 1
    kind = model_config_pb2.ModelInstanceGroup.KIND_GPU if device == "cuda" else None
    on_cpu = model_config_pb2.ModelInstanceGroup.KIND_CPU
    count = cores if rows and device == "cpu" else 1
    config.instance_group.add(kind=on_cpu if kind is None else kind, count=count)
    config.parameters["num_threads"].string_value = str(1 if count > 1 else cores)
    return config


def described(
    entry: model_config_pb2.ModelInput | model_config_pb2.ModelOutput,
    name: str,
    tensor: torch.Tensor,
    axes: dict[int, str],
    rows: bool,
) -> None:
    """Name, type and dimensions, -1 for those that vary; the rows are not among them."""
    kind = np_to_triton_dtype(np.dtype(str(tensor.dtype).removeprefix("torch.")))
    entry.name, entry.data_type = name, model_config_pb2.DataType.Value(f"TYPE_{kind}")
    dims = [-1 if axis in axes else size for axis, size in enumerate(tensor.shape)][1 if rows else 0 :]
    entry.dims.extend(dims or [1])
    if not dims:  # scalars of rows travel as [rows, 1]
        entry.reshape.SetInParent()


if __name__ == "__main__":
    main()
