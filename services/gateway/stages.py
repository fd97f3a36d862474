"""Where a request's time goes: its stages, measured for the client and for the operator."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from sfumato.common import tracing
from sfumato.common.metrics import SECONDS_BUCKETS

STAGE_SECONDS = Histogram(
    "sfumato_gateway_stage_seconds",
    "Seconds of a stage: encode_text and encode_image of a request, denoise of an image (guide included), "
    "guide of a step, decode of an image, preview.",
    ["stage"],
    buckets=SECONDS_BUCKETS,
)
STEP_SECONDS = Histogram(
    "sfumato_gateway_step_seconds",
    "Seconds of a step at a denoiser as the gateway sees it, replays included; its count is the steps.",
    buckets=SECONDS_BUCKETS,
)
IMAGES = Counter(
    "sfumato_gateway_images", "Images finished, by kind of guidance and scheduler.", ["guidance", "scheduler"]
)
IMAGES_RUNNING = Gauge("sfumato_gateway_images_running", "Images that hold a place of the limit.")
IMAGES_LIMIT = Gauge("sfumato_gateway_images_limit", "Most images sampled at one time.")


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Around a stage, which becomes a span: encode_text, encode_image, denoise, guide, decode or preview."""
    start = time.perf_counter()
    try:
        with tracing.span(name):
            yield
    finally:
        STAGE_SECONDS.labels(name).observe(time.perf_counter() - start)


@dataclass
class Seconds:
    """Wall-clock seconds by stage, and steps that were run again."""

    total: float = 0.0
    encode_text: float = 0.0
    encode_image: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    num_replayed_steps: int = 0

    @contextlib.contextmanager
    def add_to(self, name: str) -> Iterator[None]:
        """Around a stage: adds its time to that of the stages of its name."""
        start = time.perf_counter()
        try:
            with stage(name):
                yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)
