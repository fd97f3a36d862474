"""Streams that go on after a lost connection, from the event behind the last."""

import copy
import functools
import math
import time
from typing import Any, Protocol

from sfumato_protos.v1 import editor_pb2, gateway_pb2

from sfumato_client.errors import CLIENT_CLOSED, SfumatoError

RECONNECT_SECONDS = 60.0  # how long a gateway that was lost is looked for
FIRST_CONNECT_SECONDS = 10.0  # and one that never answered, to a request with an id
LOST = ("UNAVAILABLE", "CANCELLED")  # what a call ends with when the gateway dies or stops
FIRST_WAIT_SECONDS = 0.1
MAX_WAIT_SECONDS = 2.0

Request = gateway_pb2.GenerateRequest | gateway_pb2.EditPromptRequest | gateway_pb2.CompareRequest
Event = gateway_pb2.GenerateResponse | gateway_pb2.EditPromptResponse | gateway_pb2.CompareResponse


class Stream(Protocol):
    """A stream that may take several calls."""

    sent: Any  # the request of the next call

    @property
    def timeout(self) -> float | None:
        """Of the next call, in seconds."""

    def saw(self, event: Any) -> None:
        """Notes an event: the next call starts behind it."""

    def wait_seconds(self, error: SfumatoError) -> float:
        """How long to wait before the next call; raises the error where there is to be none."""


class Outage:
    """How long a gateway that does not answer is looked for; a new one begins when it has answered."""

    def __init__(self, patience_seconds: float = RECONNECT_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._num_failures = 0
        self._since = self._last = -math.inf

    def wait_seconds(self, error: SfumatoError) -> float:
        """Until it is asked again.

        Raises:
            SfumatoError: the error, once it was looked for long enough.
        """
        now = time.monotonic()
        # Between failures so far apart it was there, if silent: an edit may wait in its queue for hours.
        if now - self._last > RECONNECT_SECONDS:
            self._num_failures, self._since = 0, now
        if now - self._since >= self._patience_seconds:
            raise error
        wait = min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**self._num_failures)
        self._num_failures += 1
        self._last = now
        return max(wait, error.retry_seconds or 0.0)


class Rejoin:
    """A request's stream: joined again where the request has an id."""

    def __init__(self, request: Request, timeout: float) -> None:
        self.sent = copy.deepcopy(request)  # the caller's own stays as it is
        sent = self.sent
        # What has the id: of a comparison the request that its settings share.
        self.request = sent.request if isinstance(sent, gateway_pb2.CompareRequest) else sent
        self._seconds = timeout
        self._outage = Outage(FIRST_CONNECT_SECONDS)
        self._accepted: gateway_pb2.GenerateRequest | gateway_pb2.EditPromptRequest | None = None

    @functools.cached_property
    def _end(self) -> float:
        """From the first call on."""
        return time.monotonic() + self._seconds

    @property
    def timeout(self) -> float:
        """Seconds left."""
        return max(0.001, self._end - time.monotonic())

    def saw(self, response: Event) -> None:
        """Notes an event: the next call starts behind it."""
        event = response.event if isinstance(response, gateway_pb2.CompareResponse) else response
        self._outage = Outage()
        self.request.resume_from = event.event_index + 1
        if event.HasField("accepted"):
            self._accepted = event.accepted.parameters

    def wait_seconds(self, error: SfumatoError) -> float:
        """How long to wait before the next call.

        Raises:
            SfumatoError: there is to be none: the request has no id, or its failure is the service's own.
        """
        if not self.request.request_id:
            raise error
        if error.code == "NOT_FOUND" and error.field == "request_id" and self._accepted is not None:
            # The gateway forgot it, or is another: from the start, with the seed that was drawn.
            self.request.resume_from = 0
            if self._accepted.HasField("seed"):
                self.request.seed = self._accepted.seed
        elif error.code not in LOST or (error.reason and error.retry_seconds is None):
            raise error  # the service says it, and not gRPC of a connection that was lost
        wait = self._outage.wait_seconds(error)
        if wait >= self.timeout:
            raise error
        return wait


class Watch:
    """The stream of an edit's iterations: joined again until the edit ends."""

    timeout = None

    def __init__(self, name: str, after_iteration: int) -> None:
        self.sent = editor_pb2.WatchEditRequest(name=name, after_iteration=after_iteration)
        self._outage = Outage()

    def saw(self, event: editor_pb2.WatchEditResponse) -> None:
        """Notes an iteration."""
        self._outage = Outage()
        self.sent.after_iteration = event.iteration

    def wait_seconds(self, error: SfumatoError) -> float:
        """How long to wait before the next call."""
        return self._outage.wait_seconds(lost(error))


def lost(error: SfumatoError) -> SfumatoError:
    """The error, where the gateway or what is behind it went away.

    Raises:
        SfumatoError: it is another.
    """
    if error.code not in LOST or error.reason == CLIENT_CLOSED:
        raise error
    return error
