"""One shape of load by locust, in a process of its own; the calls and their times as JSON.

    python -m tests.load.users HOST:PORT --shape burst --seconds 60 --output calls.json

locust patches the standard library for gevent as it is imported, which gRPC has to be told. No process is
forked here, which gRPC would not stand.
"""

import locust  # isort: skip  (before gRPC: it patches)
import grpc.experimental.gevent as grpc_gevent

grpc_gevent.init_gevent()

import argparse
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.exception import RescheduleTask

from sfumato_client import Client
from tests.load import endpoints

TIMEOUT_SECONDS = 120.0
ENDING_SECONDS = 120.0  # that calls under way get when a shape ends
MORE_SECONDS = 60.0  # that a shape goes on where an endpoint has not answered yet
SLOW_SECONDS = 0.4  # that a slow reader takes for an event


class WrongResult(Exception):
    """Other bytes than the same request gave before."""

    code = "WRONG"


class Calls:
    """All calls of the run: [endpoint, seconds since the start, milliseconds, code]."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.records: list[tuple[str, float, float, str]] = []
        self._digests: dict[str, str] = {}

    def add(self, name: str, response_time: float, exception: Exception | None, **_: Any) -> None:
        """locust's request event."""
        code = "OK" if exception is None else getattr(exception, "code", f"LOST: {exception!r:.100}")
        self.records.append((name, time.perf_counter() - self.start, round(response_time, 3), code))

    def covered(self) -> bool:
        """Whether every endpoint has answered."""
        return {name for name, _, _, code in self.records if code == "OK"} >= set(endpoints.NAMES)

    def same(self, key: str, data: bytes) -> None:
        """Raises WrongResult where the key had other bytes before."""
        digest = hashlib.sha256(data).hexdigest()
        if self._digests.setdefault(key, digest) != digest:
            raise WrongResult(key)


class Visitor(locust.User):
    """A client with a channel of its own."""

    abstract = True
    patience_seconds = 1.0  # most that it waits when it is told to try again later
    wait_time = locust.between(0.05, 0.3)
    number = 0

    def on_start(self) -> None:
        self.client = Client(self.environment.host, TIMEOUT_SECONDS)

    def on_stop(self) -> None:
        self.client.close()

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[Callable[[str, bytes], None]]:
        """Tells locust of a call; a failed one ends the task."""
        start, failure = time.perf_counter(), None
        try:
            yield self.environment.calls.same
        except Exception as error:
            failure = error
        ms = 1000 * (time.perf_counter() - start)
        self.environment.events.request.fire(
            request_type="grpc", name=name, response_time=ms, response_length=0, exception=failure, context={}
        )
        if failure is not None:
            retry = getattr(failure, "retry_seconds", None) or 0.0
            gevent.sleep(min(retry, self.patience_seconds))
            raise RescheduleTask

    def next_number(self) -> int:
        """One more at each call, over all users of the class."""
        type(self).number += 1
        return type(self).number


class Person(Visitor):
    """Asks every endpoint in turn."""

    @locust.task
    def ask(self) -> None:
        number = self.next_number()
        endpoints.ROUND[number % len(endpoints.ROUND)](self.client, self.measure, number)


class Crowd(Visitor):
    """Generates, and asks again at once when refused."""

    patience_seconds = 0.0

    @locust.task
    def generate(self) -> None:
        endpoints.generate(self.client, self.measure, self.next_number())


class SlowReader(Visitor):
    """Reads its events slower than they are made."""

    @locust.task
    def read(self) -> None:
        with self.measure("Generate (slow reader)"):
            for _ in endpoints.slow_events(self.client):
                gevent.sleep(SLOW_SECONDS)


# Users of each shape, beside clients that vanish (tests.load.vanishing). A burst's crowd comes for the second
# half of each of its periods.
SHAPES: dict[str, dict[type[Visitor], int]] = {
    "steady": {Person: 8},
    "burst": {Person: 2, Crowd: 40},
    "slow-readers": {Person: 3, SlowReader: 12},
    "vanishing": {Person: 3},
    "soak": {Person: 5, Crowd: 1, SlowReader: 1},
    "smoke": {Person: 4, Crowd: 2, SlowReader: 1},
}
BURST_SECONDS = 20.0


def shape_of(name: str, seconds: float, calls: Calls) -> locust.LoadTestShape:
    """locust's shape: how many users at which time. Goes on until every endpoint has answered."""
    total = sum(SHAPES[name].values())
    few = total - SHAPES[name].get(Crowd, 0)

    class Shape(locust.LoadTestShape):
        def tick(self) -> tuple[int, float] | None:
            at = self.get_run_time()
            if (at > seconds and calls.covered()) or at > seconds + MORE_SECONDS:
                return None
            quiet = name == "burst" and at % BURST_SECONDS < BURST_SECONDS / 2
            return (few if quiet else total), 100.0

    return Shape()


def main() -> None:
    """Runs a shape to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    for kind, count in SHAPES[arguments.shape].items():
        # The crowd is what comes and goes.
        kind.fixed_count = 0 if kind is Crowd else count
    calls = Calls()
    environment = Environment(
        user_classes=list(SHAPES[arguments.shape]),
        shape_class=shape_of(arguments.shape, arguments.seconds, calls),
        host=arguments.target,
        stop_timeout=ENDING_SECONDS,
    )
    environment.calls = calls
    environment.events.request.add_listener(calls.add)
    runner = environment.create_local_runner()
    runner.start_shape()
    runner.shape_greenlet.join()
    runner.quit()
    runner.greenlet.join()
    arguments.output.write_text(json.dumps(calls.records))


if __name__ == "__main__":
    main()
