"""Leads the groups of users (tests.load.users) through a shape, as locust's master.

python -m tests.load.lead HOST:PORT PORT --shape burst --seconds 60
"""

import argparse

import gevent
import locust
from locust.env import Environment

from tests.load import endpoints
from tests.load.shapes import ENDING_SECONDS, MORE_SECONDS, SHAPES, Shape
from tests.load.users import Crowd, Person, SlowReader


def users_over_time(shape: Shape) -> locust.LoadTestShape:
    """locust's shape."""

    class UsersOverTime(locust.LoadTestShape):
        def tick(self) -> tuple[int, float]:
            return shape.num_users(self.get_run_time()), 100.0

    return UsersOverTime()


def is_covered(environment: Environment) -> bool:
    """Whether every endpoint has answered."""
    counted = [environment.stats.get(name, "grpc") for name in endpoints.NAMES]
    return all(entry.num_requests > entry.num_failures for entry in counted)


def main() -> None:
    """Leads from when all groups are there until the time has passed and every endpoint has answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="the gateway")
    parser.add_argument("port", type=int, help="where the groups find the leader")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    Person.fixed_count, SlowReader.fixed_count = shape.persons, shape.slow_readers
    kinds = {Person: shape.persons, Crowd: shape.crowd, SlowReader: shape.slow_readers}
    environment = Environment(
        user_classes=[kind for kind, count in kinds.items() if count],
        shape_class=users_over_time(shape),
        host=arguments.target,
        stop_timeout=ENDING_SECONDS,
    )
    runner = environment.create_master_runner("127.0.0.1", arguments.port)
    while len(runner.clients.ready) < shape.num_groups:
        gevent.sleep(0.1)
    runner.start_shape()
    gevent.sleep(arguments.seconds)
    with gevent.Timeout(MORE_SECONDS, False):
        while not is_covered(environment):
            gevent.sleep(1.0)
    runner.quit()


if __name__ == "__main__":
    main()
