"""An iteration in the editor against one of the bare loop in this process, alternating in one run.

`python -m tests.bench.edit_iteration` prints milliseconds of both and their ratio. The editor's is what
a client that watches sees, from the first event to the last; checkpoints are taken as often as by default.
The ratio of the processors' time is the one to believe where other work disturbs the clock.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil
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
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: one per core")
    arguments = parser.parse_args()
    count = arguments.iterations
    image = noisy_image(side=SIDE)
    with tempfile.TemporaryDirectory() as folder:
        models = FamilyModels(
            arguments.family, setup_device("auto", arguments.threads), ArtifactStore(f"file://{folder}/bare")
        )

        def bare() -> tuple[float, float]:
            options = Options(prompts=(Prompt("a cat"),), num_iterations=count)
            (Path(folder) / "image.png").write_bytes(image)
            state = METHOD.start(options, Inputs(Image.open(Path(folder) / "image.png")), models)
            busy = time.process_time()
            times = [time.perf_counter() for _ in METHOD.run(state)]
            return (times[-1] - times[0]) / (count - 1), (time.process_time() - busy) / count

        settings = {"num_threads": torch.get_num_threads(), "checkpoint_seconds": 10}
        with running_editor(arguments.family, Path(folder), **settings) as (editor, client):
            process = psutil.Process(editor.process.pid)

            def served() -> tuple[float, float]:
                busy = sum(process.cpu_times()[:2])
                operation = client.start_edit(
                    METHOD.name, image=image, prompts=["a cat"], seed=0, num_iterations=count
                )
                # Events come in bursts; the first and the last are exact to a look at the feed, 50 ms.
                times = [time.perf_counter() for _ in client.watch_edit(operation.name)]
                busy = sum(process.cpu_times()[:2]) - busy
                return (times[-1] - times[0]) / (count - 1), busy / count

            bare(), served()
            pairs = [(bare(), served()) for _ in range(arguments.rounds)]
    figures = {
        "bare_ms": round(1000 * statistics.median(alone[0] for alone, _ in pairs), 3),
        "editor_ms": round(1000 * statistics.median(edit[0] for _, edit in pairs), 3),
        "ratio": round(statistics.median(edit[0] / alone[0] for alone, edit in pairs), 3),
        "processor_time_ratio": round(statistics.median(edit[1] / alone[1] for alone, edit in pairs), 3),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
