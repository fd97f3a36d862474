"""The S3 API on loopback: moto's server, a stand-in, for no real S3 server is in the registries used here."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import boto3
from moto.server import ThreadedMotoServer

from sfumato_client.stack import free_port


@dataclass
class S3:
    """A bucket whose server can be stopped and started; what is in it stays, in this process."""

    port: int = field(default_factory=free_port)
    url: str = "s3://edits"

    def start(self) -> None:
        """Listens."""
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Refuses connections."""
        self._server.stop()


@contextlib.contextmanager
def s3_server() -> Iterator[S3]:
    """A running one; the environment leads every client, also of child processes, to it."""
    server = S3()
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        boto3.client("s3").create_bucket(Bucket="edits")
        yield server
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def running_s3() -> Iterator[str]:
    """URL of a bucket."""
    with s3_server() as server:
        yield server.url
