"""Settings of video edits that a CPU does in minutes; the service's defaults are the papers', for a GPU."""

from typing import Any

# A clip of 70 frames of 128x72: 2 to 4 minutes of one core.
QUICK_ATLAS: dict[str, Any] = {
    "num_iterations": 3000,
    "num_pretraining_iterations": 200,
    "learning_rate": 2e-3,
    "rate_decay": 0.02,
    "batch_size": 2048,
    "width": 64,
    "alpha_layers": 6,
    "atlas_layers": 6,
    "alpha_bands": 6,
    "atlas_bands": 7,
    "num_flow_spans": 4,
    "lambda_flow": 25.0,
    "num_far_iterations": 600,
    "num_bootstrap_iterations": 2400,
}
QUICK_TEXT2LIVE: dict[str, Any] = {"num_iterations": 150, "num_frames": 1, "num_views": 4, "channels": 64}
