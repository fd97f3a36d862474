"""`sfumato attention`: where each word of a prompt went."""

import io
import json
from pathlib import Path
from typing import Annotated

import typer

from sfumato_client.attention_maps import WordMaps, centre_of_mass, draw_sheet
from sfumato_client.calls import TIMEOUT_SECONDS
from sfumato_client.console import (
    SUFFIXES,
    AsJson,
    FamilyDir,
    Model,
    Target,
    gateway,
    readable_errors,
    with_progress,
)
from sfumato_client.files import check_writable
from sfumato_client.messages import say, warn
from sfumato_client.requests import AGGREGATIONS, SCHEDULERS, GenerateOptions
from sfumato_client.results import GeneratedImage


def attention(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Sheet to write: .png, .jpg or .webp.")],
    seed: Annotated[int | None, typer.Option(help="Same seed, same image. Default: random.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 30,
    guidance_scale: Annotated[
        float, typer.Option(help="How strictly the words are followed; 1: unguided.")
    ] = 5.0,
    scheduler: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.")] = "dpmpp_2m",
    negative_prompt: Annotated[str, typer.Option(help="What it must not show.")] = "",
    layers: Annotated[
        str, typer.Option(help="largest: the largest resolution's layers. all: every layer, enlarged (DAAM).")
    ] = "largest",
    target: Target = "",
    family: FamilyDir = None,
    model: Model = "",
    timeout: Annotated[float, typer.Option(help="Deadline in seconds.")] = TIMEOUT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Draw one heat map per word over the image: where the denoiser looked for it, over all steps.

    With --json: each word's centre of mass as shares of width and height, (0.5, 0.5) in the middle.

    Examples:

      sfumato attention "a cat left of a star" -o maps.png --seed 3

      sfumato attention "a fox on a blue background" -o maps.png --layers all --json
    """
    _check(output, scheduler, layers)
    options: GenerateOptions = {
        "family": model,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "negative_prompt": negative_prompt,
        "attention_maps": {"aggregation": layers},
    }
    with readable_errors():
        check_writable(output)
    with readable_errors(), gateway(target, family, timeout) as client:
        result = with_progress(client, prompt, options)
    image, maps = result.images[0], result.attention[0]
    buffer = io.BytesIO()
    draw_sheet(image.data, maps).save(buffer, SUFFIXES[output.suffix.lower()])
    with readable_errors():
        GeneratedImage(0, image.seed, buffer.getvalue(), image.width, image.height).save(output)
    for warning in result.warnings:
        warn(warning)
    _report(output, image.seed, maps, as_json)


def _check(output: Path, scheduler: str, layers: str) -> None:
    """Usage errors, before anything is started."""
    if output.suffix.lower() not in SUFFIXES:
        message = f"must end in one of {', '.join(SUFFIXES)}, but is {output.name}"
        raise typer.BadParameter(message, param_hint="-o")
    for option, value, known in (("scheduler", scheduler, SCHEDULERS), ("layers", layers, AGGREGATIONS)):
        if value not in known:
            message = f"must be one of {', '.join(known)}, but is {value}"
            raise typer.BadParameter(message, param_hint=f"--{option}")


def _report(output: Path, seed: int, maps: WordMaps, as_json: bool) -> None:
    centres = [centre_of_mass(heat) for heat in maps.maps]
    if as_json:
        words = [
            {"word": word, "centre_of_mass": [round(x, 4), round(y, 4)], "mean": round(float(heat.mean()), 5)}
            for word, (x, y), heat in zip(maps.words, centres, maps.maps, strict=True)
        ]
        print(json.dumps({"file": str(output), "seed": seed, "words": words}))
        return
    say(f"{output}: seed {seed}")
    for word, (x, y) in zip(maps.words, centres, strict=True):
        say(f"  {word}: centre of mass at {x:.0%} of the width, {y:.0%} of the height")
