"""The logs of a run: a line for each request, and no secret or prompt in any of them."""

import json
import uuid

import pytest

from sfumato_client import Client, SfumatoError
from tests.editor_process import SMALL, noisy_image
from tests.secured import KEYS, Secured, key_of

MARK = "unmistakable-prompt-words"


def test_no_secret_and_no_prompt_is_in_any_log_and_every_request_is(secured: Secured) -> None:
    request_id = uuid.uuid4().hex
    with secured.client("acme") as client:
        client.generate(f"a cat {MARK}", num_inference_steps=1, request_id=request_id)
        client.edit_prompt(f"a cat {MARK}", f"a dog {MARK}", num_inference_steps=1)
        client.edit(
            "deep-image-prior", image=noisy_image(), prompts=[MARK], num_iterations=1, num_cutouts=1, **SMALL
        )
        with pytest.raises(SfumatoError, match=MARK):  # the client is told what it gave
            client.generate("a cat", request_id=f"{MARK} !")
        with pytest.raises(SfumatoError):
            client.start_edit("styleclip-mapper", image=noisy_image(), mapper=f"operations/{MARK}")
    wrong = Client(secured.stack.target, tls_ca=secured.ca, api_key="sfu_wrong_secret")
    with wrong as stranger, pytest.raises(SfumatoError):
        stranger.generate(MARK)
    logs = secured.logs()
    assert "sfu_wrong_secret" not in logs
    assert MARK not in logs
    assert not [name for name in KEYS if key_of(name) in logs]
    for identity in secured.identities.values():
        assert identity.key.read_text().splitlines()[1] not in logs
    text = secured.stack.gateway.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line[0] == "{"]
    calls = [line for line in lines if line["event"] == "call"]
    (generated,) = [line for line in calls if line["request_id"] == request_id]
    assert (generated["tenant"], generated["credential"], generated["code"]) == ("acme", "acme", "OK")
    assert any(line["code"] == "UNAUTHENTICATED" and line["tenant"] == "" for line in calls)
    assert any(line["event"] == "refused" and line.get("field") == "request_id" for line in lines)


def test_a_gateway_without_credentials_says_so_once(secured: Secured) -> None:
    from structlog.testing import capture_logs

    from sfumato.gateway.access import Access
    from sfumato.gateway.config import GatewaySettings

    assert "authentication is off" not in secured.logs()
    with capture_logs() as captured:
        access = Access(GatewaySettings())  # type: ignore[call-arg]
    assert [line["event"] for line in captured] == [
        "authentication is off: everyone who reaches the port may call"
    ]
    assert access.identify("/any/Method", ()).tenant == ""
