"""Sfumato's client: text-guided image generation over gRPC. Needs no torch."""

from sfumato_client.async_client import AsyncClient
from sfumato_client.attention_maps import WordMaps
from sfumato_client.client import Client
from sfumato_client.comparison import ComparisonResult
from sfumato_client.edit_requests import Artifact
from sfumato_client.errors import SfumatoError
from sfumato_client.prompt_edits import EditPromptResult
from sfumato_client.results import GeneratedImage, GenerateResult

__all__ = [
    "Artifact",
    "AsyncClient",
    "Client",
    "ComparisonResult",
    "EditPromptResult",
    "GenerateResult",
    "GeneratedImage",
    "SfumatoError",
    "WordMaps",
]
