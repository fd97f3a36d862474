"""Where a denoiser's step goes: operators of one row, the wire, the queue; and the floor that it could reach.

    python -m tests.bench.step_profile      # 2 minutes on two cores; needs them for itself

One row's forward in ONNX Runtime on one thread, by operator; what its messages cost; what waiting costs with
one client and with sixteen, from the services' metrics; and the forward's seconds over its floor, the UNet's
FLOPs at the rate that torch.mm reaches on one thread. Prints JSON and writes it to out/step_profile.json.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from sfumato_protos.v1 import denoiser_pb2
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sfumato.common.onnx_graph import FILE, open_graph
from sfumato.common.tensors import from_message, to_message
from sfumato.denoiser.conditioning import Conditioning, needed
from sfumato.denoiser.engine_onnx import unet_graph
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato_client.stack import local_stack
from tests.bench.mixed import Request, Settings
from tests.bench.serving import closed_loop, mean_ms, totals

KINDS = {
    "matmul": ("MatMul", "Gemm", "FusedMatMul", "Attention", "MultiHeadAttention"),
    "convolution": ("Conv", "FusedConv", "NhwcFusedConv"),
    "norm": ("GroupNorm", "InstanceNormalization", "LayerNormalization", "SkipLayerNormalization"),
    "softmax": ("Softmax",),
    "elementwise": (
        "Add",
        "Mul",
        "Sub",
        "Div",
        "Sigmoid",
        "QuickGelu",
        "Gelu",
        "BiasGelu",
        "Erf",
        "Cos",
        "Sin",
    ),
    "shapes": (
        "Shape",
        "Gather",
        "Unsqueeze",
        "Squeeze",
        "Cast",
        "ConstantOfShape",
        "Range",
        "Equal",
        "Where",
    ),
    "layout": (
        "Transpose",
        "Reshape",
        "Concat",
        "Slice",
        "Expand",
        "Resize",
        "ReorderInput",
        "ReorderOutput",
    ),
}
LARGE = 2048  # side of the large matrices
TOKENS = 32
CPU = torch.device("cpu")
USUAL = Settings(30, "dpmpp_2m", 5.0, 64)


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--repeats", type=int, default=60, help="forwards that are profiled")
    parser.add_argument("--output", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    unet = TorchUNet(arguments.family, CPU)
    forward = operators(unet, arguments.repeats)
    figures = {
        "forward": forward,
        "floor": floor(unet, forward["row_seconds"]),
        "messages": messages(unet),
        "services": services(arguments.family),
    }
    text = json.dumps(figures, indent=2)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "step_profile.json").write_text(text + "\n")
    print(text)


def row_of(unet: TorchUNet, side: int = 0, tokens: int = TOKENS) -> tuple[torch.Tensor, Conditioning]:
    """Latents and conditioning of one row; side: of the latents, 0: the family's own."""
    config, generator = unet.config, torch.Generator().manual_seed(0)
    side = side or config.sample_size
    latents = torch.randn(1, config.in_channels, side, side, generator=generator)
    prompt_embeds = torch.randn(1, tokens, config.cross_attention_dim, generator=generator)
    more = {name: torch.zeros(1, *shape) for name, shape in needed(config).items()}
    return latents, Conditioning(prompt_embeds, **more)


