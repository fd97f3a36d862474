"""Settings of the editor, from SFUMATO_EDITOR_*."""

import os
import socket
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from sfumato.common.config import ClipSettings
from sfumato.editor.video import Limits


def default_state_dir() -> Path:
    """sfumato/ in the user's state folder (XDG_STATE_HOME, or ~/.local/state)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sfumato"


class EditorSettings(ClipSettings):
    """The editor's settings."""

    model_config = SettingsConfigDict(env_prefix="SFUMATO_EDITOR_", frozen=True)

    drain_seconds: float = Field(2.0, ge=0, description="Time that calls get after SIGTERM; edits are saved.")
    state_dir: Path = Field(default_factory=default_state_dir, description="Folder of what is kept here.")
    database_url: str = Field("", description="sqlite:/// or postgresql:// URL. Default: in state_dir.")
    artifacts_url: str = Field(
        "", description="file:// or s3:// URL of checkpoints, results. Default: state_dir."
    )
    executor_id: str = Field(
        "",
        description="Whose unfinished edits this takes up. Default: local; with postgresql the host name.",
    )
    max_running_edits: int = Field(1, gt=0, description="Edits that share the device at one time.")
    max_queued_edits: int = Field(1000, gt=0, description="Most edits that wait.")
    checkpoint_seconds: float = Field(10.0, gt=0, description="Most work that the death of the editor costs.")
    result_ttl_seconds: int = Field(7 * 86400, gt=0, description="How long a finished edit is kept.")
    sweep_seconds: float = Field(60.0, gt=0, description="How often expired edits are looked for.")
    max_pixels: int = Field(1024 * 1024, gt=0, description="Largest input image, width times height.")
    max_image_bytes: int = Field(8 * 2**20, gt=0, description="Largest image file, in bytes.")
    max_prompt_characters: int = Field(1000, gt=0, description="Longest text, in characters.")
    max_prompts: int = Field(16, gt=0, description="Most texts, or images, to match.")
    max_video_bytes: int = Field(12 * 2**20, gt=0, description="Largest video file, in bytes.")
    max_video_frames: int = Field(200, gt=0, description="Most frames of a video.")
    max_video_seconds: float = Field(60.0, gt=0, description="Longest video.")
    max_video_pixels: int = Field(32 * 2**20, gt=0, description="Most pixels of all frames of a video.")
    max_num_iterations: int = Field(400_000, gt=0, description="Most iterations of an edit.")

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.state_dir.resolve() / 'edits.sqlite'}"

    @property
    def executor(self) -> str:
        """The executor's id: with a database of its own, one that a new host name does not change."""
        return self.executor_id or ("local" if self.database.startswith("sqlite") else socket.gethostname())

    @property
    def video_limits(self) -> Limits:
        """What a video may have."""
        return Limits(
            self.max_video_bytes, self.max_video_frames, self.max_video_seconds, self.max_pixels,
            self.max_video_pixels,
        )  # fmt: skip

    @property
    def artifacts(self) -> str:
        """The artifact store's URL."""
        return self.artifacts_url or f"file://{self.state_dir.resolve() / 'artifacts'}"
