"""Kills the editor, and then the gateway, at random moments over a batch of edits; says what became of them.

`python -m tests.bench.edit_durability --kills 20` exits 1 unless every acknowledged edit ended, none twice,
each with the bits of an undisturbed run.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sfumato_client import Client, SfumatoError
from sfumato_client.edit_requests import artifacts_of
from sfumato_client.stack import Service, Stack, local_stack
from tests.editor_process import SMALL, noisy_image, wait_until_serving

METHOD = "deep-image-prior"


def main() -> None:
    """Parses the options, kills, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", type=Path, default=Path("deploy/models/emoji"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--edits", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "SFUMATO_EDITOR_STATE_DIR": f"{folder}/state",
            "SFUMATO_EDITOR_CHECKPOINT_SECONDS": "0.5",
            "SFUMATO_EDITOR_NUM_THREADS": "1",
        }
        with (
            local_stack(arguments.family, log_dir=Path(folder), editor=True, settings=settings) as stack,
            Client(stack.target, timeout=120) as client,
        ):
            assert stack.editor is not None
            figures = {
                "editor": disturb(stack, stack.editor, client, arguments),
                "gateway": disturb(stack, stack.gateway, client, arguments),
            }
    print(json.dumps(figures, indent=2))
    sys.exit(any(figure["equal"] != figure["acknowledged"] for figure in figures.values()))


def disturb(stack: Stack, service: Service, client: Client, arguments: Any) -> dict[str, Any]:
    """A batch of edits while the service is killed; counts of what became of them."""
    moments = random.Random(arguments.seed)

    def options(seed: int) -> dict[str, Any]:
        return {"image": noisy_image(), "seed": seed, "num_iterations": arguments.iterations, **SMALL}

    undisturbed = [client.edit(METHOD, **options(seed))[0].data for seed in range(3)]
    acknowledged: dict[str, int] = {}
    kills = submitted = 0
    while kills < arguments.kills:
        # One more edit between kills, so that there is work at every one; never more than three wait.
        running = [name for name in acknowledged if not client.get_operation(name).done]
        if submitted < arguments.edits or len(running) < 2:
            name = f"{service.name}-{submitted}"
            operation = client.start_edit(METHOD, **options(submitted % 3), request_id=name)
            acknowledged[operation.name] = submitted % 3
            submitted += 1
        time.sleep(moments.uniform(0.05, 2.0))
        service.process.kill()
        service.process.wait()
        service.start()
        wait_until_serving(service)
        kills += 1
    counts = {"kills": kills, "acknowledged": len(acknowledged), "equal": 0, "failed": 0, "different": 0}
    for name, seed in acknowledged.items():
        try:
            (image,) = artifacts_of(client.wait_operation(name))
            counts["equal" if image.data == undisturbed[seed] else "different"] += 1
        except SfumatoError as error:
            print(name, error, file=sys.stderr)
            counts["failed"] += 1
    listed = [operation.name for operation in client.list_operations()]
    counts["listed_twice"] = len(listed) - len(set(listed))
    iterations = [[event.iteration for event in client.watch_edit(name)] for name in acknowledged]
    counts["iterations_in_order_once"] = sum(
        seen == list(range(1, arguments.iterations + 1)) for seen in iterations
    )
    return counts


if __name__ == "__main__":
    main()
