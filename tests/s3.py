"""The S3 API on loopback: moto's server, a stand-in, for no real S3 server is in the registries used here."""

import contextlib
import os
from collections.abc import Iterator

import boto3
from moto.server import ThreadedMotoServer

from sfumato_client.stack import free_port


@contextlib.contextmanager
def running_s3() -> Iterator[str]:
    """URL of a bucket; the environment leads every client, also of child processes, to the server."""
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        boto3.client("s3").create_bucket(Bucket="edits")
        yield "s3://edits"
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
