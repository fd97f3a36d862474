"""Sfumato's client: text-guided image generation over gRPC. Needs no torch."""

from sfumato_client.attention_maps import WordMaps
from sfumato_client.client import AsyncClient, Client
from sfumato_client.errors import SfumatoError
from sfumato_client.results import GeneratedImage, GenerateResult

__all__ = ["AsyncClient", "Client", "GenerateResult", "GeneratedImage", "SfumatoError", "WordMaps"]
