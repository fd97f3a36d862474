"""`sfumato new-key`: an API key for somebody, and what the gateway has to know of it."""

import hashlib
import json
import secrets
from typing import Annotated

import typer

from sfumato_client.messages import say

SCOPES = ("generate", "edit", "admin")


def new_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Names the key in the audit log.")],
    tenant: Annotated[str, typer.Option(help="Whose it is: a-z, 0-9 and -; edits belong to a tenant.")],
    scope: Annotated[list[str], typer.Option(help=f"One of {', '.join(SCOPES)}; repeat for several.")],
) -> None:
    """Make an API key: it is shown once, on stdout; the gateway keeps only its SHA-256.

    Add the entry that is shown on stderr to `keys` in the gateway's SFUMATO_GATEWAY_CREDENTIALS_FILE; it is
    read again when it is replaced.

    Example: sfumato new-key ci --tenant acme --scope generate --scope edit
    """
    if unknown := set(scope) - set(SCOPES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: one of {', '.join(SCOPES)}")
    key = f"sfu_{secrets.token_urlsafe(32)}"
    entry = {
        "id": key_id, "sha256": hashlib.sha256(key.encode()).hexdigest(), "tenant": tenant, "scopes": scope,
    }  # fmt: skip
    say(json.dumps(entry))
    print(key)
