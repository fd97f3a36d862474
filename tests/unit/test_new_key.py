"""`sfumato new-key`, and the gateway that takes what it made."""

import json

import pytest
from typer.testing import CliRunner

from sfumato.gateway.credentials import read_credentials, verify
from sfumato_client.cli import app


def test_the_gateway_takes_a_key_by_the_entry_that_was_shown_with_it() -> None:
    ran = CliRunner().invoke(app, ["new-key", "ci", "--tenant", "acme", "--scope", "edit"])
    assert ran.exit_code == 0, ran.output
    key, entry = ran.stdout.strip(), json.loads(ran.stderr)
    assert key not in ran.stderr
    assert len(key) > 40
    grant = verify(key, read_credentials(json.dumps({"keys": [entry]}).encode()))
    assert (grant.credential, grant.tenant, grant.scopes) == ("ci", "acme", {"edit"})


def test_an_unknown_scope_is_refused() -> None:
    ran = CliRunner().invoke(app, ["new-key", "ci", "--tenant", "acme", "--scope", "everything"])
    assert ran.exit_code == 2
    assert "generate, edit, admin" in ran.output


@pytest.mark.parametrize(
    ("key_id", "tenant"), [("ci", "ACME"), ("ci", "a b"), ("ci", ""), ("x" * 129, "acme")]
)
def test_an_entry_that_the_gateway_would_not_take_is_not_made(key_id: str, tenant: str) -> None:
    ran = CliRunner().invoke(app, ["new-key", key_id, "--tenant", tenant, "--scope", "edit"])
    assert ran.exit_code == 2
    assert "sfu_" not in ran.stdout
