"""Metrics carry the names that the alert rules read, with an edge exactly at each threshold."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import REGISTRY, Histogram

from core import telemetry


@pytest.mark.parametrize(
    ("metric", "labels", "threshold"),
    [
        ("http_request_duration_seconds", ("service", "route", "code"), 2.0),
        ("agent_run_duration_seconds", ("outcome",), 30.0),
        ("db_query_duration_seconds", (), 0.5),
    ],
)
def test_histograms_have_an_edge_at_their_threshold(
    metric: str, labels: tuple[str, ...], threshold: float
) -> None:
    (found,) = (
        candidate
        for candidate in vars(telemetry).values()
        if isinstance(candidate, Histogram) and candidate._name == metric
    )
    assert found._labelnames == labels
    assert threshold in found._upper_bounds


@pytest.mark.parametrize(
    ("gauge", "labels"),
    [
        (telemetry.DB_POOL_CONNECTIONS, ("state",)),
        (telemetry.CONSUMER_LAG_RECORDS, ("source", "group")),
        (telemetry.CONSUMER_LAG_SECONDS, ("source", "group")),
    ],
)
def test_gauges_have_their_labels(gauge: object, labels: tuple[str, ...]) -> None:
    assert gauge._labelnames == labels  # type: ignore[attr-defined]
    assert gauge._name in {  # type: ignore[attr-defined]
        "db_pool_connections", "consumer_lag_records", "consumer_lag_seconds",
    }  # fmt: skip


def test_an_observation_at_the_threshold_counts_as_within() -> None:
    labels = {"service": "test", "route": "/t", "code": "200"}

    def within() -> float:
        name = "http_request_duration_seconds_bucket"
        return REGISTRY.get_sample_value(name, labels | {"le": "2.0"}) or 0.0

    before = within()
    telemetry.HTTP_REQUEST_DURATION.labels(**labels).observe(2.0)
    telemetry.HTTP_REQUEST_DURATION.labels(**labels).observe(2.001)
    assert within() == before + 1


def test_tracing_is_set_up_once_and_names_the_service() -> None:
    telemetry.configure_tracing("billing")
    first = trace.get_tracer_provider()
    telemetry.configure_tracing("other")
    assert trace.get_tracer_provider() is first
    assert isinstance(first, TracerProvider)
    with trace.get_tracer("test").start_as_current_span("x") as span:
        assert span.get_span_context().is_valid
