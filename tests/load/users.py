"""A group of locust's users, in a process of its own, at the command of tests.load.lead; its calls as JSON.

    python -m tests.load.users PORT --output calls.json

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
from tests.load.report import Record

TIMEOUT_SECONDS = 120.0
SLOW_SECONDS = 0.4  # that a slow reader takes for an event


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
        results: dict[str, str] = {}

        def same(key: str, data: bytes) -> None:
            results[key] = hashlib.sha256(data).hexdigest()

        start, failure = time.perf_counter(), None
        try:
            yield same
        except Exception as error:
            failure = error
        ms = 1000 * (time.perf_counter() - start)
        self.environment.events.request.fire(
            request_type="grpc", name=name, response_time=ms, response_length=0, exception=failure,
            context=results,
        )  # fmt: skip
        if failure is not None:
            retry = getattr(failure, "retry_seconds", None) or 0.0
            gevent.sleep(min(retry, self.patience_seconds))
            raise RescheduleTask

    def next_number(self) -> int:
        """One more at each call, over all users of the class in the group."""
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


def main() -> None:
    """Does what the leader says, to the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int, help="of the leader")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    records: list[Record] = []

    def add(name: str, response_time: float, exception: Exception | None, context: Any, **_: Any) -> None:
        code = "OK" if exception is None else getattr(exception, "code", f"LOST: {exception!r:.100}")
        records.append((name, round(response_time, 3), code, context))

    environment = Environment(user_classes=[Person, Crowd, SlowReader])
    environment.events.request.add_listener(add)
    runner = environment.create_worker_runner("127.0.0.1", arguments.port)
    # Groups begin at different places of the round.
    Person.number = runner.worker_index * (len(endpoints.ROUND) // 2)
    runner.greenlet.join()
    arguments.output.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
