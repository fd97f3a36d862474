"""Sends mutated messages to all RPCs of running services and says what came back.

python -m tests.fuzz.run --messages 100000 --seed 1
"""

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from tests.fuzz.mutation import Fuzzer
from tests.fuzz.samples import samples
from tests.rpcs import MODELS, OPEN_INFERENCE, Rpc, all_rpcs, call
from tests.secured import Secured, key_of, running_secured

DEADLINE_SECONDS = 10.0
LATE_SECONDS = 10.0  # behind the deadline, on a busy machine
CONCURRENCY = 16
# docs/security.md lists them. Not among them: UNKNOWN, INTERNAL, UNAVAILABLE (nothing was killed), DATA_LOSS.
DOCUMENTED = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "CANCELLED",
}  # fmt: skip


@dataclass
class Figures:
    """What a run saw."""

    num_messages: int = 0
    num_calls: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    by_rpc: Counter[str] = field(default_factory=Counter)
    bad: list[dict[str, Any]] = field(default_factory=list)
    slowest_seconds: float = 0.0
    grown_mib: dict[str, float] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)

    def line(self) -> str:
        """In one line."""
        grown = ", ".join(f"{name} {mib:+.0f}" for name, mib in self.grown_mib.items())
        codes = dict(self.codes.most_common())
        return (
            f"{self.num_messages} messages in {self.num_calls} calls; codes {codes}; "
            f"undocumented {len(self.bad)}; slowest {self.slowest_seconds:.1f} s; dead {self.dead}; "
            f"memory, MiB: {grown}"
        )


class Places:
    """A channel to each service that the RPCs are of."""

    def __init__(self, secured: Secured) -> None:
        stack = secured.stack
        behind = {
            "sfumato.v1.EncoderService": stack.encoder,
            "sfumato.v1.DecoderService": stack.decoder,
            "sfumato.v1.DenoiserService": stack.denoisers[0],
        }
        parts = secured.pems()
        mutual, server = grpc.ssl_channel_credentials(*parts), grpc.ssl_channel_credentials(parts[0])
        self._gateway = grpc.aio.secure_channel(stack.target, server)
        self._behind = {
            name: grpc.aio.secure_channel(service.target, mutual) for name, service in behind.items()
        }
        # grpc.aio puts a status of its own in the place of the server's when a stream ends while it is
        # written to, so that streams of requests go over the other API.
        self._blocking = {name: secured.channel(service) for name, service in behind.items()}
        self._in_turn = itertools.cycle(behind)

    async def call(self, rpc: Rpc, data: list[bytes], name: str) -> tuple[str, str]:
        """Code and details."""
        place = next(self._in_turn) if rpc.service in (OPEN_INFERENCE, MODELS) else rpc.service
        if rpc.client_streaming:
            ended = await asyncio.to_thread(call, self._blocking[place], rpc, data, timeout=DEADLINE_SECONDS)
            return ended.code.name, ended.details
        channel = self._behind.get(place, self._gateway)
        metadata = (("authorization", f"Bearer {key_of(name)}"),) if channel is self._gateway else ()
        options: Any = {"timeout": DEADLINE_SECONDS, "metadata": metadata}
        try:
            if rpc.server_streaming:
                async for _ in channel.unary_stream(rpc.path)(data[0], **options):
                    pass
            else:
                await channel.unary_unary(rpc.path)(data[0], **options)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return "OK", ""

    async def close(self) -> None:
        """Closes all."""
        for channel in (self._gateway, *self._behind.values()):
            await channel.close()
        for blocking in self._blocking.values():
            blocking.close()


async def fuzz(secured: Secured, num_messages: int, seed: int, report: Path | None = None) -> Figures:
    """Sends that many messages, spread evenly over all RPCs."""
    figures, places = Figures(), Places(secured)
    fuzzer, rpcs = Fuzzer(seed), all_rpcs()
    warm: dict[str, int] = {}
    started = time.monotonic()

    def planned() -> Iterator[tuple[Rpc, list[bytes], str]]:
        while figures.num_messages < num_messages:
            rpc = fuzzer.random.choice(rpcs)
            data = fuzzer.call(fuzzer.random.choice(samples(rpc.path, rpc.request)), rpc.request)
            sent = data if rpc.client_streaming else data[:1]
            figures.num_messages += len(sent)
            figures.num_calls += 1
            figures.by_rpc[rpc.path] += 1
            if not warm and figures.num_messages > 0.3 * num_messages:
                warm.update(memory(secured))
            if report and figures.num_calls % 500 == 0:
                line = f"{time.monotonic() - started:.0f} s: {figures.line()}\n"
                report.write_text(line + "\n".join(json.dumps(bad) for bad in figures.bad))
            yield rpc, sent, fuzzer.random.choice((*["acme"] * 12, "globex", "admin", "scopeless", "none"))

    source = planned()

    async def worker() -> None:
        for rpc, data, name in source:
            await _one(places, rpc, data, name, figures)

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    await places.close()
    now = memory(secured)
    figures.grown_mib = {name: (size - warm[name]) / 2**20 for name, size in now.items() if name in warm}
    figures.dead = [s.name for s in secured.stack.services if s.process.poll() is not None]
    return figures


async def _one(places: Places, rpc: Rpc, data: list[bytes], name: str, figures: Figures) -> None:
    start = time.monotonic()
    try:
        limit = DEADLINE_SECONDS + LATE_SECONDS
        code, details = await asyncio.wait_for(places.call(rpc, data, name), limit)
    except TimeoutError:
        code, details = "HANGS", ""
    figures.slowest_seconds = max(figures.slowest_seconds, time.monotonic() - start)
    figures.codes[code] += 1
    if code not in DOCUMENTED:
        seen = {"code": code, "details": details[:300], "rpc": rpc.path, "key": name}
        figures.bad.append({**seen, "messages": [message.hex() for message in data]})


def memory(secured: Secured) -> dict[str, int]:
    """Resident bytes of each service that lives."""
    return {
        service.name: psutil.Process(service.process.pid).memory_info().rss
        for service in secured.stack.services
        if service.process.poll() is None
    }


def main() -> None:
    """Prints the figures; exit code 1 where something undocumented came, or a service died."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, default=Path("out/fuzz.txt"), help="figures and what was bad")
    arguments = parser.parse_args()
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running_secured(Path(folder)) as secured:
        start = time.monotonic()
        figures = asyncio.run(fuzz(secured, arguments.messages, arguments.seed, arguments.report))
        text = f"seed {arguments.seed}, {time.monotonic() - start:.0f} s: {figures.line()}"
        arguments.report.write_text("\n".join([text, *(json.dumps(bad) for bad in figures.bad)]))
        print(text)
        for bad in figures.bad[:20]:
            print({**bad, "messages": [message[:200] for message in bad["messages"]]})
    raise SystemExit(1 if figures.bad or figures.dead else 0)


if __name__ == "__main__":
    main()
