"""What Prometheus is told: queue, running, ended, seconds of each phase, memory, lost processes."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ltx2.engine import EngineStatus
from ltx2.studio.job import Job

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """A registry of its own, so that several studios can live in one process.

    Args:
        status: of the engine, asked when the metrics are.
        queue_len: jobs that wait.
        running: jobs in hand.
    """

    def __init__(
        self, status: Callable[[], EngineStatus], queue_len: Callable[[], int], running: Callable[[], int]
    ) -> None:
        self._registry = CollectorRegistry()
        self._ended = Counter(
            "ltx2_jobs_ended",
            "Jobs that ended, by state and code of failure",
            ("state", "code"),
            registry=self._registry,
        )
        self._phases = Histogram(
            "ltx2_phase_seconds", "Wall seconds of each phase", ("phase",), buckets=SECONDS, registry=self._registry
        )
        self._waited = Histogram("ltx2_queue_seconds", "Seconds a job waited", buckets=SECONDS, registry=self._registry)
        self._gauge("ltx2_queue_jobs", "Jobs that wait", queue_len)
        self._gauge("ltx2_running_jobs", "Jobs in hand", running)
        self._gauge("ltx2_model_loaded", "Whether the model is loaded", lambda: bool(status().loaded))
        self._gauge("ltx2_resident_bytes", "Memory the model holds", lambda: status().resident_gb * 1e9)
        self._gauge("ltx2_budget_bytes", "Memory there is for it", lambda: status().budget_gb * 1e9)
        self._gauge("ltx2_idle_seconds", "Since the model was last used", lambda: status().idle_seconds)
        self._gauge("ltx2_model_restarts", "Model processes that were lost", lambda: status().restarts)

    def _gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def ended(self, job: Job) -> None:
        """Count a job that is over."""
        self._ended.labels(job.state, job.failure.code if job.failure else "").inc()
        if job.started_at is not None:
            self._waited.observe(max(0.0, job.started_at - job.created_at))
        for phase, seconds in (job.result.seconds if job.result else {}).items():
            self._phases.labels(phase).observe(seconds)

    def render(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
