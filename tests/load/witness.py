"""A polite client in a process of its own: how long a refusal takes, whatever the users' processes are at.

What it asks for is nearly the whole queue, so that it is refused as soon as others wait; where it is let in
all the same, it leaves at the first event.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager

from sfumato_client import AsyncClient, SfumatoError

ASK_SECONDS = 0.05  # between a refusal and the next question
ROOM_SECONDS = 1.0  # and where there was room
NUM_STEPS = 120  # 240 row-steps, of a queue of 250

Answer = tuple[float, str]  # milliseconds, code


@contextmanager
def witnessed(target: str, count: int) -> Iterator[list[Answer]]:
    """So many witnesses while the block runs; yields a list that has their answers after it."""
    answers: list[Answer] = []
    program = [sys.executable, "-P", __file__, target]
    with ExitStack() as processes:
        witnesses = [
            processes.enter_context(subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(count)
        ]
        yield answers
        for witness in witnesses:
            said, _ = witness.communicate()  # closes its standard input, which ends it
            answers += [tuple(answer) for answer in json.loads(said)]


async def answer(client: AsyncClient) -> Answer:
    """Of one question."""
    start, code = time.perf_counter(), "OK"
    try:
        async with aclosing(client.generate_events("a cat", num_inference_steps=NUM_STEPS)) as events:
            await anext(events)
    except SfumatoError as error:
        code = error.code
    return round(1000 * (time.perf_counter() - start), 3), code


async def main() -> None:
    """Asks until standard input is closed; prints the answers."""
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    answers: list[Answer] = []
    async with AsyncClient(sys.argv[1]) as client:
        while not ended.done():
            answers.append(await answer(client))
            pause = ROOM_SECONDS if answers[-1][1] == "OK" else ASK_SECONDS
            await asyncio.wait([ended], timeout=pause)
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main())
