"""What a long benchmark is at."""

import sys
import time


class Lines:
    """Lines of progress with the seconds since the start, on standard error."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {text}", file=sys.stderr, flush=True)
