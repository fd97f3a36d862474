"""A device that is not here is refused in one line that says what there is."""

import json
import subprocess
import sys

import pytest
import torch

from sfumato.common.devices import device_of
from sfumato.common.errors import FailedPrecondition

SERVICE = """
from sfumato.common.config import ModelSettings
from sfumato.common.devices import device_of
from sfumato.common.server import run

class Servicer:
    service_name = "trial"

    def __init__(self, settings):
        device_of(settings.device)

run(ModelSettings(device="cuda:99"), Servicer)
"""


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "found"), [("cuda:99", f"finds {torch.cuda.device_count()} GPUs"), ("gpu", "cuda:N")]
)
def test_a_device_that_is_not_here_is_refused(name: str, found: str) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        device_of(name)
    assert found in refused.value.message
    assert (refused.value.field, refused.value.value) == ("device", name)


def test_a_service_says_so_in_its_last_line() -> None:
    command = [sys.executable, "-c", SERVICE]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1
    last = json.loads((ran.stdout + ran.stderr).splitlines()[-1])
    assert last["event"] == "cannot serve"
    assert "but is 'cuda:99'" in last["error"]
