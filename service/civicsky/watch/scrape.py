"""The metrics of `/metrics`: one list of all that there are, and their text. The home of prometheus_client.

Pure: `exposition` is given values and makes the text. A label has only the values that the list names, or that come
from the settings; any other is told as `other`, so that nothing from outside can make series without end.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, get_args

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from civicsky.health import MEANINGS
from civicsky.model import BadReason, FrameOutcome, GapCause, PostOutcome, RejectReason

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
OTHER: Final = "other"
STALL_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram's buckets."""

Kind = Literal["counter", "gauge", "histogram"]
Label = Literal[
    "outcome",
    "reason",
    "cause",
    "name",
    "task",
    "direction",
    "model",
    "currency",
    "half",
    "kind",
    "version",
    "filter_version",
]
ProcessKind = Literal["main", "worker", "model", "other"]
CONFIGURED: Final = frozenset[Label]({"task", "model", "currency", "version", "filter_version"})
"""Labels whose values come from the settings or the program; the others have those of the list."""


Labels = Mapping[Label, Sequence[str]]
"""A metric's labels with their values."""


class Measure(NamedTuple):
    """One metric."""

    name: str
    kind: Kind
    unit: str
    """What a value counts or is measured in."""
    labels: "Labels"
    """Each label's values; empty for one of `CONFIGURED`."""
    meaning: str


def _of(literal: object) -> tuple[str, ...]:
    return tuple(get_args(literal))


_OUTCOME: Final[Labels] = {"outcome": _of(FrameOutcome)}
_POST: Final[Labels] = {
    "outcome": _of(PostOutcome),
    "reason": ("", *_of(RejectReason), *_of(BadReason), OTHER),
}
_CAUSE: Final[Labels] = {"cause": _of(GapCause)}
_DIRECTION: Final[Labels] = {"direction": ("in", "out")}
_MONEY: Final[Labels] = {"model": (), "currency": ()}
_BUILD: Final[Labels] = {"version": (), "filter_version": ()}
_DOCUMENT: Final[Labels] = {"outcome": ("written", "stale", "duplicate", "refused")}
_NAME: Final[Labels] = {"name": tuple(MEANINGS)}
_HALF: Final[Labels] = {"half": ("label", "store")}
_TASK: Final[Labels] = {"task": ()}
_PROCESS: Final[Labels] = {"kind": _of(ProcessKind)}

MEASURES: Final = (
    Measure("civicsky_build_info", "gauge", "1", _BUILD, "Always 1: what runs."),
    Measure("civicsky_start_time_seconds", "gauge", "seconds since 1970", {}, "When this process started."),
    Measure("civicsky_ready", "gauge", "0 or 1", {}, "Whether /readyz says ready."),
    Measure("civicsky_condition", "gauge", "0 or 1", _NAME, "Whether something is wrong."),
    Measure("civicsky_condition_over", "gauge", "0 or 1", _NAME, "Whether it has lasted beyond its bound."),
    Measure("civicsky_condition_seconds", "gauge", "seconds", _NAME, "How long it has lasted; how far behind."),
    Measure("civicsky_parked", "gauge", "0 or 1", _HALF, "Refused by model or store; stands still until a restart."),
    Measure("civicsky_connected", "gauge", "0 or 1", {}, "Whether a relay is connected and sends or answers."),
    Measure("civicsky_quiet", "gauge", "0 or 1", {}, "Whether a connected relay sends nothing. Not wrong by itself."),
    Measure("civicsky_window_closed", "gauge", "0 or 1", {}, "Whether source.window is closed."),
    Measure("civicsky_connections_total", "counter", "connections", {}, "Made to relays; all but the first again."),
    Measure("civicsky_connect_failures_total", "counter", "times", {}, "A relay was lost, or could not be reached."),
    Measure("civicsky_frames_received_total", "counter", "frames", {}, "Messages that came in."),
    Measure("civicsky_frames_total", "counter", "frames", _OUTCOME, "Messages committed, by what became of them."),
    Measure("civicsky_posts_total", "counter", "operations", _POST, "Operations on posts that were committed."),
    Measure("civicsky_gaps_total", "counter", "gaps", _CAUSE, "Gaps that were recorded."),
    Measure("civicsky_lag_seconds", "gauge", "seconds", {}, "Age of the last committed event; grows in silence, too."),
    Measure("civicsky_behind_seconds", "gauge", "seconds", {}, "How old the last event was when it was committed."),
    Measure("civicsky_journal_bytes", "gauge", "bytes", {}, "Of the journal in use, as of its last commit."),
    Measure("civicsky_journal_max_bytes", "gauge", "bytes", {}, "The bound journal.max_bytes."),
    Measure("civicsky_disk_free_bytes", "gauge", "bytes", {}, "Free for us on the data directory's disk."),
    Measure("civicsky_waiting_labels", "gauge", "jobs", {}, "Posts, by task, that wait for a label."),
    Measure("civicsky_waiting_documents", "gauge", "documents", {}, "Documents that the store must still be told."),
    Measure("civicsky_labels_total", "counter", "labels", _TASK, "Labels that were kept."),
    Measure("civicsky_labels_failed_total", "counter", "jobs", _TASK, "Posts that had all their attempts in vain."),
    Measure("civicsky_labels_gated_total", "counter", "jobs", _TASK, "Posts that the gate kept from the model."),
    Measure("civicsky_model_calls_total", "counter", "calls", {}, "Calls of the model, in vain or not."),
    Measure("civicsky_workers", "gauge", "workers", {}, "Label workers on other machines that are there."),
    Measure("civicsky_workers_queued", "gauge", "questions", {}, "Questions that no label worker has taken yet."),
    Measure("civicsky_workers_in_flight", "gauge", "questions", {}, "Questions that a label worker has taken."),
    Measure("civicsky_workers_results_total", "counter", "results", {}, "What label workers brought."),
    Measure("civicsky_workers_redelivered_total", "counter", "calls", {}, "For jobs whose worker had fallen silent."),
    Measure("civicsky_workers_lost_total", "counter", "jobs", {}, "Jobs that NATS lost; they were dispatched again."),
    Measure("civicsky_tokens_total", "counter", "tokens", _DIRECTION, "Read and written by the model."),
    Measure("civicsky_cost_total", "counter", "label.currency", _MONEY, "What calls cost, by label.prices."),
    Measure("civicsky_documents_total", "counter", "documents", _DOCUMENT, "Documents of posts, as they were stored."),
    Measure("civicsky_loop_stall_seconds", "histogram", "seconds", {}, "How late the event loop comes to a task."),
    Measure("civicsky_loop_stall_max_seconds", "gauge", "seconds", {}, "The longest of one to two minutes."),
    Measure("civicsky_resident_bytes", "gauge", "bytes", _PROCESS, "Memory (RSS) of it and its children."),
    Measure("civicsky_processes", "gauge", "processes", _PROCESS, "This process and its children."),
)  # fmt: skip
"""Every metric. The documentation's table, alerts and dashboard are tested against this."""

