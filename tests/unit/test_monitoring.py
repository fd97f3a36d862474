"""Rules, alerts and dashboard: right by promtool, and about metrics that exist."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.prometheus import DASHBOARD, RULES, expression, panels, program
from tests.unit.test_metrics_table import registered

PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
OTHERS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "up"}


def load(name: str) -> Any:
    return yaml.safe_load((RULES / name).read_text())


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in load(name)["groups"] for rule in group["rules"]]


def known() -> set[str]:
    """Every name that an expression may have: samples of metrics, and records."""
    samples = {name + part for name, (kind, _, _) in registered().items() for part in PARTS[kind]}
    return samples | {rule["record"] for rule in rules("rules.yaml")} | OTHERS


def names_in(query: str) -> set[str]:
    """Metrics and records of an expression; those that it groups by or matches are labels."""
    bare = re.sub(r"\{[^}]*\}|(by|on|group_left) ?\([^)]*\)|\[[^]]*\]", " ", query)
    return {name for name in re.findall(r"[a-z_][\w:]*", bare) if "_" in name or name == "up"} - {
        "histogram_quantile", "avg_over_time", "group_left",
    }  # fmt: skip


def test_promtool_finds_the_rules_right_and_each_alert_fires_when_it_should() -> None:
    for command in (["check", "rules", "rules.yaml", "alerts.yaml"], ["test", "rules", "tests.yaml"]):
        done = subprocess.run([program("promtool"), *command], cwd=RULES, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_in_which_it_fires_and_most_one_in_which_it_does_not() -> None:
    cases = [case for test in load("tests.yaml")["tests"] for case in test.get("alert_rule_test", [])]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules("alerts.yaml")}


def test_each_alert_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    assert set(re.findall(r"^\| (Sfumato\w+) \|", page, re.MULTILINE)) == {
        rule["alert"] for rule in rules("alerts.yaml")
    }


def test_rules_alerts_and_dashboard_ask_only_for_what_exists() -> None:
    queries = [rule["expr"] for name in ("rules.yaml", "alerts.yaml") for rule in rules(name)]
    queries += [target["expr"] for panel in panels() for target in panel["targets"]]
    asked = set().union(*(names_in(query.replace("$__rate_interval", "1m")) for query in queries))
    assert asked <= known()
    assert len(asked) > 30


def test_the_dashboard_shows_every_metric() -> None:
    """Build information joins others; the gauges of RUNNING calls and so on are each in a panel."""
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    recorded = " ".join(rule["expr"] for rule in rules("rules.yaml") if rule["record"] in shown)
    unseen = {name for name in registered() if name not in shown + recorded}
    assert unseen == set()


def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    queries = [expression(target) for panel in panels() for target in panel["targets"]]
    records = [{"record": f"panel:{index}:query", "expr": query} for index, query in enumerate(queries)]
    path = tmp_path / "dashboard.yaml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": records}]}))
    done = subprocess.run([program("promtool"), "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_lie_side_by_side() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert max(x for x, _ in own) < 24
        assert not own & cells
        cells |= own
