"""Settings of the gateway, from SFUMATO_GATEWAY_*."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from sfumato.common.certificates import TlsFiles
from sfumato.common.config import ServerSettings


class GatewaySettings(ServerSettings):
    """The gateway's settings."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_GATEWAY_", frozen=True)

    encoder_target: str = Field(
        "127.0.0.1:50052", description="host:port or dns:///host:port of the encoder."
    )
    decoder_target: str = Field(
        "127.0.0.1:50053", description="host:port or dns:///host:port of the decoder."
    )
    denoiser_targets: str = Field(
        "127.0.0.1:50054",
        description="host:port of each denoiser, by commas; dns:///host:port: one at each of its addresses.",
    )
    resolve_seconds: float = Field(2.0, gt=0, description="How often denoisers are looked up by dns:///.")
    editor_target: str = Field("", description="host:port of the editor; empty: editing is not offered.")
    editor_wait_seconds: float = Field(30.0, gt=0, description="How long a call waits for a lost editor.")
    max_num_images: int = Field(8, gt=0, description="Most images of one request.")
    max_concurrent_images: int = Field(64, gt=0, description="Most images sampled at one time; others wait.")
    max_queued_row_steps: int = Field(
        50_000, gt=0, description="Most that waits for a place: images x steps x rows of conditioning."
    )
    max_queued_bytes: int = Field(
        256 * 2**20, gt=0, description="Most bytes that waiting requests hold, 64 KiB each and their images."
    )
    max_job_bytes: int = Field(
        256 * 2**20, gt=0, description="Most bytes kept for those who join a request again by its id."
    )
    max_keep_seconds: float = Field(
        3600.0, gt=0, description="Longest time that a request with an id goes on, or is kept, unread."
    )
    max_embeddings_bytes: int = Field(
        64 * 2**20, ge=0, description="Most bytes of encoded texts kept; 0: none are."
    )
    max_prompt_characters: int = Field(1000, gt=0, description="Longest prompt, in characters.")
    max_num_inference_steps: int = Field(1000, gt=0, description="Most steps of a request.")
    max_pixels: int = Field(512 * 512, gt=0, description="Largest image made, width times height.")
    max_video_bytes: int = Field(12 * 2**20, gt=0, description="Largest video file of an edit, in bytes.")
    max_image_bytes: int = Field(8 * 2**20, gt=0, description="Largest image or mask file, in bytes.")
    max_input_pixels: int = Field(2**24, gt=0, description="Largest image or mask, in pixels.")
    replica_wait_seconds: float = Field(5.0, gt=0, description="How long a step waits for a live denoiser.")
    canary_seconds: float = Field(
        60.0, gt=0, description="How often an idle denoiser does a canary step, whose bits are compared."
    )
    step_timeout_seconds: float = Field(120.0, gt=0, description="A denoiser silent for so long is lost.")
    credentials_file: Path | None = Field(
        None, description="JSON file of API key digests, JWT issuers and quotas. Default: no authentication."
    )
    safety_concepts_file: Path | None = Field(
        None,
        description="JSON list of concepts; images near one are withheld. Default: off.",
    )
    services_tls_ca: Path | None = Field(
        None, description="CA of the certificates of encoder, denoiser, decoder, editor. Default: no TLS."
    )
    services_tls_cert: Path | None = Field(None, description="Certificate shown to them, PEM (mutual TLS).")
    services_tls_key: Path | None = Field(None, description="Its private key, PEM.")

    @model_validator(mode="after")
    def _services_tls_is_whole(self) -> Self:
        if (self.services_tls_cert is None) != (self.services_tls_key is None):
            raise ValueError("services_tls_cert and services_tls_key must be given together")
        if self.services_tls_cert is not None and self.services_tls_ca is None:
            raise ValueError("services_tls_cert needs services_tls_ca")
        return self

    @property
    def services_tls(self) -> TlsFiles | None:
        """TLS files of the channels to the services; None: plaintext."""
        if self.services_tls_ca is None:
            return None
        return TlsFiles(self.services_tls_cert, self.services_tls_key, self.services_tls_ca)
