"""Models that the editing methods' tests share."""

import pytest

from tests.tiny_models import TinyModels


@pytest.fixture(scope="session")
def models() -> TinyModels:
    """Tiny, random, in memory."""
    return TinyModels()
