"""Metrics that several services have. Those of one service stand beside what they measure.

Every label takes its values from a list in the code: no id, address, prompt or number of a client's is one.
"""

from prometheus_client import Counter, Gauge, Histogram

# Seconds, from a forward pass to an edit that is waited for.
SECONDS_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200,
)  # fmt: skip

REQUESTS = Counter("sfumato_requests", "Calls that ended, by method and status code.", ["method", "code"])
REQUEST_SECONDS = Histogram(
    "sfumato_request_seconds", "Wall-clock seconds of a call.", ["method", "code"], buckets=SECONDS_BUCKETS
)
RUNNING = Gauge("sfumato_requests_running", "Calls under way.", ["method"])
IS_SERVING = Gauge("sfumato_serving", "1 when the service is loaded and takes calls, else 0.")
BUILD = Gauge("sfumato_build_info", "1; which service of which version this is.", ["service", "version"])
CACHE_LOOKUPS = Counter(
    "sfumato_cache_lookups",
    "Looks into a cache of what was computed, by cache and result.",
    ["cache", "result"],
)


def count_lookup(cache: str, hit: bool) -> None:
    """Counts a look into a cache: onnx_graph, tensors (of the editor), text_embeddings (of the gateway)."""
    CACHE_LOOKUPS.labels(cache, "hit" if hit else "miss").inc()
