"""`sfumato atlas` takes a video apart; `sfumato paint` lays a painted atlas over it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato_client.atlases import QUICK_ATLAS
from sfumato_client.client import Client
from sfumato_client.commands.edit import Detach, Every, Film, Frames, Iterations, RequestId, Settings
from sfumato_client.commands.editing import (
    FILE_SUFFIXES,
    Run,
    as_dict,
    check_run,
    finish_edit,
    follow_to_end,
    settings_of,
)
from sfumato_client.console import AsJson, FamilyDir, Target, gateway, readable_errors
from sfumato_client.edit_requests import artifacts_of
from sfumato_client.files import check_writable, write_file
from sfumato_client.messages import say

NAME_FILE = "atlas.json"  # in the folder that `sfumato atlas` writes: whose it is

AtlasName = Annotated[
    Path | None,
    typer.Option(
        "--atlas", help="Of a video that was taken apart: the folder of `sfumato atlas`, or operations/ID."
    ),
]
MaskFile = Annotated[
    Path | None,
    typer.Option(
        help="The video's foreground: a picture of the first frame, white on black, grey left open, or "
        "a video of every frame. Default: what moves.",
        exists=True,
        dir_okay=False,
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Small networks, few iterations: minutes on a CPU.")]


def atlas(
    video: Annotated[Path, typer.Argument(help="Video: .mp4, .webm, .gif.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    mask: MaskFile = None,
    quick: Quick = False,
    iterations: Iterations = None,
    settings: Settings = [],  # noqa: B006  (typer reads it, and makes its own list)
    target: Target = "",
    family: FamilyDir = None,
    as_json: AsJson = False,
) -> None:
    """Take a video apart: layered neural atlases of its foreground and its background.

    Writes foreground.png, background.png, alpha.mp4, video.mp4 (the reconstruction), and atlas.json, by which
    later edits of the same video find it. The defaults are the paper's, which need a GPU and hours.

    Examples:

      sfumato atlas car.mp4 -o car/ --quick

      sfumato paint car/ car/foreground-painted.png -o painted.mp4
    """
    more = {**({} if iterations is None else {"num_iterations": iterations}), **_checked(settings)}
    with readable_errors():
        check_writable(output / NAME_FILE)
    with readable_errors(), gateway(target, family, editor=True, keep=True) as client:
        name = taken_apart(client, video, mask, quick, bool(target), more)
        operation = client.get_operation(name)
        files = [write_file(output / NAME_FILE, json.dumps({"operation": name}).encode() + b"\n")]
        for artifact in artifacts_of(operation):
            if artifact.name == "decomposition":  # stays in the editor, where edits find it
                continue
            if not artifact.data:
                say(f"{artifact.name} is too large to send; it lies at {artifact.uri}")
                continue
            path = output / f"{artifact.name}{FILE_SUFFIXES[artifact.media_type]}"
            files.append(write_file(path, artifact.data))
    if as_json:
        print(json.dumps({**as_dict(operation), "files": [str(file) for file in files]}))
        return
    for file in files:
        say(str(file))


def paint(
    atlas: Annotated[Path, typer.Argument(help="Folder of `sfumato atlas`, or operations/ID.")],
    painted: Annotated[
        Path, typer.Argument(help="The atlas that was painted on.", exists=True, dir_okay=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .mp4, .webm or .gif.")],
    layer: Annotated[str, typer.Option(help="Whose atlas it is: foreground or background.")] = "foreground",
    settings: Settings = [],  # noqa: B006
    frames: Frames = None,
    film: Film = None,
    frame_every: Every = 5,
    detach: Detach = False,
    request_id: RequestId = None,
    target: Target = "",
    family: FamilyDir = None,
    as_json: AsJson = False,
) -> None:
    """Lay what was painted on an atlas over every frame of its video.

    Example: sfumato paint car/ car/foreground-painted.png --layer foreground -o painted.mp4
    """
    with readable_errors():
        options = {
            "decomposition": atlas_of(atlas), "image": painted, "layer": layer, "request_id": request_id,
        }  # fmt: skip
        run = Run("atlas-render", options, output, settings, frames, film, frame_every, detach, as_json)
        check_run(run, target)
        with gateway(target, family, editor=True, keep=True) as client:
            finish_edit(client, run, bool(target))


def taken_apart(
    client: Client,
    video: Path | None,
    mask: Path | None,
    quick: bool,
    stays: bool,
    more: dict[str, Any] | None = None,
) -> str:
    """The name of the video's layered atlas: an earlier one of the same files and options, or it is made now.

    Raises:
        SfumatoError: refused, failed or cancelled.
    """
    assert video is not None
    options: dict[str, Any] = {**(QUICK_ATLAS if quick else {}), **(more or {})}
    files = [path.read_bytes() for path in (video, mask) if path is not None]
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for data in files:
        digest.update(hashlib.sha256(data).digest())
    options |= {"video": files[0], "mask": files[1] if mask is not None else None, "seed": 0}
    started = client.start_edit("layered-atlas", **options, request_id=f"atlas-{digest.hexdigest()[:32]}")
    operation, _ = follow_to_end(client, started.name, stays, doing="taking the video apart")
    artifacts_of(operation)
    return operation.name


def atlas_of(atlas: Path) -> str:
    """The operation that a folder of `sfumato atlas` names; any other text is one itself.

    Raises:
        ValueError: the folder names none.
    """
    if not atlas.is_dir():
        return str(atlas)
    try:
        return str(json.loads((atlas / NAME_FILE).read_text())["operation"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{atlas} was not written by `sfumato atlas`: no {NAME_FILE} names its operation"
        ) from error


def _checked(settings: list[str]) -> dict[str, str]:
    with readable_errors():
        return settings_of(settings)
