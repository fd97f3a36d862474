"""The services on a GPU against diffusers' pipeline, eager and compiled, at the size of Stable Diffusion 1.5.

    make bench-gpu                                    # about 10 minutes, most of it torch.compile's
    python -m tests.bench.gpu --markdown              # the table, for docs/performance.md
    python -m tests.bench.gpu --compile max-autotune-no-cudagraphs --batches 1
    python -m tests.bench.gpu --device cpu --family deploy/models/emoji --side 64 --steps 4 --compile

The first run makes the family, random weights in the published layout, in out/sd15-size (4 GB). Images/s of
the pipeline by itself, in batches, and by torch.compile (mode reduce-overhead: CUDA graphs), and of the
services over gRPC with so many clients, batch invariant and not; each as a share of what torch.mm reaches on
the device, by the UNet's FLOPs alone. Then which rows of different callers have the bits together that they
have alone, what company saves, and whether the services' image is the float32 pipeline's, to the precision;
where it is not, the exit code is 1. The last of the lines above tries all of it on a CPU. Writes out/gpu.json
after every stage, out/gpu.md at the end.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import torch

from sfumato.common.weights import engine_version
from sfumato.denoiser.engine_torch import TorchUNet
from sfumato_client.stack import Stack
from tests.bench.gpu_check import Check
from tests.bench.gpu_report import markdown
from tests.bench.gpu_rows import rows_together
from tests.bench.gpu_ways import Measure, environment, pipelines, services, started
from tests.bench.mixed import Request, Settings
from tests.bench.progress import Lines
from tests.bench.step_profile import flops_of_a_row, flops_per_second, row_of
from tests.full_size.models import CONTEXT, save_family

FAMILY = Path("out/sd15-size")
TOKENIZER = Path("deploy/models/emoji/tokenizer")
MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")
SERVICES = {"services": True, "services, bits may show company": False}  # whether batch invariant
Start = Callable[[Path, dict[str, str]], AbstractContextManager[Stack]]
ROWS_OF_AN_IMAGE = 2  # with and without the prompt


def main(given: Sequence[str] | None = None, start: Start = started) -> None:
    """Parses the options, measures, prints; start: the services, from a family and their settings."""
    arguments = parsed(given)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"no CUDA device here (torch {torch.__version__}): run this on a machine that has one, or try "
            "the script on a CPU: --device cpu --family DIR --side 64 --steps 4 --compile"
        )
    say = Lines()
    family = arguments.family or sd15_size(say)
    figures: dict[str, Any] = {"machine": machine(device)}
    arguments.output.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        (arguments.output / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")

    say("the device's matrix rate and the UNet's FLOPs")
    dtype = getattr(torch, arguments.dtype)
    latent_side = arguments.side // vae_scale_factor(family)
    figures |= {"family": family.name, "dtype": arguments.dtype}
    figures |= {"side": arguments.side, "steps": arguments.steps}
    figures |= work(family, device, dtype, latent_side, arguments.steps)
    save()
    settings = Settings(arguments.steps, "dpmpp_2m", arguments.guidance_scale, arguments.side)
    requests = [Request(settings, "a cat on a blue background", seed) for seed in range(arguments.images)]
    measure = Measure(device, dtype, requests, figures["flops_of_an_image"], figures["matrix_flops"])
    check = Check(family, device, dtype, requests[0])
    say("images to compare with, by the pipeline")
    check.make_references()
    figures["ways"] = []
    for way in pipelines(family, measure, arguments.compile, arguments.batches, say):
        figures["ways"].append(way)
        save()
    say("which rows may share a forward")
    figures["rows_together"] = rows_together(family, device, dtype, latent_side, CONTEXT)
    save()
    for name, batch_invariant in SERVICES.items():
        say(f"starting the {name}")
        with start(family, environment(device, dtype, batch_invariant)) as stack:
            if batch_invariant:
                check.ask(stack.target)
            for way in services(stack, name, measure, arguments.clients, say):
                figures["ways"].append(way)
                save()
    eager = figures["ways"][0]["images_per_second"]
    for way in figures["ways"]:
        if "failed" not in way:
            way["over_eager"] = round(way["images_per_second"] / eager, 3)
    figures["check"] = check.figures()
    save()
    (arguments.output / "gpu.md").write_text(markdown(figures))
    print(markdown(figures) if arguments.markdown else json.dumps(figures, indent=2))
    if not figures["check"]["same"]:
        sys.exit("the services' image is not the pipeline's: see `check`")


def parsed(given: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, cuda:N, or cpu, to try the script; default: cuda")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="default: bfloat16")
    add("--family", type=Path, help=f"folder; default: Stable Diffusion 1.5's size, made in {FAMILY}")
    add("--side", type=int, default=512, help="of the images, in pixels; default: 512")
    add("--steps", type=int, default=20, help="of an image, by dpmpp_2m; default: 20")
    add(
        "--guidance-scale", type=float, default=7.5, help="above 1, so that a step has two rows; default: 7.5"
    )
    add("--images", type=int, default=16, help="timed for each figure, after a round to warm up; default: 16")
    add("--compile", nargs="*", default=["default", "reduce-overhead"], choices=MODES, metavar="MODE",
        help=f"torch.compile's modes, of {', '.join(MODES)}; without a mode: eager alone")  # fmt: skip
    add("--batches", nargs="+", type=int, default=[1, 4], help="images a call of the pipeline; default: 1 4")
    add("--clients", nargs="+", type=int, default=[1, 4, 16], help="of the services; default: 1 4 16")
    add("--output", type=Path, default=Path("out"), help="folder; default: out")
    add("--markdown", action="store_true", help="print the table, not the JSON")
    return parser.parse_args(given)


def sd15_size(say: Lines) -> Path:
    """The random-weight family, made where it is not there whole."""
    if not FAMILY.is_dir():
        say(f"making {FAMILY}, 4 GB of random weights")
        save_family("sd15", FAMILY.with_suffix(".part"), TOKENIZER).rename(FAMILY)
    return FAMILY


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of."""
    found = {
        "device": engine_version("torch", device), "torch": torch.__version__,
        "diffusers": version("diffusers"), "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
        }
    return found


def work(family: Path, device: torch.device, dtype: torch.dtype, side: int, steps: int) -> dict[str, Any]:
    """The UNet's FLOPs of an image of latents of this side, and the device's of a second."""
    unet = TorchUNet(family, device, dtype)
    flops, edge = flops_of_a_row(unet, *row_of(unet, side, CONTEXT)), MATRIX_SIDE[device.type]
    return {
        "parameters": sum(tensor.numel() for tensor in unet.model.parameters()),
        "flops_of_a_row": flops, "flops_of_an_image": steps * ROWS_OF_AN_IMAGE * flops,
        "matrix_side": edge, "matrix_flops": round(flops_per_second(edge, edge, edge, device, dtype)),
    }  # fmt: skip


def vae_scale_factor(family: Path) -> int:
    """Pixels of a latent pixel's side."""
    config = json.loads((family / "vae" / "config.json").read_text())
    return int(2 ** (len(config["block_out_channels"]) - 1))


if __name__ == "__main__":
    # Standard output has the figures alone.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    main()
