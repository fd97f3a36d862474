"""Tests. The import comes before any of diffusers: see sfumato.common.torchvision_ops."""

import sfumato.common  # noqa: F401
