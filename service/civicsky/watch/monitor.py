"""What `/livez`, `/readyz` and `/metrics` say of the running service, put together from facts that others keep.

A probe or scrape reads memory, two numbers of the operating system and a few small files of `/proc`: no database, no
network, some milliseconds. However often it is asked, the metrics are put together once in `FRESH_SECONDS`.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final, get_args

from civicsky import __version__, filter as filters, log
from civicsky.health import Condition, Look
from civicsky.metrics import Metrics, Workers
from civicsky.model import BadReason, PostOutcome, RejectReason, format_time
from civicsky.settings import Settings
from civicsky.watch import scrape
from civicsky.watch.scrape import CONTENT_TYPE, ProcessKind, Samples, Stalls, exposition

FRESH_SECONDS: Final = 1.0
STALE_SECONDS: Final = 10.0
"""A look at the health that is older tells nothing; there should be one a second."""
TICK_SECONDS: Final = 0.1
_WHY_CHARS: Final = 300
_REASONS: Final[dict[str, tuple[str, ...]]] = {
    "rejected": get_args(RejectReason), "quarantined": get_args(BadReason),
}  # fmt: skip
_NO_POSTS: Final[Samples] = {
    (outcome, why): 0.0 for outcome in get_args(PostOutcome) for why in _REASONS.get(outcome, ("",))
}
"""What a counter is before it counts: one that only appears with its first event has not risen to Prometheus."""


class Monitor:
    """Of one running service. `stopping` says why it ends, once it does; `stuck` why its flow no longer moves."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        stopping: Callable[[], str],
        stuck: Callable[[], str],
    ) -> None:
        self._settings, self._metrics, self._stopping = settings, metrics, stopping
        self.stuck = stuck
        """For `/livez`, beside the fact that the loop turns or nobody would answer."""
        self._stalls = Stalls()
        self._look: Look | None = None
        self._looked_at = 0.0
        self._text, self._text_at = b"", -FRESH_SECONDS

    def heed(self, look: Look) -> None:
        """Keep the newest look at the health; from the first one on the service counts as started."""
        self._look, self._looked_at = look, monotonic()

    async def watch_loop(self) -> None:
        """Measure how late the event loop comes to its tasks, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(TICK_SECONDS)
            self._stalls.note(loop.time() - before - TICK_SECONDS, monotonic())

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether the service is ready, and what is to be said of it: each condition, over its bound or not yet."""
        look = self._look or Look()
        reasons = [*self._own_reasons(), *map(_reason, look.reasons)]
        return not reasons, {
            "ready": not reasons,
            "reasons": reasons,
            "pending": [_reason(one) for one in look.conditions if one not in look.reasons],
            "bounds": self._settings.health.model_dump(),
            "quiet": look.quiet,
            "window": log.harmless(self._metrics.window_why),
        }

    def _own_reasons(self) -> Iterator[dict[str, Any]]:
        if self._look is None:
            yield {"name": "starting", "why": "databases are opened and workers started"}
        elif (age := monotonic() - self._looked_at) > STALE_SECONDS:
            yield {"name": "unknown", "why": f"nobody has looked at the health for {age:.0f} s"}
        if why := self._stopping():
            yield {"name": "stopping", "why": log.harmless(why)}

    def exposition(self) -> tuple[bytes, str]:
        """The metrics' text, and its content type."""
        if monotonic() - self._text_at >= FRESH_SECONDS:
            self._text, self._text_at = exposition(self._values(), self._stalls), monotonic()
        return self._text, CONTENT_TYPE

    def _values(self) -> dict[str, Samples]:
        metrics, settings = self._metrics, self._settings
        found: dict[str, Samples] = {
            "civicsky_build_info": {(__version__, filters.VERSION): 1.0},
            "civicsky_start_time_seconds": one(metrics.started_at / 1e6),
            "civicsky_lag_seconds": one(metrics.lag_seconds),
            "civicsky_behind_seconds": one(metrics.behind_seconds),
            "civicsky_journal_bytes": one(metrics.journal_bytes),
            "civicsky_journal_max_bytes": one(settings.journal.max_bytes),
            "civicsky_disk_free_bytes": one(_free(settings.data_dir)),
            "civicsky_waiting_labels": one(metrics.waiting),
            "civicsky_waiting_documents": one(metrics.unstored),
            "civicsky_loop_stall_max_seconds": one(self._stalls.longest(monotonic())),
            **self._health_values(),
            **self._counts(),
        }
        sizes = resident()
        found["civicsky_resident_bytes"] = {(kind,): float(sum(of)) for kind, of in sizes.items()}
        found["civicsky_processes"] = {(kind,): float(len(of)) for kind, of in sizes.items()}
        return found

    def _health_values(self) -> dict[str, Samples]:
        metrics, look = self._metrics, self._look or Look()
        present = {one.name: one for one in look.conditions}
        names = scrape.BY_NAME["civicsky_condition"].labels["name"]
        return {
            "civicsky_ready": one(self.readiness()[0]),
            "civicsky_condition": {(name,): float(name in present) for name in names},
            "civicsky_condition_over": {(name,): float(name in present and present[name].over) for name in names},
            "civicsky_condition_seconds": {
                (name,): present[name].seconds if name in present else 0.0 for name in names
            },
            "civicsky_parked": {
                ("label",): float(bool(metrics.model_parked)),
                ("store",): float(bool(metrics.store_parked)),
            },
            "civicsky_connected": one(metrics.connected),
            "civicsky_quiet": one(look.quiet),
            "civicsky_window_closed": one(bool(metrics.window_why)),
        }

    def _counts(self) -> dict[str, Samples]:
        metrics, label = self._metrics, self._settings.label
        counts = metrics.counts
        frames, posts = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
        for (unit, outcome, reason), n in metrics.outcomes.items():
            if unit == "frame":
                frames[outcome,] += n  # their reasons are names that a relay chooses
            else:
                posts[outcome, reason] += n
        tasks = {task for task, _ in metrics.labels}
        return {
            "civicsky_connections_total": one(counts["connections"]),
            "civicsky_connect_failures_total": one(counts["connect_failures"]),
            "civicsky_frames_received_total": one(counts["frames"]),
            "civicsky_frames_total": _with_zeros("civicsky_frames_total", frames),
            "civicsky_posts_total": {**_NO_POSTS, **posts},
            "civicsky_gaps_total": _with_zeros("civicsky_gaps_total", {(why,): n for why, n in metrics.gaps.items()}),
            "civicsky_labels_total": {(task,): float(metrics.labels[task, "labelled"]) for task in tasks},
            "civicsky_labels_gated_total": {(task,): float(metrics.labels[task, "gated"]) for task in tasks},
            "civicsky_labels_failed_total": {(task,): float(metrics.labels[task, "failed"]) for task in tasks},
            "civicsky_model_calls_total": one(counts["calls"]),
            **_workers(metrics.workers),
            "civicsky_tokens_total": {("in",): float(counts["tokens_in"]), ("out",): float(counts["tokens_out"])},
            "civicsky_cost_total": {(label.model, label.currency): metrics.cost} if label.model else {},
            "civicsky_documents_total": {
                ("written",): float(counts["stored"]),
                **{(outcome,): float(counts[outcome]) for outcome in ("stale", "duplicate", "refused")},
            },
        }


