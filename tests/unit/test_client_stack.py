"""Where a local stack's services listen."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from sfumato_client.stack import free_port


def ports(count: int) -> list[int]:
    """So many, one after the other."""
    return [free_port() for _ in range(count)]


def test_no_port_is_given_twice() -> None:
    """Not by another process either, before any of them listens."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        elsewhere = process.submit(ports, 300)
        given = ports(300) + elsewhere.result()
    assert len(set(given)) == 600
