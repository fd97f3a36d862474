"""Where a local stack's services listen."""

import multiprocessing
import socket
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from sfumato_client.stack import StackError, free_port, local_stack


def ports(count: int) -> list[int]:
    """So many, one after the other."""
    return [free_port() for _ in range(count)]


def test_no_port_is_given_twice() -> None:
    """Not by another process either, before any of them listens."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        elsewhere = process.submit(ports, 300)
        given = ports(300) + elsewhere.result()
    assert len(set(given)) == 600


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").touch()
    logs = tmp_path / "logs"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(StackError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"),
            local_stack(tmp_path, port=port, log_dir=logs),
        ):
            pass
    assert not logs.exists()
