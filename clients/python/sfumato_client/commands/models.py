"""`sfumato models`: what a gateway serves and loads, what a family folder holds, published weights as one."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from sfumato_client.console import AsJson, FamilyDir, Target, connect, gateway, readable_errors
from sfumato_client.messages import blame, fail, print_table, stderr

models_app = typer.Typer(help="List, load and unload the families served; check and import weights.")

Name = Annotated[str, typer.Argument(help="The family's folder's name, with or without families/.")]
Gateway = Annotated[
    str,
    typer.Option(
        "--target", envvar="SFUMATO_TARGET", metavar="HOST:PORT", help="Gateway of `sfumato serve`."
    ),
]


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context, target: Target = "", family: FamilyDir = None, as_json: AsJson = False
) -> None:
    """List the families served, and what each can do; or check and import weights."""
    if context.invoked_subcommand is not None:
        return
    with readable_errors(), gateway(target, family, editor=True) as client:
        response = client.families_and_limits()
    families = response.families
    if as_json:
        print(json.dumps([MessageToDict(entry, preserving_proto_field_name=True) for entry in families]))
        return
    # Names are for copying; the adapters' column is there where there are any.
    adapters = ["adapters"] if any(entry.adapters for entry in families) else []
    name = Column("family", no_wrap=True)
    table = Table(name, "methods", "default size", "largest", "prompt tokens", "memory, MiB", *adapters)
    for entry in families:
        size, largest = f"{entry.default_width}x{entry.default_height}", f"{entry.max_pixels} pixels"
        memory = f"{sum(entry.memory_bytes.values()) / 2**20:,.0f}"
        row = [entry.name, ", ".join(entry.methods), size, largest, str(entry.max_tokens), memory]
        table.add_row(*row, *([", ".join(entry.adapters)] if adapters else []))
    print_table(table)
    print(f"memory for families, MiB: {_by_service(response.memory_limit_bytes)}")
    if response.loadable:
        print(f"can be loaded: {', '.join(response.loadable)}")


def _by_service(num_bytes: Mapping[str, int]) -> str:
    """MiB of each."""
    return ", ".join(f"{name} {value / 2**20:,.0f}" for name, value in sorted(num_bytes.items()))


@models_app.command()
def load(
    name: Name,
    target: Gateway = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(help="Seconds; then it goes on loading.")] = 1800.0,
) -> None:
    """Load a family beside those that are served, from the services' folder of families.

    Refused, with the figures, where it would not fit into memory. With credentials: needs the scope admin.

    Example: sfumato serve --families families & sfumato models load sd15
    """
    with readable_errors(), connect(target, timeout) as client, stderr.status(f"loading {escape(name)}"):
        family = client.load_family(name)
    print(f"{family.name}: memory, MiB: {_by_service(family.memory_bytes)}")


@models_app.command()
def unload(
    name: Name,
    target: Gateway = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(help="Seconds, most of them for its running requests.")] = 1800.0,
) -> None:
    """Let a family go: its running requests end, then its memory is freed. Not the default one.

    If some still run when the time is nearly over, it is served as before. `models load` keeps it meanwhile.

    Example: sfumato models unload sd15
    """
    with readable_errors(), connect(target, timeout) as client, stderr.status(f"unloading {escape(name)}"):
        client.unload_family(name)


@models_app.command()
def check(
    family: Annotated[Path, typer.Argument(metavar="FOLDER", help="A family in the diffusers layout.")],
    as_json: AsJson = False,
) -> None:
    """Say what a family folder holds, what is wrong or missing, and which requests it will serve.

    Reads configurations and the first bytes of the weights, no weights: takes seconds and no memory. Only a
    family that was fetched is read as a whole, to name the files that are no longer what was recorded. Exit
    code 0: it can be served; 1: it cannot, and the report names file and key.

    Examples:

      sfumato models check deploy/models/emoji

      sfumato models import fetch OWNER/NAME families/mine && sfumato models check families/mine
    """
    command = [sys.executable, "-m", "sfumato.common.family_check", str(family)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout.startswith("{"):
        fail((done.stderr.strip().splitlines() or ["no answer"])[-1])
    if as_json:
        print(done.stdout, end="")
    else:
        _show(json.loads(done.stdout))
    raise typer.Exit(done.returncode)


def _show(report: dict[str, Any]) -> None:
    console = Console()
    table = Table("part", "parameters", "size", "precision", "")
    for part in report["parts"]:
        size = f"{part['num_bytes'] / 2**20:,.1f} MiB"
        precision = ", ".join(part["dtypes"])
        wrong = "[red]cannot be used[/red]" if part["error"] else "sound"
        table.add_row(part["name"], f"{part['num_parameters']:,}", size, precision, wrong)
    console.print(f"{escape(report['family'])}: {report['pipeline'] or 'no model_index.json'}, "
                  f"{report['scheduler']}, {report['prediction_type']}")  # fmt: skip
    print_table(table)
    for request in report["serves"]:
        console.print(f"[green]serves[/green] {request}")
    for request, parts in report["missing"].items():
        console.print(f"[yellow]not[/yellow] {request}: needs {', '.join(parts)}")
    for name in report["changed"]:
        console.print(
            f"[yellow]changed[/yellow] since it was fetched: {escape(name)}", highlight=False, soft_wrap=True
        )
    for error in report["errors"]:
        blame(error)


@models_app.command(
    "import",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def import_weights(context: typer.Context) -> None:
    """Turn published checkpoints into a family: checkpoint, vqgan, stylegan2, identity, noised-clip, fetch.

    Each has its own --help, as in: sfumato models import stylegan2 --help
    """
    command = [sys.executable, "-m", "sfumato.importer", *context.args]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
