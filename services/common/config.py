"""Settings that every service has; each service's own class adds its own."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sfumato.common.certificates import TlsFiles


class ServerSettings(BaseSettings):
    """Where a service listens and how it stops. Environment: SFUMATO_<SERVICE>_<NAME>."""

    model_config = SettingsConfigDict(frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 picks a free one and logs it.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus HTTP port; 0: off.")
    max_connection_age_seconds: float = Field(
        0, ge=0, description="Age at which clients connect anew, and so find new replicas; 0: never."
    )
    max_message_bytes: int = Field(16 * 2**20, gt=0, description="Largest message taken, in bytes.")
    drain_seconds: float = Field(30.0, ge=0, description="Time that running calls get after SIGTERM.")
    reflection: bool = Field(False, description="Serve gRPC reflection. `sfumato serve` does.")
    log_level: str = Field("info", description="debug, info, warning or error.")
    log_prompts: bool = Field(
        False, description="Let clients' texts into the logs. Default: no prompt, no quoted value, is logged."
    )
    tls_cert: Path | None = Field(None, description="Certificate chain, PEM. Default: no TLS.")
    tls_key: Path | None = Field(None, description="Its private key, PEM.")
    tls_client_ca: Path | None = Field(
        None, description="CA of the certificates that clients must show (mutual TLS). Default: none."
    )
    health_port: int = Field(
        0, ge=0, le=65535, description="Plaintext port with health alone, for probes without TLS; 0: off."
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be given together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """The server's TLS files; None: plaintext."""
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca) if self.tls_cert else None


class ModelSettings(ServerSettings):
    """Settings of a service that holds weights."""

    family: Path = Field(Path("deploy/models/emoji"), description="Folder of the model family.")
    device: str = Field("auto", description="torch device, or auto: cuda where there is one, else cpu.")
    num_threads: int = Field(0, ge=0, description="CPU threads of torch; 0: one per core.")
    engine: Literal["auto", "torch", "onnxruntime", "triton"] = Field(
        "auto", description="Runs forward passes. auto: onnxruntime on a CPU, torch on a GPU."
    )
    onnx_cache: Path = Field(
        Path("~/.cache/sfumato/onnx"), description="Folder for the graphs exported for onnxruntime."
    )
    triton_url: str = Field("", description="host:port of the Triton Inference Server of engine triton.")

    @model_validator(mode="after")
    def _triton_is_whole(self) -> Self:
        if (self.engine == "triton") != bool(self.triton_url):
            raise ValueError("engine triton and triton_url (host:port) must be given together")
        return self

    @property
    def cpu_threads(self) -> int:
        """num_threads, or one per core."""
        return self.num_threads or os.cpu_count() or 1


class ClipSettings(ModelSettings):
    """Settings of a service that holds a CLIP of the joint space."""

    clip: str = Field(
        "",
        description="CLIP of the joint space: a folder in open_clip's layout, hf-hub:OWNER/NAME, or a "
        "MODEL/TAG that open_clip lists, as ViT-L-14/openai. Empty: the family's clip/.",
    )


class FamiliesSettings(ModelSettings):
    """Settings of a service that can hold several families."""

    families: Path | None = Field(
        None,
        description="Folder of families that can be loaded at run time, by their names. Default: none.",
    )
    model_memory_bytes: int = Field(
        0, ge=0, description="What all loaded families may take; 0: what is free when one is loaded."
    )
