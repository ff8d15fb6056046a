"""Counts and times of a server, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from fastslm.inference.results import Answer

from .worker import Worker

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Of one server.

    Args:
        worker: whose queue and cache are looked at when somebody asks.

    Attributes:
        paths: the server's own addresses.
    """

    paths: frozenset[str] = frozenset()

    def __init__(self, worker: Worker) -> None:
        self.registry = here = CollectorRegistry()
        here.register(_OfWorker(worker))
        self._requests = Counter("fastslm_requests", "Requests.", ["route", "status"], registry=here)
        self._seconds = Histogram(
            "fastslm_request_seconds", "Of a request.", ["route"], buckets=_SECONDS, registry=here
        )
        self._audio = Counter("fastslm_audio_seconds", "Of the recordings in answers.", registry=here)
        self._tokens = Counter("fastslm_generated_tokens", "Of answers.", registry=here)
        self._doubtful = Counter("fastslm_answers_with_warnings", "Answers that say what is doubtful.", registry=here)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request; all addresses that are not the server's own are one route."""
        known = scope["path"] if scope["path"] in self.paths else "other"
        route = getattr(scope.get("route"), "path", known)  # none was looked for where the gate refused it
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def gave(self, answer: Answer) -> None:
        """Count an answer."""
        self._audio.inc(answer.seconds)
        self._tokens.inc(len(answer.tokens))
        self._doubtful.inc(bool(answer.warnings))

    def text(self) -> bytes:
        """Return them in Prometheus's format."""
        return generate_latest(self.registry)


class _OfWorker(Collector):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def collect(self) -> list[Metric]:
        worker = self._worker
        encoded = CounterMetricFamily("fastslm_recordings", "Recordings asked about.", labels=["encoded"])
        encoded.add_metric(["now"], worker.num_encoded)
        encoded.add_metric(["before"], worker.num_reused)
        return [
            GaugeMetricFamily("fastslm_waiting", "Requests that wait for the model.", worker.num_waiting),
            GaugeMetricFamily("fastslm_running", "Requests that the model answers now.", worker.num_running),
            GaugeMetricFamily("fastslm_cache_bytes", "Of speech tokens that are kept.", worker.kept_bytes),
            encoded,
            CounterMetricFamily(
                "fastslm_model_restarts", "Of the model's process, each after it ended by itself.", worker.num_restarts
            ),
        ]
