"""The commands' options for the life of a request: its id, its deadline, what holds when nobody reads."""

from typing import Annotated

import typer

from sfumato_client.requests import ON_DISCONNECT

RequestId = Annotated[
    str, typer.Option(help="Joins the same request if it runs or is kept, also after a lost connection.")
]
OnDisconnect = Annotated[
    str, typer.Option(help=f"With an id, when nobody reads: {' or '.join(ON_DISCONNECT)}.")
]
KeepSeconds = Annotated[
    float | None, typer.Option(help="With an id: how long it goes on unread, and is kept. Default: 300.")
]
Timeout = Annotated[float, typer.Option("--timeout", "--deadline", help="Deadline in seconds.")]
Partial = Annotated[
    bool, typer.Option("--partial", help="Where the deadline comes first, take the image so far.")
]
Priority = Annotated[int, typer.Option(help="Among your waiting requests, 0 to 9; larger first.")]


def checked_on_disconnect(on_disconnect: str, request_id: str) -> str:
    """For a request's options: "" where it is the default of a request without an id.

    Raises:
        typer.BadParameter: there is no such one.
    """
    if on_disconnect not in ON_DISCONNECT:
        message = f"must be one of {', '.join(ON_DISCONNECT)}, but is {on_disconnect}"
        raise typer.BadParameter(message, param_hint="--on-disconnect")
    return on_disconnect if request_id or on_disconnect != ON_DISCONNECT[0] else ""
