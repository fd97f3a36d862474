"""`sfumato operations`: edits that were queued."""

import json
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from google.longrunning import operations_pb2
from rich.table import Column, Table

from sfumato_client.commands.editing import as_dict, check_output, follow, write_artifacts
from sfumato_client.console import AsJson, connect, readable_errors
from sfumato_client.edit_requests import artifacts_of, metadata_of
from sfumato_client.messages import print_table, say

operations_app = typer.Typer(no_args_is_help=True, help="List, follow, cancel and delete edits.")

Gateway = Annotated[
    str,
    typer.Option(
        "--target", envvar="SFUMATO_TARGET", metavar="HOST:PORT", help="Gateway of `sfumato serve`."
    ),
]
Name = Annotated[str, typer.Argument(help="operations/{id}, or just the id.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="File for the result: .png, .jpg, .webp; of a video .mp4, .webm, .gif."
    ),
]


@operations_app.command("list")
def list_operations(
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    target: Gateway = "127.0.0.1:50051",
    as_json: AsJson = False,
) -> None:
    """List edits, the newest first.

    Example: sfumato operations list --limit 5
    """
    with readable_errors(), connect(target) as client:
        operations = [as_dict(entry) for entry in islice(client.list_operations(), limit)]
    if as_json:
        print(json.dumps(operations))
        return
    # Names are for copying.
    table = Table(Column("operation", no_wrap=True), "method", "state", "iterations", "created", "error")
    for entry in operations:
        iterations = f"{entry['iteration']}/{entry['num_iterations'] or '?'}"
        created, error = entry["create_time"][:19], entry.get("error", "")
        table.add_row(entry["operation"], entry["method"], entry["state"], iterations, created, error)
    print_table(table)


@operations_app.command("get")
def get(
    name: Name, output: Output = None, target: Gateway = "127.0.0.1:50051", as_json: AsJson = False
) -> None:
    """Show an edit as it stands; with -o, write the result of one that has ended."""
    with readable_errors(), connect(target) as client:
        operation = client.get_operation(_full(name))
        _check(operation, output)
        _show(operation, output, as_json)


@operations_app.command("wait")
def wait(
    name: Name,
    output: Output = None,
    timeout: Annotated[float | None, typer.Option(help="At most so many seconds.")] = None,
    target: Gateway = "127.0.0.1:50051",
    as_json: AsJson = False,
) -> None:
    """Wait until an edit ends, with its progress; exit code 1 if it failed, was cancelled, or still runs.

    Example: sfumato operations wait operations/3f2a -o cat.png
    """
    with readable_errors(), connect(target) as client:
        _check(client.get_operation(_full(name)), output)
        if timeout is None:
            follow(client, _full(name))
        operation = client.wait_operation(_full(name), timeout)
        _show(operation, output, as_json)
        if not operation.done:
            raise typer.Exit(1)
        artifacts_of(operation)


@operations_app.command("cancel")
def cancel(name: Name, target: Gateway = "127.0.0.1:50051") -> None:
    """End an edit within one iteration; nothing where it has ended."""
    with readable_errors(), connect(target) as client:
        client.cancel_operation(_full(name))


@operations_app.command("delete")
def delete(name: Name, target: Gateway = "127.0.0.1:50051") -> None:
    """Forget an edit that has ended, and its files."""
    with readable_errors(), connect(target) as client:
        client.delete_operation(_full(name))


def _full(name: str) -> str:
    return name if name.startswith("operations/") else f"operations/{name}"


def _check(operation: operations_pb2.Operation, output: Path | None) -> None:
    if output is not None:
        check_output(metadata_of(operation).method, output)


def _show(operation: operations_pb2.Operation, output: Path | None, as_json: bool) -> None:
    entry = as_dict(operation)
    if output is not None and entry["state"] == "succeeded":
        entry["files"] = [str(file) for file in write_artifacts(artifacts_of(operation), output)]
    if as_json:
        print(json.dumps(entry))
        return
    for key, value in entry.items():
        say(f"{key}: {value}")
