"""The editor's metrics. A method's name is a label: the registry has few."""

from prometheus_client import Counter, Gauge, Histogram

from sfumato.common.metrics import SECONDS_BUCKETS

OPEN = Gauge("sfumato_editor_edits", "Edits of the database that wait or run.", ["state"])
ENDED = Counter(
    "sfumato_editor_edits_ended", "Edits that ended here: succeeded, failed, cancelled.", ["method", "state"]
)
QUEUE_SECONDS = Histogram(
    "sfumato_editor_queue_seconds",
    "Seconds from an edit's acceptance to its first iteration.",
    buckets=(*SECONDS_BUCKETS, 3600, 14400),
)
ITERATION_SECONDS = Histogram(
    "sfumato_editor_iteration_seconds",
    "Seconds of an iteration, its preview included; its count is the iterations done.",
    ["method"],
    buckets=SECONDS_BUCKETS,
)
CHECKPOINT_SECONDS = Histogram(
    "sfumato_editor_checkpoint_seconds", "Seconds to write a checkpoint.", buckets=SECONDS_BUCKETS
)


def count_end(method: str, state: str) -> None:
    """Counts an edit that ended."""
    ENDED.labels(method, state).inc()
