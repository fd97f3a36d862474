"""Where a local stack's services listen."""

from sfumato_client.stack import free_port


def test_no_port_is_given_twice() -> None:
    """Not even before the first has begun to listen; drawn at random, two of 500 almost surely agree."""
    assert len({free_port() for _ in range(500)}) == 500
