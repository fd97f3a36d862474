"""Settings that every service has; each service's own class adds its own."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServerSettings(BaseSettings):
    """Where a service listens and how it stops. Environment: SFUMATO_<SERVICE>_<NAME>."""

    model_config = SettingsConfigDict(frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 picks a free one and logs it.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus HTTP port; 0: off.")
    max_message_bytes: int = Field(16 * 2**20, gt=0, description="Largest message taken, in bytes.")
    drain_seconds: float = Field(30.0, ge=0, description="Time that running calls get after SIGTERM.")
    reflection: bool = Field(True, description="Serve gRPC reflection.")
    log_level: str = Field("info", description="debug, info, warning or error.")


class ModelSettings(ServerSettings):
    """Settings of a service that holds weights."""

    family: Path = Field(Path("deploy/models/emoji"), description="Folder of the model family.")
    device: str = Field("auto", description="torch device, or auto: cuda where there is one, else cpu.")
    num_threads: int = Field(0, ge=0, description="CPU threads of torch; 0: one per core.")
    engine: Literal["auto", "torch", "onnxruntime"] = Field(
        "auto", description="Runs forward passes. auto: onnxruntime on a CPU, torch on a GPU."
    )
    onnx_cache: Path = Field(
        Path("~/.cache/sfumato/onnx"), description="Folder for the graphs exported for onnxruntime."
    )
