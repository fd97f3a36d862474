"""The requests of `make bench`: mixed as it says, and batched as a pipeline can."""

from collections import Counter

import pytest

from tests.bench.mixed import Settings, mixed_requests, static_groups
from tests.bench.throughput_report import markdown

LATENCY = {"p50_ms": 1.0, "p95_ms": 2.0}


def test_the_sixteen_requests_differ_in_steps_sampler_scale_size_and_seed() -> None:
    requests = mixed_requests()
    settings = [request.settings for request in requests]
    assert len(requests) == len({request.seed for request in requests}) == 16
    assert {s.num_inference_steps for s in settings} >= {10, 40}
    assert {s.side for s in settings} == {64, 96}
    assert min(len({s.scheduler for s in settings}), len({s.guidance_scale for s in settings})) >= 3


@pytest.mark.parametrize("largest", [1, 2, 4, 16])
def test_static_batches_hold_every_request_once_with_its_like(largest: int) -> None:
    requests = mixed_requests()
    groups = static_groups(requests, largest)
    assert Counter(request for group in groups for request in group) == Counter(requests)
    assert all(len({request.settings for request in group}) == 1 for group in groups)
    assert all(len(group) <= largest for group in groups)


def test_static_batches_are_as_few_as_can_be() -> None:
    requests = mixed_requests()
    kinds: Counter[Settings] = Counter(request.settings for request in requests)
    assert len(static_groups(requests, 16)) == len(kinds)
    assert len(static_groups(requests, 2)) == sum(-(-count // 2) for count in kinds.values())


def test_the_table_has_each_figure_beside_its_aim() -> None:
    mixed = {
        "services_images_per_second": 3.3, "sequential_images_per_second": 1.0,
        "static_images_per_second": 2.0,
        "static_batch_largest": 4, "over_sequential": 3.3, "over_static": 1.65,
        "arrivals_spread_utilisation": 0.7,
        "latency_all_at_once": LATENCY,
        "latency_all_at_once_first_come_first_served": {**LATENCY, "p95_ms": 7.0},
        "latency_spread": LATENCY, "latency_spread_first_come_first_served": LATENCY,
    }  # fmt: skip
    alone = {
        "p50_ms": 400.0,
        "pipeline_p50_ms": 900.0,
        "overhead_share": 0.042,
        "pipeline_overhead_share": 0.1,
    }
    scaling = [{"clients": 8, "images_per_second": 3.0, **LATENCY}]
    figures = {"mixed": mixed, "one_client": alone, "scaling": scaling, "second_core": {"ratio": 1.97}}
    table = markdown({**figures, "replicas": {"skipped": "one core"}})
    assert "| services over static batches | 1.65 | at least 1.3 |" in table
    assert "| p95 ms, all at once | 2.0 | at most 7.0, first come, first served |" in table
    assert "4.2%" in table
    assert "| the same of bare UNets, without services | 1.97 |  |" in table
    assert "| 8 | 3.0 | 1.0 | 2.0 |" in table
