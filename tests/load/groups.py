"""A shape's users in processes of their own, of a few each; their calls joined.

All users in one process would measure how they wait for one another there.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sfumato_client.stack import LAUNCH, free_port, give_way
from tests.load.report import Call, Record
from tests.load.shapes import ENDING_SECONDS, MORE_SECONDS, SHAPES

STARTING_SECONDS = 120.0
# They die with this process. gevent warns of what it finds in torch, which the package of the tests imports.
PYTHON = (sys.executable, "-W", "ignore", "-c", LAUNCH)


def calls_of(target: str, name: str, seconds: float, folder: Path) -> list[Call]:
    """Runs the users of a shape. folder: for their records.

    Raises:
        subprocess.CalledProcessError, subprocess.TimeoutExpired: a process failed or did not end.
    """
    port = str(free_port())
    outputs = [folder / f"calls-{group}.json" for group in range(SHAPES[name].num_groups)]
    most = STARTING_SECONDS + seconds + MORE_SECONDS + ENDING_SECONDS
    with ExitStack() as groups:
        for output in outputs:
            groups.enter_context(process("tests.load.users", port, "--output", str(output)))
        lead = (*PYTHON, "tests.load.lead", target, port, "--shape", name, "--seconds", str(seconds))
        subprocess.run(lead, check=True, timeout=most)
    return joined([tuple(record) for output in outputs for record in json.loads(output.read_text())])


@contextmanager
def process(*program: str) -> Iterator[None]:
    """One that ends by itself after the block; killed where the block fails.

    It stands for other machines, so it takes what the services leave of this one's cores.
    """
    with subprocess.Popen((*PYTHON, *program), start_new_session=True) as child:
        try:
            give_way(child.pid)
            yield
            child.wait(ENDING_SECONDS)
        finally:
            child.kill()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, child.args)


def joined(records: Sequence[Record]) -> list[Call]:
    """The calls; WRONG are those with other bytes than the same request gave before, to whomever."""
    first: dict[str, str] = {}
    calls = []
    for endpoint, ms, code, results in records:
        same = all(first.setdefault(key, digest) == digest for key, digest in results.items())
        calls.append((endpoint, ms, code if same else "WRONG"))
    return calls
