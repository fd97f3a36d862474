"""`sfumato new-key`: an API key for somebody, and what the gateway has to know of it."""

import hashlib
import json
import re
import secrets
from typing import Annotated

import typer

from sfumato_client.messages import say

TENANT = r"[a-z0-9][a-z0-9-]{0,62}"  # as the gateway takes it
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
    if not re.fullmatch(TENANT, tenant):
        raise typer.BadParameter(f"{tenant}: must be 1 to 63 of a-z, 0-9 and -", param_hint="--tenant")
    if not 1 <= len(key_id) <= 128:
        raise typer.BadParameter("must be 1 to 128 characters", param_hint="ID")
    key = f"sfu_{secrets.token_urlsafe(32)}"
    entry = {
        "id": key_id, "sha256": hashlib.sha256(key.encode()).hexdigest(), "tenant": tenant, "scopes": scope,
    }  # fmt: skip
    say(json.dumps(entry))
    print(key)
