"""Requests that run, and requests of a minute, by tenant."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sfumato.common.errors import ResourceExhausted
from sfumato.gateway.credentials import Quota

MANY_TENANTS = 1000  # above it, those that used nothing lately are forgotten
BUSY_RETRY_SECONDS = 1.0


@dataclass
class Usage:
    """A tenant's: how many run, and a bucket of tokens that fills by the minute's rate."""

    running: int
    tokens: float
    filled_at: float  # by the clock


class Quotas:
    """Of one gateway replica. Not for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds; one that never jumps."""
        self._clock = clock
        self._usage: dict[str, Usage] = {}

    @contextmanager
    def admitted(self, tenant: str, quota: Quota) -> Iterator[None]:
        """Counts a request for as long as the block lasts.

        Raises:
            ResourceExhausted: it would be one too many; with retry_seconds.
        """
        usage = self._filled(tenant, quota)
        if usage.running >= quota.concurrent_requests:
            limit = f"at most {quota.concurrent_requests} at one time"
            raise exhausted("concurrent_requests", limit, usage.running, BUSY_RETRY_SECONDS)
        if usage.tokens < 1:
            seconds = (1 - usage.tokens) * 60 / quota.requests_per_minute
            limit = f"at most {quota.requests_per_minute} a minute"
            raise exhausted("requests_per_minute", limit, "more", seconds)
        usage.tokens -= 1
        usage.running += 1
        try:
            yield
        finally:
            usage.running -= 1

    @contextmanager
    def counted(self, tenant: str, quota: Quota) -> Iterator[None]:
        """Counts what runs on for a tenant without a call, and refuses nothing."""
        usage = self._filled(tenant, quota)
        usage.running += 1
        try:
            yield
        finally:
            usage.running -= 1

    def _filled(self, tenant: str, quota: Quota) -> Usage:
        now = self._clock()
        if tenant not in self._usage:
            if len(self._usage) >= MANY_TENANTS:
                self._forget(now)
            self._usage[tenant] = Usage(0, float(quota.requests_per_minute), now)
        usage = self._usage[tenant]
        refill = (now - usage.filled_at) * quota.requests_per_minute / 60
        usage.tokens = min(float(quota.requests_per_minute), usage.tokens + refill)
        usage.filled_at = now
        return usage

    def _forget(self, now: float) -> None:
        """A bucket that was not touched for a minute is full again."""
        self._usage = {
            tenant: usage
            for tenant, usage in self._usage.items()
            if usage.running or now - usage.filled_at < 60
        }


def exhausted(field: str, limit: str, value: object, seconds: float) -> ResourceExhausted:
    """The refusal, with the time to wait."""
    error = ResourceExhausted(field, limit, value, f"Try again in {seconds:.1f} s.")
    error.retry_seconds = seconds
    return error
