"""The `sfumato` command."""

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from sfumato_client.commands.atlas import atlas, paint
from sfumato_client.commands.attention import attention
from sfumato_client.commands.compare import compare
from sfumato_client.commands.edit import edit_app
from sfumato_client.commands.edit_prompt import edit_prompt
from sfumato_client.commands.edit_text2live import text2live
from sfumato_client.commands.generate import generate
from sfumato_client.commands.health import health
from sfumato_client.commands.models import models_app
from sfumato_client.commands.new_key import new_key
from sfumato_client.commands.operations import operations_app
from sfumato_client.commands.replay import replay
from sfumato_client.console import (
    FamilyDir,
    own_stack,
    readable_errors,
    security_options,
)
from sfumato_client.messages import say

app = typer.Typer(no_args_is_help=True, add_completion=False)
app.callback()(security_options)
app.command()(generate)
app.command()(replay)
app.command()(compare)
app.command()(attention)
app.command()(edit_prompt)
edit_app.command()(text2live)
app.command()(health)
app.command()(new_key)
app.command()(atlas)
app.command()(paint)
app.add_typer(edit_app, name="edit")
app.add_typer(operations_app, name="operations")
app.add_typer(models_app, name="models")


def main() -> None:
    """Entry point: errors are one readable line, exit code 1; usage errors exit 2, Ctrl-C 130."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def serve(
    family: FamilyDir = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gateway; 0: a free one.")] = 50051,
    host: Annotated[str, typer.Option(help="Address of the gateway.")] = "127.0.0.1",
    denoisers: Annotated[int, typer.Option(min=1, help="Denoiser processes.")] = 1,
    families: Annotated[
        Path | None,
        typer.Option(
            envvar="SFUMATO_FAMILIES",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder of further families, for `sfumato models load NAME`.",
        ),
    ] = None,
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
    clip: Annotated[
        str,
        typer.Option(
            envvar="SFUMATO_CLIP",
            metavar="SOURCE",
            help="CLIP of encoder and editor: open_clip's folder, hf-hub:OWNER/NAME or MODEL/TAG. "
            "Default: the family's clip/.",
        ),
    ] = "",
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="SFUMATO_GATEWAY_TLS_CERT", help="The gateway's certificate, PEM. Default: plaintext."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="SFUMATO_GATEWAY_TLS_KEY", help="Its private key, PEM.")
    ] = None,
) -> None:
    """Start all services on this machine and print one ready line.

    SIGTERM or Ctrl-C drains: running requests end, then the services stop. Edits are saved, and go on at the
    next start with the same --state-dir.

    Examples:

      sfumato serve --port 50051 --denoisers 2

      sfumato serve --family families/sd15 --families families     # and: sfumato models load NAME
    """
    # Until it is ready there is nothing to drain: a signal ends the start.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stop = threading.Event()
    given = {
        "SFUMATO_EDITOR_STATE_DIR": state_dir,
        "SFUMATO_GATEWAY_TLS_CERT": tls_cert,
        "SFUMATO_GATEWAY_TLS_KEY": tls_key,
        "SFUMATO_ENCODER_CLIP": clip or None,
        "SFUMATO_EDITOR_CLIP": clip or None,
    }
    settings = {name: str(value) for name, value in given.items() if value is not None}
    started = own_stack(family, port, host, denoisers, log_dir, True, settings, families)
    with readable_errors(), started as stack:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stop.set())
        threading.Thread(target=stack.watch, daemon=True).start()
        print(stack.ready_line(), flush=True)
        while not stop.wait(0.2):
            pass
        say("draining")
