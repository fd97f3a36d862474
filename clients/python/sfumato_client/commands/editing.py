"""What the edit commands do: queue, follow with losses, keep the film, write what was made."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.longrunning import operations_pb2
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sfumato_protos.v1 import editor_pb2

from sfumato_client.client import Client
from sfumato_client.console import SUFFIXES, gateway
from sfumato_client.edit_requests import Artifact, artifacts_of, metadata_of
from sfumato_client.files import check_writable, write_file
from sfumato_client.film import check_clip, check_video, write_clip, write_video
from sfumato_client.messages import say, stderr

FILE_SUFFIXES = {"image/png": ".png", "video/mp4": ".mp4", "application/vnd.safetensors": ".safetensors"}

VIDEO_METHODS = ("text2live-video", "atlas-render")


@dataclass(frozen=True)
class Run:
    """An edit as the command line asks for it."""

    method: str
    options: dict[str, Any]
    output: Path
    settings: Sequence[str]  # NAME=VALUE
    frames: Path | None
    film: Path | None
    frame_every: int
    detach: bool
    as_json: bool


@dataclass
class Followed:
    """What was seen of an edit."""

    losses: dict[str, float]
    frames: list[bytes]


def run_edit(run: Run, target: str, family: Path | None) -> None:
    """
    Raises:
        ValueError: an option that cannot be; SfumatoError: refused, failed or cancelled.
    """
    check_run(run, target)
    with gateway(target, family, editor=True) as client:
        finish_edit(client, run, bool(target))


def check_run(run: Run, target: str) -> None:
    """
    Raises:
        ValueError: files that cannot be written, or --detach without a gateway that stays.
    """
    check_output(run.method, run.output)
    if run.film is not None:
        check_video(run.film)
    for path in (run.film, run.frames and run.frames / "0"):
        if path is not None:
            check_writable(path)
    if run.detach and not target:
        raise ValueError(
            "--detach needs a gateway that stays: start `sfumato serve`, and give --target HOST:PORT"
        )


def check_output(method: str, output: Path) -> None:
    """
    Raises:
        ValueError: not a file of the kind that the method makes. OSError: it cannot be written.
    """
    if method in VIDEO_METHODS:
        check_clip(output)
    elif output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the output must end in one of {', '.join(SUFFIXES)}, but is {output.name}")
    check_writable(output)


def finish_edit(client: Client, run: Run, stays: bool) -> None:
    """Starts the edit, follows it, writes and prints what it made; stays: the gateway outlives the client."""
    options = {**run.options, **settings_of(run.settings)}
    if run.frames or run.film:
        options["preview_interval_iterations"] = run.frame_every
    operation = client.start_edit(run.method, **options)
    if run.detach:
        _print_detached(operation, run.as_json)
        return
    operation, followed = follow_to_end(client, operation.name, stays, run.frames)
    files = write_artifacts(artifacts_of(operation), run.output)
    if run.film and followed.frames:
        files.append(write_video(run.film, followed.frames))
    _print_result(operation, files, followed.losses, run.as_json)


def follow_to_end(
    client: Client, name: str, stays: bool, frames: Path | None = None, doing: str = "optimising"
) -> tuple[operations_pb2.Operation, Followed]:
    """Shows progress until the edit has ended; says on Ctrl-C that it goes on, where the gateway stays."""
    try:
        followed = follow(client, name, frames, doing)
    except KeyboardInterrupt:
        if stays:
            say(f"the edit goes on; `sfumato operations cancel {name}` ends it")
        raise
    return client.wait_operation(name), followed


def follow(client: Client, name: str, frames: Path | None = None, doing: str = "optimising") -> Followed:
    """Shows an edit's progress until it ends; writes its previews into a folder, if one is given."""
    followed = Followed({}, [])
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )  # fmt: skip
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("waiting", total=None, losses="")
        for event in client.watch_edit(name):
            followed.losses = dict(event.losses)
            progress.update(
                task, description=doing, total=event.num_iterations, completed=event.iteration,
                losses=losses_line(followed.losses),
            )  # fmt: skip
            if event.preview:
                followed.frames.append(event.preview)
                if frames is not None:
                    write_file(frames / f"{event.iteration:06d}.png", event.preview)
    return followed


def losses_line(losses: dict[str, float]) -> str:
    """The total, then the terms by size."""
    terms = sorted(losses.items(), key=lambda item: (item[0] != "total", -abs(item[1])))
    return "  ".join(f"{name} {value:.4g}" for name, value in terms)


def write_artifacts(artifacts: Sequence[Artifact], output: Path) -> list[Path]:
    """The image or video under the name given, the others beside it, as out-edit_layer.png."""
    files = []
    for artifact in artifacts:
        suffix = FILE_SUFFIXES[artifact.media_type]
        path = output.with_name(f"{output.stem}-{artifact.name}{suffix}")
        if not artifact.data:
            say(f"{artifact.name} is too large to send; it lies at {artifact.uri}")
        elif artifact.name == "image":
            files.append(write_file(output, _as_format(artifact.data, SUFFIXES[output.suffix.lower()])))
        elif artifact.name == "video":
            files.append(write_clip(output, artifact.data))
        else:
            files.append(artifact.save(path))
    return files


def as_dict(operation: operations_pb2.Operation) -> dict[str, Any]:
    """An operation for --json."""
    metadata = metadata_of(operation)
    state = editor_pb2.EditState.Name(metadata.state).removeprefix("EDIT_STATE_").lower()
    entry: dict[str, Any] = {
        "operation": operation.name,
        "method": metadata.method,
        "state": state,
        "iteration": metadata.iteration,
        "num_iterations": metadata.num_iterations,
        "seed": metadata.seed,
        "create_time": metadata.create_time.ToJsonString(),
    }
    if metadata.HasField("end_time"):
        entry["end_time"] = metadata.end_time.ToJsonString()
        entry["expire_time"] = metadata.expire_time.ToJsonString()
    if operation.HasField("error"):
        entry["error"] = operation.error.message
    return entry


def settings_of(entries: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary; ValueError where one is none."""
    settings = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise ValueError(f"--set takes NAME=VALUE, but is {entry}")
        settings[name.replace("-", "_")] = value
    return settings


def _as_format(png: bytes, image_format: str) -> bytes:
    if image_format == "PNG":
        return png
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if image_format == "JPEG" else {"lossless": True}
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, image_format, **options)
    return buffer.getvalue()


def _print_detached(operation: operations_pb2.Operation, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_dict(operation)))
        return
    print(operation.name)
    say(f"`sfumato operations wait {operation.name} -o FILE` gets the result")


def _print_result(
    operation: operations_pb2.Operation, files: list[Path], losses: dict[str, float], as_json: bool
) -> None:
    if as_json:
        print(json.dumps({**as_dict(operation), "files": [str(file) for file in files], "losses": losses}))
        return
    for file in files:
        say(f"{file}: seed {metadata_of(operation).seed}")
