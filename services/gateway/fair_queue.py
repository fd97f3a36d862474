"""Requests that wait for a place: bounded, and fair between tenants.

Between tenants by start-time fair queueing (Goyal et al. 1996): each has a virtual clock that advances by the
row-steps of what it starts, over its share, and the tenant that is furthest behind is next. Within a tenant:
priority, then deadline, then arrival. Nothing starves: a tenant's clock stands still while it waits, and a
request gains one priority for each AGING_SECONDS of waiting. The next request is not overtaken by a smaller
one that would fit already.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram

from sfumato.common.errors import ResourceExhausted
from sfumato.common.metrics import SECONDS_BUCKETS
from sfumato.gateway.stages import IMAGES_LIMIT, IMAGES_RUNNING

AGING_SECONDS = 30.0
OVERHEAD_BYTES = 64 * 2**10  # of a waiting call, beside its images
RETRY_SECONDS = 1.0  # where nothing was measured yet

QUEUED = Gauge("sfumato_gateway_queued_row_steps", "Row-steps of requests that wait for a place.")
QUEUED_LIMIT = Gauge("sfumato_gateway_queued_row_steps_limit", "Most row-steps that may wait.")
RUNNING = Gauge("sfumato_gateway_running_row_steps", "Row-steps of requests that hold a place.")
WAIT_SECONDS = Histogram(
    "sfumato_gateway_queue_seconds", "Seconds that requests waited for a place.", buckets=SECONDS_BUCKETS
)
REFUSED = Counter("sfumato_gateway_queue_refusals", "Requests refused because too much waited.")


@dataclass(frozen=True)
class Limits:
    """Of one gateway replica."""

    running_images: int
    queued_row_steps: int
    queued_bytes: int


@dataclass(frozen=True)
class Demand:
    """What a request asks for.

    Attributes:
        row_steps: its cost.
        num_images: sampled at one time.
        num_bytes: of the images that it holds while it waits.
        tenant: whom it counts for; "": nobody in particular.
        share: the tenant's weight, above 0.
        priority: among the tenant's own; larger first.
        deadline: when its client gives up, by time.monotonic; infinity: never.
    """

    row_steps: int
    num_images: int = 1
    num_bytes: int = 0
    tenant: str = ""
    share: float = 1.0
    priority: int = 0
    deadline: float = float("inf")


@dataclass(eq=False)
class Waiting:
    """A request in the queue."""

    demand: Demand
    arrived: float
    granted: "asyncio.Future[None]" = field(default_factory=asyncio.Future)

    def order(self, now: float) -> tuple[float, float, float]:
        """Smallest first, within a tenant."""
        priority = self.demand.priority + (now - self.arrived) // AGING_SECONDS
        return -priority, self.demand.deadline, self.arrived


class FairQueue:
    """Of one gateway replica. Not for several threads."""

    def __init__(
        self,
        limits: Limits,
        row_steps_per_second: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """row_steps_per_second: as measured, for when to try again. clock: seconds; one that never jumps."""
        self.limits = limits
        self.num_images = 0
        self.running_row_steps = 0
        self._pace, self._clock = row_steps_per_second, clock
        self._waiting: list[Waiting] = []
        self._virtual = 0.0
        self._tenants: dict[str, float] = {}  # the virtual time at which each may start its next
        QUEUED_LIMIT.set(limits.queued_row_steps)
        IMAGES_LIMIT.set(limits.running_images)

    @asynccontextmanager
    async def place(self, demand: Demand) -> AsyncIterator[None]:
        """Waits for a place and holds it for as long as the block lasts.

        Raises:
            ResourceExhausted: too much waits already, or it needs more places than there are.
        """
        self._check(demand)
        waiting = Waiting(demand, self._clock())
        if all(other.demand.tenant != demand.tenant for other in self._waiting):
            self._tenants[demand.tenant] = max(self._tenants.get(demand.tenant, 0.0), self._virtual)
        self._waiting.append(waiting)
        self._grant()
        try:
            await waiting.granted
            WAIT_SECONDS.observe(self._clock() - waiting.arrived)
            yield
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:
                self.num_images -= demand.num_images
                self.running_row_steps -= demand.row_steps
            self._grant()

    def queued_row_steps(self, tenant: str | None = None) -> int:
        """Row-steps that wait, of all or of one tenant."""
        demands = [waiting.demand for waiting in self._waiting]
        return sum(demand.row_steps for demand in demands if tenant in (None, demand.tenant))

    def row_steps_before(self, demand: Demand) -> float:
        """Row-steps that are surely done before it starts; those that run side by side with it are not."""
        if self.starts_at_once(demand):
            return 0.0
        now = self._clock()
        place = Waiting(demand, now, asyncio.Future()).order(now)
        own = [waiting for waiting in self._waiting if waiting.demand.tenant == demand.tenant]
        before = sum(waiting.demand.row_steps for waiting in own if waiting.order(now) <= place)
        beside = self.running_row_steps * (1 - 1 / self.limits.running_images)
        return max(0.0, before - beside)

    def starts_at_once(self, demand: Demand) -> bool:
        """Whether it would not have to wait."""
        return not self._waiting and self._fits(demand)

    def _fits(self, demand: Demand) -> bool:
        return self.num_images + demand.num_images <= self.limits.running_images

    def _check(self, demand: Demand) -> None:
        limits = self.limits
        if demand.num_images > limits.running_images:
            advice = "Ask for fewer images."
            raise ResourceExhausted(
                "num_images", f"at most {limits.running_images}", demand.num_images, advice
            )
        if self.starts_at_once(demand):
            return
        queued = self.queued_row_steps()
        # Named tenants leave room for others: what one has waiting is at most what stays free (Choudhury and
        # Hahne 1998, dynamic thresholds).
        own = self.queued_row_steps(demand.tenant) if demand.tenant else 0
        over = max(queued, queued + own) + demand.row_steps - limits.queued_row_steps
        if over > 0:
            asked = f"{demand.row_steps} more, with {queued} waiting"
            what = f" ({own} of them this tenant's, which may be at most what stays free)" if own else ""
            raise self._full(
                "row_steps", f"at most {limits.queued_row_steps} waiting", f"{asked}{what}", over
            )
        held = sum(waiting.demand.num_bytes + OVERHEAD_BYTES for waiting in self._waiting)
        if held + demand.num_bytes + OVERHEAD_BYTES > limits.queued_bytes:
            asked = f"{demand.num_bytes} more, with {held} waiting"
            raise self._full(
                "queued_bytes", f"at most {limits.queued_bytes} waiting", asked, demand.row_steps
            )

    def _full(self, field: str, limit: str, value: str, row_steps: int) -> ResourceExhausted:
        """The refusal, with the time that so many row-steps take."""
        REFUSED.inc()
        pace = self._pace()
        seconds = max(0.1, row_steps / pace) if pace else RETRY_SECONDS
        error = ResourceExhausted(field, limit, value, f"Try again in {seconds:.1f} s.")
        error.retry_seconds = seconds
        return error

    def _grant(self) -> None:
        """Gives free places to those whose turn it is."""
        now = self._clock()
        while self._waiting:
            tenants = {waiting.demand.tenant for waiting in self._waiting}
            tenant = min(tenants, key=lambda name: (self._tenants[name], name))
            own = [waiting for waiting in self._waiting if waiting.demand.tenant == tenant]
            first = min(own, key=lambda waiting: waiting.order(now))
            if not self._fits(first.demand):
                break
            self._waiting.remove(first)
            self._virtual = self._tenants[tenant]
            self._tenants[tenant] += first.demand.row_steps / first.demand.share
            self.num_images += first.demand.num_images
            self.running_row_steps += first.demand.row_steps
            if not first.granted.done():
                first.granted.set_result(None)
        if not self._waiting:
            # Those whose clock is not ahead are as new ones; with nothing running, so are all.
            ahead = self._virtual if self.num_images else float("inf")
            self._tenants = {name: time for name, time in self._tenants.items() if time > ahead}
        QUEUED.set(self.queued_row_steps())
        RUNNING.set(self.running_row_steps)
        IMAGES_RUNNING.set(self.num_images)
