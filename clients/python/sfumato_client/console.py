"""What the commands share: options, errors as one line, the gateway to ask, progress."""

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sfumato_protos.v1 import gateway_pb2

from sfumato_client.calls import TIMEOUT_SECONDS
from sfumato_client.client import Client
from sfumato_client.errors import SfumatoError
from sfumato_client.messages import fail, stderr
from sfumato_client.requests import GenerateOptions
from sfumato_client.results import GenerateResult
from sfumato_client.security import SecurityOptions
from sfumato_client.stack import Stack, StackError, local_stack

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

Target = Annotated[
    str,
    typer.Option(
        envvar="SFUMATO_TARGET",
        metavar="HOST:PORT",
        help="Gateway to ask. Without one, a local stack is started.",
    ),
]
FamilyDir = Annotated[
    Path | None,
    typer.Option(
        "--family", envvar="SFUMATO_FAMILY", metavar="DIR", help="Model family. Default: the emoji family."
    ),
]
Model = Annotated[
    str,
    typer.Option("--model", metavar="NAME", help="Family of the gateway, as `sfumato models` lists them."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def with_progress(client: Client, prompt: str, options: GenerateOptions) -> GenerateResult:
    """Runs the request under a progress bar over the steps of all images."""
    return progress_of(client.generate_events(prompt, **options))


def progress_of(events: Iterable[gateway_pb2.GenerateResponse]) -> GenerateResult:
    """Reads a generation's events under a progress bar over the steps of all images."""
    result = GenerateResult()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("waiting", total=None)
        for event in events:
            result.add(event)
            if event.HasField("accepted"):
                total = event.accepted.num_steps * event.accepted.parameters.num_images
                progress.update(task, total=total, description="sampling")
            elif event.HasField("step"):
                progress.advance(task)
    return result


_given_security: ContextVar[SecurityOptions] = ContextVar("security", default=SecurityOptions())  # noqa: B039


@contextlib.contextmanager
def gateway(
    target: str,
    family: Path | None,
    timeout: float = TIMEOUT_SECONDS,
    editor: bool = False,
    keep: bool = False,
) -> Iterator[Client]:
    """A client of the given gateway, or of a local stack's for as long as the block lasts.

    With editor, that stack has one, whose edits end with it, or, with keep, stay for later stacks.
    """
    with (
        target_or_local(target, family, editor, keep) as address,
        connect(address, timeout, bool(target)) as client,
    ):
        yield client


def connect(target: str, timeout: float = TIMEOUT_SECONDS, secured: bool = True) -> Client:
    """A client, with the TLS and key options that stand before the command unless it is not secured."""
    return Client(target, timeout, **_given_security.get() if secured else {})


def security_options(
    tls: Annotated[bool, typer.Option("--tls", help="TLS; the system's CAs check the gateway.")] = False,
    tls_ca: Annotated[
        Path | None,
        typer.Option(envvar="SFUMATO_TLS_CA", metavar="FILE", help="TLS; this CA (PEM) checks the gateway."),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(envvar="SFUMATO_TLS_CERT", metavar="FILE", help="Certificate to show (mutual TLS)."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="SFUMATO_TLS_KEY", metavar="FILE", help="Its private key.")
    ] = None,
    api_key: Annotated[
        str,
        typer.Option(
            envvar="SFUMATO_API_KEY",
            show_envvar=True,
            metavar="KEY",
            help="API key or JWT. Rather by the variable: others on this machine see arguments.",
        ),
    ] = "",
) -> None:
    """Images from words: generate, or serve the services.

    Example with TLS and a key: SFUMATO_API_KEY=... sfumato --tls-ca ca.pem models --target gateway:443
    """
    options: SecurityOptions = {"tls": tls, "api_key": api_key}
    if tls_ca is not None:
        options["tls_ca"] = tls_ca
    if tls_cert is not None:
        options["tls_cert"] = tls_cert
    if tls_key is not None:
        options["tls_key"] = tls_key
    _given_security.set(options)


@contextlib.contextmanager
def target_or_local(
    target: str, family: Path | None, editor: bool = False, keep: bool = False
) -> Iterator[str]:
    """The given gateway, or that of a local stack for as long as the block lasts; else as `gateway`."""
    if target:
        yield target
        return
    # SIGTERM ends the stack too: without this the services would be cut off instead of drained.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with stderr.status("starting the local services"):
        stack = contextlib.ExitStack()
        settings = {}
        if editor and not keep:
            state = stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-edits-"))
            settings["SFUMATO_EDITOR_STATE_DIR"] = state
        running = stack.enter_context(own_stack(family, 0, "127.0.0.1", 1, None, editor, settings))
    with stack:
        yield running.target


@contextlib.contextmanager
def own_stack(
    family: Path | None,
    port: int,
    host: str,
    denoisers: int,
    log_dir: Path | None,
    editor: bool = False,
    settings: dict[str, str] | None = None,
    families: Path | None = None,
) -> Iterator[Stack]:
    """A local stack, its logs in a folder that is made for it unless one is given."""
    with contextlib.ExitStack() as stack:
        logs = log_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sfumato-")))
        started = local_stack(
            family or default_family(), port=port, host=host, denoisers=denoisers, log_dir=logs,
            editor=editor, settings=settings, families=families,
        )  # fmt: skip
        yield stack.enter_context(started)


def default_family() -> Path:
    """deploy/models/emoji of the checkout that this, or the current folder, lies in."""
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            family = folder / "deploy" / "models" / "emoji"
            if family.is_dir():
                return family
    raise StackError("no deploy/models/emoji here or above: give --family DIR, or --target HOST:PORT")


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """Known failures as one readable line."""
    try:
        yield
    except SfumatoError as error:
        fail(f"{error.code.lower().replace('_', ' ')}: {error.message}")
    except (StackError, OSError, ValueError) as error:
        fail(str(error))
