"""The services against diffusers' in-process pipeline: the same work, in one run.

`python -m tests.bench.pipeline` prints one client's latency and eight clients' throughput, each as a ratio
to the pipeline's, measured alternately so that a busy machine slows both.
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from sfumato.gateway.sampling import make_scheduler
from sfumato_client import Client
from sfumato_client.requests import GenerateOptions
from sfumato_client.stack import local_stack

PROMPT = "a cat on a blue background"
OPTIONS: GenerateOptions = {
    "num_inference_steps": 30,
    "guidance_scale": 5.0,
    "scheduler": "dpmpp_2m",
    "seed": 1,
}


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(arguments.family, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def in_process() -> float:
        pipeline.scheduler = make_scheduler("dpmpp_2m", pipeline.scheduler.config)
        generator = torch.Generator().manual_seed(1)
        start = time.perf_counter()
        pipeline(PROMPT, num_inference_steps=30, guidance_scale=5.0, generator=generator)
        return time.perf_counter() - start

    with (
        tempfile.TemporaryDirectory() as logs,
        local_stack(arguments.family, log_dir=Path(logs)) as stack,
        Client(stack.target) as client,
    ):

        def served(_: int = 0) -> float:
            start = time.perf_counter()
            client.generate(PROMPT, **OPTIONS)
            return time.perf_counter() - start

        for _ in range(2):
            in_process(), served()
        pairs = [(in_process(), served()) for _ in range(arguments.repeats)]
        num_images = arguments.clients * 3
        with ThreadPoolExecutor(arguments.clients) as clients:
            start = time.perf_counter()
            list(clients.map(served, range(num_images)))
            together = time.perf_counter() - start
        one_by_one = sum(in_process() for _ in range(num_images))
    pipeline_seconds, served_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        json.dumps(
            {
                "pipeline_seconds": round(pipeline_seconds, 4),
                "served_seconds": round(served_seconds, 4),
                "latency_ratio": round(served_seconds / pipeline_seconds, 3),
                "clients": arguments.clients,
                "served_images_per_second": round(num_images / together, 3),
                "pipeline_images_per_second": round(num_images / one_by_one, 3),
                "throughput_ratio": round(one_by_one / together, 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
