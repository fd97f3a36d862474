"""Clients that vanish: processes that are killed in the middle of their streams."""

import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sfumato_client import Client

READ_SECONDS = 1.0  # that one reads before it is killed
LOOK_SECONDS = 0.1  # how often one whose first step is still to come is looked at


@contextmanager
def vanishing(target: str, count: int) -> Iterator[list[int]]:
    """While the block runs, so many clients at a time; yields a list with the process ids of those killed."""
    killed: list[int] = []
    stop = threading.Event()

    def haunt() -> None:
        while not stop.is_set():
            # By its path: it starts in no time, without what the package of the tests imports.
            program = [sys.executable, "-P", __file__, target]
            with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                while not (stop.is_set() or select.select([process.stdout], [], [], LOOK_SECONDS)[0]):
                    pass
                if not stop.is_set() and process.stdout and process.stdout.readline():
                    stop.wait(READ_SECONDS)
                    killed.append(process.pid)
                process.kill()

    threads = [threading.Thread(target=haunt) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield killed
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def main() -> None:
    """One of them: asks for something long, says when the first step came, reads on until it is killed."""
    with Client(sys.argv[1]) as client:
        events = client.generate_events("a ghost", num_inference_steps=900, scheduler="ddim")
        for event in events:
            if event.HasField("step"):
                print("a step came", flush=True)


if __name__ == "__main__":
    main()
