"""A GPU that answers no more ends the process.

After some errors of CUDA (an illegal access, memory that fails, a GPU off its bus) every later call of the
process fails, whatever it asks. A service that stayed would fail each request, and, idle by that, draw more.
One that ends is started again, by Kubernetes or `sfumato serve`; its trajectories' steps go to another.
"""

import os

import structlog
import torch

log = structlog.get_logger()

EXIT_CODE = 70


def end_if_gpu_is_lost() -> None:
    """Asks the GPUs that torch has memory of; for use after work that failed."""
    if not torch.cuda.is_initialized():
        return
    try:
        for index in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(index):
                torch.cuda.synchronize(index)
    except Exception as error:
        log.critical("the GPU is lost; the service ends, to be started again", error=str(error)[:300])
        os._exit(EXIT_CODE)  # at once: threads may wait for the GPU for ever
