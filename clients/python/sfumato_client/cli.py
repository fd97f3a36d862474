"""The `sfumato` command."""

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from sfumato_client.client import TIMEOUT_SECONDS, Client
from sfumato_client.commands.attention import attention
from sfumato_client.commands.edit import edit_app
from sfumato_client.commands.edit_prompt import edit_prompt
from sfumato_client.commands.operations import operations_app
from sfumato_client.console import (
    SUFFIXES,
    AsJson,
    FamilyDir,
    Target,
    own_stack,
    readable_errors,
    stderr,
    target_or_local,
    with_progress,
)
from sfumato_client.requests import SCHEDULERS, GenerateOptions
from sfumato_client.results import GenerateResult

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Images from words: generate, or serve the services."
)
app.command()(attention)
app.command()(edit_prompt)
app.add_typer(edit_app, name="edit")
app.add_typer(operations_app, name="operations")


def main() -> None:
    """Entry point: errors are one readable line, exit code 1; usage errors exit 2, Ctrl-C 130."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def serve(
    family: FamilyDir = None,
    port: Annotated[int, typer.Option(help="Port of the gateway.")] = 50051,
    host: Annotated[str, typer.Option(help="Address of the gateway.")] = "127.0.0.1",
    denoisers: Annotated[int, typer.Option(min=1, help="Denoiser processes.")] = 1,
    log_dir: Annotated[
        Path | None, typer.Option(help="Where the logs go. Default: a new folder in /tmp.")
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="SFUMATO_EDITOR_STATE_DIR",
            help="Where edits are kept. Default: ~/.local/state/sfumato.",
        ),
    ] = None,
) -> None:
    """Start all services on this machine and print one ready line.

    SIGTERM or Ctrl-C drains: running requests end, then the services stop. Edits are saved, and go on at the
    next start with the same --state-dir.

    Example: sfumato serve --port 50051 --denoisers 2
    """
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    settings = {"SFUMATO_EDITOR_STATE_DIR": str(state_dir)} if state_dir else {}
    with readable_errors(), own_stack(family, port, host, denoisers, log_dir, True, settings) as stack:
        threading.Thread(target=stack.watch, daemon=True).start()
        print(stack.ready_line(), flush=True)
        while not stop.wait(0.2):
            pass
        stderr.print("draining")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .png, .jpg or .webp.")],
    negative_prompt: Annotated[str, typer.Option(help="What it must not show.")] = "",
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 30,
    guidance_scale: Annotated[
        float, typer.Option(help="How strictly the words are followed; 1: unguided.")
    ] = 5.0,
    scheduler: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.")] = "dpmpp_2m",
    seed: Annotated[int | None, typer.Option(help="Same seed, same image. Default: random.")] = None,
    num_images: Annotated[int, typer.Option(help="How many; image i has seed + i.")] = 1,
    width: Annotated[int | None, typer.Option(help="Pixels. Default: the family's.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels. Default: the family's.")] = None,
    image: Annotated[
        Path | None, typer.Option(help="Image to start from.", exists=True, dir_okay=False)
    ] = None,
    strength: Annotated[float | None, typer.Option(help="How far to depart from it, up to 1.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White is repainted, black kept.", exists=True, dir_okay=False)
    ] = None,
    target: Target = "",
    family: FamilyDir = None,
    timeout: Annotated[float, typer.Option(help="Deadline in seconds.")] = TIMEOUT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Make images from words.

    Examples:

      sfumato generate "a cat on a blue background" -o cat.png

      sfumato generate "a dog left of a star" -o dogs.png --num-images 4 --seed 7 --guidance-scale 5

      sfumato generate "a fox" -o fox.png --image cat.png --strength 0.6
    """
    if output.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(
            f"must end in one of {', '.join(SUFFIXES)}, but is {output.name}", param_hint="-o"
        )
    if scheduler not in SCHEDULERS:
        known = f"must be one of {', '.join(SCHEDULERS)}, but is {scheduler}"
        raise typer.BadParameter(known, param_hint="--scheduler")
    options: GenerateOptions = {
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "scheduler": scheduler,
        "seed": seed,
        "num_images": num_images,
        "width": width,
        "height": height,
        "image": image,
        "mask": mask,
        "strength": strength,
        "image_format": SUFFIXES[output.suffix.lower()],
    }
    with readable_errors(), target_or_local(target, family) as address, Client(address, timeout) as client:
        result = with_progress(client, prompt, options)
    files = [image.save(path) for image, path in zip(result.images, _paths(output, num_images), strict=True)]
    for warning in result.warnings:
        stderr.print(f"[yellow]warning[/yellow]: {warning}", highlight=False)
    if as_json:
        print(json.dumps(_as_dict(result, files)))
    else:
        for file, made in zip(files, result.images, strict=True):
            stderr.print(f"{file}: {made.width}x{made.height}, seed {made.seed}", highlight=False)


@app.command()
def models(target: Target = "", family: FamilyDir = None, as_json: AsJson = False) -> None:
    """List the families served, and what each can do."""
    with (
        readable_errors(),
        target_or_local(target, family, editor=True) as address,
        Client(address) as client,
    ):
        families = client.list_families()
    if as_json:
        print(json.dumps([MessageToDict(entry, preserving_proto_field_name=True) for entry in families]))
        return
    table = Table("family", "methods", "default size", "largest", "prompt tokens")
    for entry in families:
        size, largest = f"{entry.default_width}x{entry.default_height}", f"{entry.max_pixels} pixels"
        table.add_row(entry.name, ", ".join(entry.methods), size, largest, str(entry.max_tokens))
    Console().print(table)


def _paths(output: Path, count: int) -> list[Path]:
    """One file per image: the name given, or -0, -1, ... before the suffix."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def _as_dict(result: GenerateResult, files: list[Path]) -> dict[str, Any]:
    options: Any = {"preserving_proto_field_name": True}
    parameters = MessageToDict(result.parameters, **options)
    parameters.pop("seed", None)  # MessageToDict writes 64-bit integers as text
    timings = {field.name: getattr(result.timings, field.name) for field in result.timings.DESCRIPTOR.fields}
    return {
        "request_id": result.request_id,
        "seed": result.parameters.seed,
        "parameters": {**parameters, "seed": result.parameters.seed},
        "files": [str(file) for file in files],
        "seeds": [image.seed for image in result.images],
        "timings": timings,
        "warnings": result.warnings,
    }
