"""docs/observability.md says which metrics there are; the registry has the last word."""

import re
from pathlib import Path

from prometheus_client import REGISTRY

import sfumato.decoder.servicer
import sfumato.denoiser.servicer
import sfumato.editor.servicer
import sfumato.encoder.servicer
import sfumato.gateway.servicer  # noqa: F401

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
# What a label may be: its values come from a list in the code, from the protocol, or from the deployment.
BOUNDED = {
    "method", "code", "service", "version", "cache", "result", "stage", "guidance", "scheduler", "work",
    "state", "concept",
}  # fmt: skip
SUFFIX = {"counter": "_total"}


def registered() -> dict[str, tuple[str, str, str]]:
    """Type, labels and meaning of each of our metrics, by the name that it has in Prometheus."""
    found = {}
    for collector in list(REGISTRY._collector_to_names):
        for family in getattr(collector, "describe", list)():
            if family.name.startswith("sfumato_"):
                labels = ", ".join(getattr(collector, "_labelnames", ()))
                name = family.name + SUFFIX.get(family.type, "")
                found[name] = (family.type, labels, family.documentation)
    return found


def documented() -> dict[str, tuple[str, str, str]]:
    """The same from the page's table."""
    rows = re.findall(r"^\| `(sfumato_\w+)` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    cells = {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}
    return {name: (kind, labels, meaning) for name, (kind, labels, _services, meaning) in cells.items()}


def test_the_page_lists_each_metric_and_no_other() -> None:
    wanted = [f"| `{name}` | {' | '.join(row)} |" for name, row in sorted(registered().items())]
    table = [f"| `{name}` | {' | '.join(row)} |" for name, row in sorted(documented().items())]
    assert table == wanted


def test_every_label_is_known_to_be_bounded() -> None:
    labels = {label for _, names, _ in registered().values() for label in names.split(", ") if label}
    assert labels <= BOUNDED