def _workers(workers: Workers) -> dict[str, Samples]:
    """Nothing where the model is asked from here."""
    if not workers.used:
        return {}
    return {
        "civicsky_workers": one(len(workers.there)),
        "civicsky_workers_queued": one(workers.queued),
        "civicsky_workers_in_flight": one(workers.in_flight),
        "civicsky_workers_results_total": one(workers.results),
        "civicsky_workers_redelivered_total": one(workers.redelivered),
        "civicsky_workers_lost_total": one(workers.dispatched_again),
    }


def one(value: float | None) -> Samples:
    """A metric without labels; without a value there is none now."""
    return {} if value is None else {(): float(value)}


def _with_zeros(name: str, samples: Mapping[tuple[str, ...], float]) -> Samples:
    """The same of a counter with one label."""
    (values,) = scrape.BY_NAME[name].labels.values()
    return {(value,): 0.0 for value in values} | dict(samples)


def _reason(condition: Condition) -> dict[str, Any]:
    since = datetime.now(UTC).timestamp() - condition.seconds
    return {
        "name": condition.name,
        "why": log.harmless(condition.why)[:_WHY_CHARS],
        "since": format_time(int(since * 1e6)),
        "seconds": int(condition.seconds * 10) / 10,  # rounded up it would seem to be at its bound
        "bound": condition.bound,
    }


def _free(folder: Path) -> float | None:
    with suppress(OSError):
        disk = os.statvfs(folder)
        return float(disk.f_bavail * disk.f_frsize)
    return None


def resident() -> dict[ProcessKind, list[int]]:
    """Memory (RSS, bytes) of this process and of each of its children, by kind."""
    found: dict[ProcessKind, list[int]] = {"main": [_rss(os.getpid())], "worker": [], "model": [], "other": []}
    for pid in _children(os.getpid()):
        found[_kind(pid)].append(_rss(pid))
    return found


def _children(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended; or the kernel has no such file
            yield from map(int, (thread / "children").read_text(encoding="ascii").split())


def _kind(pid: int) -> ProcessKind:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return "model" if b"civicsky.local" in words else "worker" if b"anyio.to_process" in words else "other"
    return "other"


def _rss(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
