"""What Prometheus reads at ``/metrics``, in a registry of the service's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from xlnet_fast.serve.contract import ModelStatus
from xlnet_fast.serve.worker import Observer

if TYPE_CHECKING:
    from xlnet_fast.serve.model import Version
    from xlnet_fast.serve.notes import Notes

STATES = ("loading", "ready", "failed", "unloading")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKENS = (16, 32, 64, 128, 256, 512, 768, 1024, 2048, 4096, 8192, 16384)
_RATIOS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.5, 2.0)


class Metrics:
    """All of them; ``page`` is what is sent."""

    def __init__(self) -> None:
        """None has a value yet."""
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry, "namespace": "xlnet_fast"}
        self.requests = Histogram(
            "request_seconds", "From a request's arrival to the end of its answer",
            ("protocol", "model", "status"), buckets=_SECONDS, **made,
        )  # fmt: skip
        self.in_flight = Gauge("requests_in_flight", "Requests that are being answered", **made)
        self.waits = Histogram(
            "wait_seconds", "Of a piece, for its batch", ("model",), buckets=_SECONDS, **made
        )
        self.batch_tokens = Histogram(
            "batch_tokens", "Of a batch, padding included", ("model",), buckets=_TOKENS, **made
        )
        self.batch_pieces = Histogram(
            "batch_pieces", "Of a batch", ("model",), buckets=(1, 2, 4, 8, 16, 32, 64, 128), **made
        )
        self.padding = Histogram(
            "batch_padding_ratio", "A batch's tokens, for each that is no padding",
            ("model",), buckets=_RATIOS, **made,
        )  # fmt: skip
        self.tokens = Counter("tokens", "Computed, padding left out", ("model",), **made)
        self.failed_alone = Counter(
            "pieces_failed", "That could not be computed by themselves", ("model",), **made
        )
        self.loads = Counter("model_loads", "Of models, by result", ("model", "result"), **made)
        self.models = Gauge(
            "model_state", "1 for the state of a version", ("model", "version", "state"), **made
        )
        self.default = Gauge(
            "model_default_version", "That answers where a request names none", ("model",), **made
        )

    def observer(self, model: str) -> Observer:
        """For the inference thread of a model."""
        return _BatchObserver(self, model)

    def note_load(self, model: str, result: str) -> None:
        """A model was loaded ("ok"), or could not be ("failed")."""
        self.loads.labels(model, result).inc()

    def note_request(self, notes: Notes, status: int, seconds: float) -> None:
        """A request has ended; without a model's name where it asked for none that there is."""
        labels = (notes.protocol or "none", notes.model, str(status))
        self.requests.labels(*labels).observe(seconds)

    def show_models(self, statuses: Iterable[ModelStatus]) -> None:
        """The states, in the place of what was shown before."""
        self.models.clear()
        self.default.clear()
        for one in statuses:
            for state in STATES:
                shown = self.models.labels(one.name, one.version, state)
                if one.state == state:
                    shown.set(1)
            if one.default:
                self.default.labels(one.name).set(int(one.version))

    def watch_queues(self, loaded: Callable[[], Sequence[Version]]) -> None:
        """Ask the queues how much waits, whenever the page is read."""
        self.registry.register(_Queues(loaded))

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _BatchObserver(Observer):
    """A model's batches, in the metrics."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model

    def batch(self, pieces: int, tokens: int, longest: int, waits_s: Sequence[float]) -> None:
        """See ``Observer``."""
        metrics, model = self._metrics, self._model
        metrics.batch_pieces.labels(model).observe(pieces)
        metrics.batch_tokens.labels(model).observe(pieces * longest)
        metrics.padding.labels(model).observe(pieces * longest / tokens)
        metrics.tokens.labels(model).inc(tokens)
        waits = metrics.waits.labels(model)
        for wait_s in waits_s:
            waits.observe(wait_s)

    def failed_alone(self) -> None:
        """See ``Observer``."""
        self._metrics.failed_alone.labels(self._model).inc()


class _Queues:
    """Tokens that wait, by model and version."""

    def __init__(self, loaded: Callable[[], Sequence[Version]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As prometheus-client asks for it."""
        family = GaugeMetricFamily(
            "xlnet_fast_queue_tokens", "That wait for a model", labels=("model", "version")
        )
        for one in self._loaded():
            if one.worker is not None:
                family.add_metric((one.name, one.version), one.worker.tokens)
        yield family
