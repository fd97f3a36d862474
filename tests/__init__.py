"""Tests. The import comes before any of diffusers: see sfumato.common.torchvision_ops."""

import os

# Before torch is there: its threads only cost where models are tiny, and far more where cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sfumato.common  # noqa: F401