def operators(unet: TorchUNet, repeats: int) -> dict[str, Any]:
    """Seconds of a row without the profiler, and shares of its time by operator with it."""
    latents, conditioning = row_of(unet)
    inputs = (latents, torch.full((1,), 500.0), *conditioning.tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        graph = unet_graph(unet)
        session = open_graph(graph, Path(folder), unet.device, 1)
        row_seconds = median_seconds(lambda: session.run(*inputs), repeats)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        path = next(Path(folder).rglob(FILE))
        profiled = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
        for _ in range(repeats):
            profiled.run(None, feed)
        events = json.loads(Path(profiled.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {
        "row_seconds": round(row_seconds, 6), "repeats": repeats,
        "share_by_kind": shares(by_kind(spent)), "share_by_operator": shares(spent),
        "profiled_kernel_seconds": round(sum(spent.values()) / repeats / 1e6, 6),
    }  # fmt: skip


def by_kind(spent: Counter[str]) -> Counter[str]:
    """Operators put together; what no kind names is other."""
    kind_of = {operator: kind for kind, names in KINDS.items() for operator in names}
    found: Counter[str] = Counter()
    for operator, time_spent in spent.items():
        found[kind_of.get(operator, "other")] += time_spent
    return found


def shares(spent: Counter[str]) -> dict[str, float]:
    """The largest first."""
    total = sum(spent.values())
    return {name: round(value / total, 4) for name, value in spent.most_common(12)}


def floor(unet: TorchUNet, row_seconds: float) -> dict[str, Any]:
    """The UNet's FLOPs over the rates of torch.mm on one thread: of the UNet's sizes, and of large ones."""
    flops = flops_of_a_row(unet, *row_of(unet))
    places, channels = unet.config.sample_size**2, unet.config.block_out_channels[0]
    # A 3x3 convolution of the first level as a matrix product: places x 9 channels by 9 channels x channels.
    small, large = flops_per_second(places, 9 * channels, channels), flops_per_second(LARGE, LARGE, LARGE)
    return {
        "flops_of_a_row": flops,
        "mm_of_unet_size": [places, 9 * channels, channels],
        "gflops_per_second_mm_of_unet_size": round(small / 1e9, 2),
        "gflops_per_second_mm_large": round(large / 1e9, 2),
        "gflops_per_second_of_the_forward": round(flops / row_seconds / 1e9, 2),
        "row_over_floor_unet_size": round(row_seconds * small / flops, 3),
        "row_over_floor_large": round(row_seconds * large / flops, 3),
    }


def flops_of_a_row(unet: TorchUNet, latents: torch.Tensor, conditioning: Conditioning) -> int:
    """Of one forward pass: its matrix products, convolutions and attention."""
    # Attention as the products that it is: the counter does not know all of its fused kernels.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unet.noise_pred(latents, 500.0, conditioning)
    return int(counter.get_total_flops())


def flops_per_second(
    m: int, k: int, n: int, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> float:
    """Of torch.mm [m, k] by [k, n]; on a CPU on the threads that torch has."""
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, device=device, dtype=dtype)
    repeats = max(5, int(2e9 / (2 * m * k * n)))

    def product() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return repeats * 2 * m * k * n / median_seconds(product, 7)


def messages(unet: TorchUNet) -> dict[str, Any]:
    """Microseconds of a step's messages of two rows: made, written, read, turned into tensors again."""
    latents, _ = row_of(unet)
    noise_pred = latents.repeat(2, 1, 1, 1)

    def there_and_back() -> None:
        step = denoiser_pb2.DenoiseStep(step=1, latents=to_message(latents), timestep=500.0)
        sent = denoiser_pb2.DenoiseRequest(step=step).SerializeToString()
        read = denoiser_pb2.DenoiseRequest.FromString(sent).step.latents
        from_message(read, "latents", tuple(latents.shape), latents.numel())
        answer = denoiser_pb2.DenoiseResponse(step=1, noise_pred=to_message(noise_pred)).SerializeToString()
        read = denoiser_pb2.DenoiseResponse.FromString(answer).noise_pred
        from_message(read, "noise_pred", tuple(noise_pred.shape), noise_pred.numel())

    microseconds = 1e6 * median_seconds(there_and_back, 2000)
    return {"latents_bytes": 4 * latents.numel(), "microseconds_of_a_step": round(microseconds, 1)}


def services(family: Path) -> dict[str, Any]:
    """A step's milliseconds in the services, with one client and with sixteen."""
    found = {}
    with (
        tempfile.TemporaryDirectory() as logs,
        local_stack(family, log_dir=Path(logs), metrics=True) as stack,
    ):
        for clients in (1, 16):
            requests = [Request(USUAL, "a cat", seed) for seed in range(max(8, 2 * clients))]
            asyncio.run(closed_loop(stack.target, clients, requests[:clients]))
            before = totals(stack)
            asyncio.run(closed_loop(stack.target, clients, requests))
            after = totals(stack)

            found[f"clients_{clients}"] = {
                "gateway_step_ms": mean_ms(before, after, "sfumato_gateway_step_seconds"),
                "denoiser_step_ms": mean_ms(before, after, "sfumato_denoiser_step_seconds"),
                "queue_wait_of_a_row_ms": mean_ms(before, after, "sfumato_model_wait_seconds", "/unet"),
                "forward_of_a_row_ms": mean_ms(before, after, "sfumato_model_run_seconds", "/unet"),
            }
    return found


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Of one call, after two to warm up."""
    times = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
