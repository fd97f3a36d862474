"""How a request is to be handled, and what is said when that cannot be."""

import pytest
from sfumato_protos.v1 import gateway_pb2

from sfumato.common.errors import InvalidArgument
from sfumato.gateway.job_messages import Handling, check_handling


@pytest.mark.parametrize("kind", [gateway_pb2.GenerateRequest, gateway_pb2.EditPromptRequest])
def test_what_happens_on_disconnect_is_named_and_not_numbered(kind: type[Handling]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_handling(kind(on_disconnect=gateway_pb2.ON_DISCONNECT_CONTINUE), 60)
    assert refused.value.value == "ON_DISCONNECT_CONTINUE"
    assert refused.value.field == "on_disconnect"


def test_an_unknown_number_is_answered_with_the_names() -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_handling(gateway_pb2.GenerateRequest(request_id="a", on_disconnect=7), 60)  # type: ignore[arg-type]
    assert refused.value.limit == "one of ON_DISCONNECT_CANCEL, ON_DISCONNECT_CONTINUE"
    assert refused.value.value == "7"
