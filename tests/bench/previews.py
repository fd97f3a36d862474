"""Previews by projection against the decoder's: how near they are, and what each costs.

    python -m tests.bench.previews      # a minute; prints JSON and leaves it, and a picture, in out/

The same trajectories twice through the services, with a preview of either kind at each step. The picture
has trajectories' previews at a few steps: projected above, decoded below.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato_client import Client
from sfumato_client.requests import PREVIEW_KINDS, GenerateOptions
from sfumato_client.stack import local_stack
from tests.bench.serving import growth, totals

PROMPTS = (
    "a cat on a blue background", "a dog left of a star", "a red heart", "a tree, noto style",
    "a fox on white", "an angry face", "a rocket on black", "a pizza",
)  # fmt: skip
STEPS = 20
SHOWN = (1, 3, 5, 8, 12, 16, 20)
STAGES = {"projected": "preview", "decoded": "decode"}


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--image-format", default="PNG")
    parser.add_argument("--output", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    previews: dict[str, list[list[np.ndarray]]] = {}
    cost_ms = {}
    with (
        tempfile.TemporaryDirectory() as logs,
        local_stack(arguments.family, log_dir=Path(logs), metrics=True) as stack,
        Client(stack.target) as client,
    ):
        for kind in PREVIEW_KINDS:
            trajectory(client, PROMPTS[0], 0, kind, arguments.image_format)
            before = totals(stack)
            previews[kind] = [
                trajectory(client, prompt, seed, kind, arguments.image_format)
                for seed, prompt in enumerate(PROMPTS)
            ]
            after, name = totals(stack), "sfumato_gateway_stage_seconds"
            seconds = growth(before, after, f"{name}_sum/{STAGES[kind]}")
            cost_ms[kind] = round(1000 * seconds / growth(before, after, f"{name}_count/{STAGES[kind]}"), 2)
    both = zip(*(previews[kind] for kind in PREVIEW_KINDS), strict=True)
    pairs = [list(zip(*trajectories, strict=True)) for trajectories in both]
    figures = {
        "image_format": arguments.image_format,
        "milliseconds_of_a_preview": cost_ms,
        "by_steps": {
            f"{first + 1} to {first + STEPS // 4}": nearness(
                [pair for steps in pairs for pair in steps[first : first + STEPS // 4]]
            )
            for first in range(0, STEPS, STEPS // 4)
        },
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2)
    (arguments.output / "previews.json").write_text(text + "\n")
    draw([previews[kind][:3] for kind in PREVIEW_KINDS]).save(arguments.output / "previews.png")
    print(text)


def trajectory(client: Client, prompt: str, seed: int, kind: str, image_format: str) -> list[np.ndarray]:
    """Every step's preview, float [height, width, 3]."""
    options: GenerateOptions = {
        "num_inference_steps": STEPS, "seed": seed, "preview_interval_steps": 1, "preview_kind": kind,
        "image_format": image_format,
    }  # fmt: skip
    events = client.generate_events(prompt, **options)
    files = [event.step.preview for event in events if event.HasField("step")]
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float) for data in files]


def nearness(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Of projected and decoded previews: means over the pairs."""
    psnr = [10 * np.log10(255**2 / max(1e-9, np.mean((a - b) ** 2))) for a, b in pairs]
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]
    return {"psnr_db": round(float(np.mean(psnr)), 2), "correlation": round(float(np.mean(correlation)), 3)}


def draw(kinds: list[list[list[np.ndarray]]]) -> Image.Image:
    """Steps across; a prompt's kinds above each other."""
    rows: list[Any] = [
        np.concatenate([by_kind[i][step - 1] for step in SHOWN], 1)
        for i in range(len(kinds[0]))
        for by_kind in kinds
    ]
    sheet = Image.fromarray(np.concatenate(rows, 0).astype(np.uint8))
    return sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
