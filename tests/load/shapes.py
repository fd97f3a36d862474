"""The shapes of load: how many clients of each kind, and when."""

from dataclasses import dataclass

BURST_SECONDS = 20.0  # the crowd of a burst comes for the second half of each such period
GROUP = 6  # users in a process; more would measure how they wait for one another
ENDING_SECONDS = 120.0  # that calls under way get when a shape ends
MORE_SECONDS = 60.0  # that a shape goes on where an endpoint has not answered yet


@dataclass(frozen=True)
class Shape:
    """How many at a time.

    Attributes:
        persons: ask every endpoint in turn.
        crowd: generate, and ask again at once when refused.
        slow_readers: read their events slower than they are made.
        vanishing: processes that are killed in the middle of their streams.
        bursts: whether the crowd comes and goes.
        witnesses: polite clients that see how long refusals take, where the queue gets full.
    """

    persons: int
    crowd: int = 0
    slow_readers: int = 0
    vanishing: int = 0
    bursts: bool = False
    witnesses: int = 0

    @property
    def num_groups(self) -> int:
        """Processes of users."""
        return -(-(self.persons + self.crowd + self.slow_readers) // GROUP)

    def num_users(self, at: float) -> int:
        """Those of the users' processes, so many seconds after the start."""
        away = self.bursts and at % BURST_SECONDS < BURST_SECONDS / 2
        return self.persons + self.slow_readers + (0 if away else self.crowd)


SHAPES = {
    "steady": Shape(persons=8),
    "burst": Shape(persons=2, crowd=40, bursts=True, witnesses=1),
    "slow-readers": Shape(persons=3, slow_readers=12),
    "vanishing": Shape(persons=3, vanishing=3),
    "soak": Shape(persons=5, crowd=40, slow_readers=1, vanishing=1, bursts=True, witnesses=1),
    "smoke": Shape(persons=4, crowd=12, slow_readers=1, vanishing=1, witnesses=1),
}
