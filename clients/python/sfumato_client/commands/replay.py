"""`sfumato replay`: a generation run again, and compared with what its manifest says."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sfumato_client.calls import TIMEOUT_SECONDS
from sfumato_client.console import AsJson, FamilyDir, Target, gateway, progress_of, readable_errors
from sfumato_client.manifest import compare, manifest_of, read_manifest, request_of
from sfumato_client.messages import say


def replay(
    file: Annotated[
        Path, typer.Argument(help="Manifest that `sfumato generate --manifest` wrote.", exists=True)
    ],
    target: Target = "",
    family: FamilyDir = None,
    timeout: Annotated[float, typer.Option(help="Deadline in seconds.")] = TIMEOUT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Run a generation again and say where it first differs.

    Exit code 0: the same latents at each step and the same files; 3: they differ, under the same weights and
    versions; 4: they differ, and so do weights; 5: they differ, and so do versions. 1: it could not be run.

    Examples:

      sfumato generate "a cat" -o cat.png --manifest cat.json

      sfumato replay cat.json
    """
    with readable_errors():
        before = read_manifest(file)
        request = request_of(before)
        with gateway(target, family, timeout) as client:
            result = progress_of(client.events_of(request))
        found = compare(before, manifest_of(result, request))
    if as_json:
        print(
            json.dumps(
                {
                    "same": not found.images,
                    "first_step": found.first_step,
                    "images": found.images,
                    "weights": found.weights,
                    "versions": found.versions,
                }
            )
        )
    for part, changed in (("weights of the", found.weights), ("version of", found.versions)):
        for name, (was, now) in changed.items():
            say(f"{part} {name}: was {was or 'unknown'}, is {now or 'unknown'}")
    for line in found.images or [f"{file}: the same, step for step"]:
        say(line)
    raise typer.Exit(found.exit_code)