BY_NAME: Final = {measure.name: measure for measure in MEASURES}

assert len(BY_NAME) == len(MEASURES)


class Stalls:
    """How late the loop came, as a histogram since the start, and the longest of late."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(STALL_SECONDS) + 1)
        """How many were in each bucket, the last one without an upper bound; not added up."""
        self.sum = 0.0
        self._minute, self._max, self._max_before = 0, 0.0, 0.0

    def note(self, late: float, now: float) -> None:
        """It came so many seconds late, at this time of a clock in seconds."""
        late = max(0.0, late)
        self.buckets[next((n for n, bound in enumerate(STALL_SECONDS) if late <= bound), len(STALL_SECONDS))] += 1
        self.sum += late
        self._turn(now)
        self._max = max(self._max, late)

    def longest(self, now: float) -> float:
        """The longest in the last one to two minutes."""
        self._turn(now)
        return max(self._max, self._max_before)

    def _turn(self, now: float) -> None:
        minute = int(now // 60)
        if minute != self._minute:
            self._max_before = self._max if minute == self._minute + 1 else 0.0
            self._minute, self._max = minute, 0.0


Samples = Mapping[tuple[str, ...], float]
"""By values of a metric's labels, in the order of the list; `()` for a metric without labels."""


def exposition(values: Mapping[str, Samples], stalls: Stalls) -> bytes:
    """The text of `/metrics`. What has no value now is left out; values under one set of labels are added up."""
    families = [_family(measure, values.get(measure.name, {}), stalls) for measure in MEASURES]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families))
    return generate_latest(registry)


def _family(measure: Measure, samples: Samples, stalls: Stalls) -> Metric:
    if measure.kind == "histogram":
        bounds, n = [*map(str, STALL_SECONDS), "+Inf"], 0
        return HistogramMetricFamily(
            measure.name,
            measure.meaning,
            [(bound, n := n + here) for bound, here in zip(bounds, stalls.buckets, strict=True)],
            stalls.sum,
        )
    make = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    family = make(measure.name, measure.meaning, labels=list(measure.labels))
    for labels, value in _bounded(measure, samples).items():
        family.add_metric(labels, value)
    return family


def _bounded(measure: Measure, samples: Samples) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for given, value in samples.items():
        labels = tuple(
            value if name in CONFIGURED or value in known else OTHER
            for (name, known), value in zip(measure.labels.items(), given, strict=True)
        )
        found[labels] = found.get(labels, 0.0) + value
    return found


class _Given(Collector):
    """Values that are there already, as the library wants them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families
