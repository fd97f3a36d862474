"""A gateway that starts before the services it needs."""

import json
from typing import Any

import pytest
from diffusers import DDIMScheduler

import sfumato.common  # noqa: F401  (before diffusers' models, for torchvision)
from sfumato.common.errors import Unavailable
from sfumato.gateway import servicer
from sfumato.gateway.config import GatewaySettings
from sfumato.gateway.parameters import FamilyInfo
from sfumato.gateway.safety import Concept


def family() -> FamilyInfo:
    """Of tiny models."""
    scheduler = json.loads(DDIMScheduler().to_json_string())
    return FamilyInfo(
        name="families/tiny", latent_channels=4, sample_size=8, vae_scale_factor=8, scaling_factor=0.2,
        max_pixels=4096, max_tokens=24, scheduler_config=scheduler, num_cross_attention_layers=2,
        embedding_size=32, noised_clip=False,
    )  # fmt: skip


class OnceDeaf:
    """Channels as gRPC's: one that found no address when it was opened does not find it for a long time."""

    opened = 0
    closed = 0

    def __init__(self, settings: GatewaySettings, concepts: tuple[Concept, ...]) -> None:
        OnceDeaf.opened += 1
        self._deaf = OnceDeaf.opened == 1

    async def family(self) -> FamilyInfo:
        """Fails on the channels that were opened too early."""
        if self._deaf:
            raise Unavailable("errors resolving encoder:50052")
        return family()

    async def close(self) -> None:
        """Counts."""
        OnceDeaf.closed += 1


async def test_a_gateway_that_was_too_early_asks_on_new_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "ModelServices", OnceDeaf)
    gateway: Any = servicer.GatewayServicer(GatewaySettings())
    await gateway.load()
    assert gateway.families.served.names == ["families/tiny"]
    assert (OnceDeaf.opened, OnceDeaf.closed) == (2, 1)
    await gateway.families.close()
