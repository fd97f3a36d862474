"""A stream of a request with an id goes on after a dropped connection, from the event behind the last."""

import copy
import time

import grpc
from sfumato_protos.v1 import gateway_pb2

from sfumato_client.errors import SfumatoError, from_rpc_error

MAX_REJOINS = 8  # in a row, without an event between
FIRST_WAIT_SECONDS = 0.1
MAX_WAIT_SECONDS = 2.0


Request = gateway_pb2.GenerateRequest | gateway_pb2.EditPromptRequest | gateway_pb2.CompareRequest
Event = gateway_pb2.GenerateResponse | gateway_pb2.EditPromptResponse | gateway_pb2.CompareResponse


class Rejoin:
    """Of one request: what to send next, and until when."""

    def __init__(self, request: Request, timeout: float) -> None:
        sent = copy.deepcopy(request)  # the caller's own stays as it is
        self.sent = sent  # again each time
        # What has the id: of a comparison the request that its settings share.
        self.request = sent.request if isinstance(sent, gateway_pb2.CompareRequest) else sent
        self._end = time.monotonic() + timeout
        self._failures = 0

    @property
    def timeout(self) -> float:
        """Seconds left."""
        return max(0.001, self._end - time.monotonic())

    def saw(self, response: Event) -> None:
        """Notes an event: the next stream starts behind it."""
        event = response.event if isinstance(response, gateway_pb2.CompareResponse) else response
        self._failures = 0
        self.request.resume_from = event.event_index + 1
        if (
            event.HasField("accepted")
            and event.accepted.parameters.HasField("seed")
            and not self.request.HasField("seed")
        ):
            self._seed = event.accepted.parameters.seed

    def wait_seconds(self, error: grpc.RpcError) -> float:
        """How long to wait before the next stream.

        Raises:
            SfumatoError: there is to be none: the request has no id, or its failure is the service's own.
        """
        failed = from_rpc_error(error)
        if not self.request.request_id or self._failures >= MAX_REJOINS:
            raise failed from error
        if failed.code == "NOT_FOUND" and failed.field == "request_id":
            # The gateway forgot it, or is another: from the start, with the seed that was drawn.
            self.request.resume_from = 0
            if hasattr(self, "_seed"):
                self.request.seed = self._seed
        elif failed.code != "UNAVAILABLE" or _is_spoken(failed):
            raise failed from error
        wait = min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**self._failures)
        self._failures += 1
        if wait >= self.timeout:
            raise failed from error
        return wait


def _is_spoken(error: SfumatoError) -> bool:
    """Whether the service says it, and not gRPC of a connection that was lost."""
    return bool(error.reason)
