"""An iteration in the editor against one of the bare loop in this process, alternating in one run.

`python -m tests.bench.edit_iteration` prints milliseconds of both and their ratio. The editor's is what
a client that watches sees, from the first event to the last; checkpoints are taken as often as by default.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from sfumato.common.devices import setup_device
from sfumato.editor.artifacts import ArtifactStore
from sfumato.editor.deep_image_prior import METHOD, Options
from sfumato.editor.method import Inputs, Prompt
from sfumato.editor.models import FamilyModels
from tests.editor_process import noisy_image, running_editor

SIDE = 64


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=150)
    arguments = parser.parse_args()
    count = arguments.iterations
    image = noisy_image(side=SIDE)
    with tempfile.TemporaryDirectory() as folder:
        models = FamilyModels(
            arguments.family, setup_device("auto", 0), ArtifactStore(f"file://{folder}/bare")
        )

        def bare() -> float:
            options = Options(prompts=(Prompt("a cat"),), num_iterations=count)
            (Path(folder) / "image.png").write_bytes(image)
            state = METHOD.start(options, Inputs(Image.open(Path(folder) / "image.png")), models)
            times = [time.perf_counter() for _ in METHOD.run(state)]
            return (times[-1] - times[0]) / (count - 1)

        settings = {"num_threads": torch.get_num_threads(), "checkpoint_seconds": 10}
        with running_editor(arguments.family, Path(folder), **settings) as (_, client):

            def served() -> float:
                operation = client.start_edit(
                    METHOD.name, image=image, prompts=["a cat"], seed=0, num_iterations=count
                )
                # Events come in bursts; the first and the last are exact to a look at the feed, 50 ms.
                times = [time.perf_counter() for _ in client.watch_edit(operation.name)]
                return (times[-1] - times[0]) / (count - 1)

            bare(), served()
            pairs = [(bare(), served()) for _ in range(arguments.rounds)]
    ratios = [served_seconds / bare_seconds for bare_seconds, served_seconds in pairs]
    figures = {
        "bare_ms": round(1000 * statistics.median(pair[0] for pair in pairs), 3),
        "editor_ms": round(1000 * statistics.median(pair[1] for pair in pairs), 3),
        "ratio": round(statistics.median(ratios), 3),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
