"""A service whose GPU answers no more ends, and says why; CUDA itself is a stand-in."""

import subprocess
import sys

import pytest

from sfumato.common.lost_gpu import EXIT_CODE

FAILING = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from sfumato.common.forwards import Forward
from sfumato.common.work import run

def synchronize(index):
    assert index == 1  # the GPU in use; asking the other would take memory of it
    if sys.argv[1] == "lost":
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

torch.cuda.is_initialized, torch.cuda.device_count = lambda: True, lambda: 2
torch.cuda.memory_reserved, torch.cuda.synchronize = lambda index: index, synchronize

def fail(*tensors):
    raise RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")

async def main():
    failed = Forward("trial", fail, 1).outcomes([(torch.zeros(1, 1),)])
    with ThreadPoolExecutor(1) as pool:
        return failed + await asyncio.gather(run(pool, "trial", fail), return_exceptions=True)

print(asyncio.run(main()))
"""


@pytest.mark.parametrize("gpu", ["lost", "there"])
def test_a_service_ends_only_where_the_gpu_answers_no_more(gpu: str) -> None:
    command = [sys.executable, "-c", FAILING, gpu]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if gpu == "lost":
        assert ran.returncode == EXIT_CODE, ran.stderr
        assert "the GPU is lost" in ran.stdout
        assert "illegal memory access" in ran.stdout
    else:
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("RuntimeError('CUBLAS_STATUS_EXECUTION_FAILED')") == 2
