"""Cost of the gateway and gRPC, and gain of a second denoiser, with a UNet of Stable Diffusion 1.5's size.

    python -m tests.bench.large_unet        # 10 minutes on two cores; 8 GB in a temporary folder

The emoji family's step takes 15 ms, in which a hop of a millisecond is much. Here a step takes seconds, of
random weights in the published architecture, at 256x256 pixels. Prints JSON and writes it to
out/large_unet.json.
"""

import argparse
import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from sfumato_client.stack import local_stack
from tests.bench.mixed import Request, Settings
from tests.bench.progress import Lines
from tests.bench.serving import closed_loop, pin
from tests.bench.throughput import shares
from tests.full_size.models import save_family

LATENCY = Settings(4, "dpmpp_2m", 7.5, 256)
RATE = Settings(10, "dpmpp_2m", 7.5, 256)
WARM = Settings(1, "dpmpp_2m", 7.5, 256)
CLIENTS = 4


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--family", type=Path, default=Path("deploy/models/emoji"), help="lends its tokenizer"
    )
    parser.add_argument("--repeats", type=int, default=3, help="requests of the one client")
    parser.add_argument("--output", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    say = Lines()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("writing a family of 4 GB")
        family = save_family("sd15", folder / "sd15-size", arguments.family / "tokenizer")
        figures = {
            "cores": os.cpu_count(),
            "one_client": one_client(family, folder, arguments.repeats, say),
            "replicas": replicas(family, folder, say),
        }
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2)
    (arguments.output / "large_unet.json").write_text(text + "\n")
    print(text)


def one_client(family: Path, folder: Path, repeats: int, say: Lines) -> dict[str, Any]:
    """Where the time of a client alone goes."""
    say("services start; the first time they export graphs")
    with local_stack(family, log_dir=folder / "alone", metrics=True, settings=_settings(folder)) as stack:
        requests = [Request(LATENCY, "a cat", seed) for seed in range(1 + repeats)]
        asyncio.run(closed_loop(stack.target, 1, requests[:1]))
        say(f"one client, {repeats} requests")
        return shares(stack, requests[1:])


def replicas(family: Path, folder: Path, say: Lines) -> dict[str, Any]:
    """Two denoisers on a core each, against one on one core: one stack at a time, for their memory."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return {"skipped": "one core"}
    settings = {**_settings(folder), "SFUMATO_DENOISER_NUM_THREADS": "1"}
    found: dict[int, float] = {}
    for count in (1, 2):
        say(f"{CLIENTS} clients, {count} denoiser(s)")
        with local_stack(family, log_dir=folder / f"{count}", denoisers=count, settings=settings) as stack:
            for denoiser, core in zip(stack.denoisers, cores, strict=False):
                pin(denoiser, core)
            runs = [
                asyncio.run(
                    closed_loop(stack.target, CLIENTS, [Request(kind, "a dog", i) for i in range(CLIENTS)])
                )
                for kind in (WARM, RATE)
            ]
        found[count] = runs[-1].images_per_second
    return {
        "clients": CLIENTS, "one_images_per_second": round(found[1], 4),
        "two_images_per_second": round(found[2], 4), "ratio": round(found[2] / found[1], 3),
    }  # fmt: skip


def _settings(folder: Path) -> dict[str, str]:
    """The services keep their graphs with the family, to be removed with it."""
    return {f"SFUMATO_{name}_ONNX_CACHE": str(folder / "onnx") for name in ("ENCODER", "DENOISER", "DECODER")}


if __name__ == "__main__":
    main()
