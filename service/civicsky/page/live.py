"""What is true of the running service this moment: rates, and the flow's stages with their states. Pure.

The stages have the words of docs/architecture.md. What a stage is in is one of `STATES`.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from civicsky import log
from civicsky.metrics import Metrics
from civicsky.settings import Settings

State = Literal["flowing", "idle", "behind", "paused", "down", "parked", "closed", "elsewhere"]
STATES: Final[dict[State, str]] = {
    "flowing": "Something passes.",
    "idle": "Nothing to do.",
    "behind": "More comes than passes, or what passes is old.",
    "paused": "It waits for room on the disk.",
    "down": "What it needs cannot be reached; it tries again by itself.",
    "parked": "It was refused, and waits for a restart.",
    "closed": "Outside of the hours in which the stream is held.",
    "elsewhere": "Not in this process.",
}
RATED: Final = ("frames", "posts", "kept", "labelled", "gated", "failed", "stored", "calls")
RATE_SECONDS: Final = 20.0
_WHY_CHARS: Final = 200


class Rates:
    """How fast counters rise, over the last `RATE_SECONDS`, by what was noted of them."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, dict[str, int]]] = deque()

    def note(self, now: float, counts: Mapping[str, int]) -> dict[str, float | None]:
        """Each counter's rate a second; None at first. `now` is in seconds by a clock that never jumps."""
        mine = {name: counts[name] for name in RATED}
        self._marks.append((now, mine))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_SECONDS:  # noqa: PLR2004  (two make a rate)
            self._marks.popleft()
        then, before = self._marks[0]
        if now <= then:
            return dict.fromkeys(RATED)
        return {name: round((n - before[name]) / (now - then), 2) for name, n in mine.items()}

    def clear(self) -> None:
        """Nobody looked for a while."""
        self._marks.clear()


class Stage(NamedTuple):
    """One stage of the flow."""

    name: str
    state: State
    figures: tuple[tuple[str, float | str | None, str], ...]
    """(what it is, the value, its unit): None: not known yet."""
    why: str = ""


def stages(
    metrics: Metrics, settings: Settings, rates: Mapping[str, float | None], readiness: Mapping[str, Any], halves: str
) -> list[Stage]:
    """The flow from the relay to the store."""
    wrong = {one["name"]: one["why"] for one in (*readiness["reasons"], *readiness["pending"])}
    found = [
        *_collecting(metrics, rates, wrong, is_quiet=bool(readiness["quiet"])),
        *_labelling(metrics, settings, rates),
    ]
    away = {"collect": _LABEL, "label": _COLLECT}.get(halves, frozenset())
    return [Stage(one.name, "elsewhere", ()) if one.name in away else one for one in found]


_COLLECT: Final = frozenset({"source", "decode", "worker", "journal"})
_LABEL: Final = frozenset({"ledger", "queue", "label", "store"})


def _collecting(
    metrics: Metrics, rates: Mapping[str, float | None], wrong: Mapping[str, str], *, is_quiet: bool
) -> list[Stage]:
    passing: State = "flowing" if rates["frames"] else "idle"
    source: State = passing
    why = ""
    if metrics.window_why:
        source, why = "closed", metrics.window_why
    elif not metrics.connected or "relay_down" in wrong:
        source, why = "down", wrong.get("relay_down", "") or metrics.relay_why or "not connected yet"
    elif is_quiet:
        source = "idle"
    journal: State = "paused" if metrics.paused else "behind" if "behind" in wrong else passing
    lag = None if metrics.lag_seconds is None else round(metrics.lag_seconds, 1)
    bad = sum(n for (_, outcome, _), n in metrics.outcomes.items() if outcome == "quarantined")
    return [
        Stage(
            "source", source, (("frames", rates["frames"], "/s"), ("since the start", metrics.counts["frames"], "")),
            _plain(why),
        ),
        Stage("decode", passing, (("posts seen", rates["posts"], "/s"), ("frames in hand", metrics.in_hand, ""))),
        Stage("worker", passing, (("kept", rates["kept"], "/s"), ("put aside", bad, ""))),
        Stage(
            "journal", journal, (("behind", lag, "s"), ("in use", metrics.journal_bytes, "bytes")),
            _plain(metrics.journal_why or wrong.get("behind", "")),
        ),
    ]  # fmt: skip


def _labelling(metrics: Metrics, settings: Settings, rates: Mapping[str, float | None]) -> list[Stage]:
    passes = rates["labelled"] or rates["gated"]
    label: State = "flowing" if passes else "behind" if metrics.waiting else "idle"
    label = "parked" if metrics.model_parked else "down" if metrics.model_why else label
    store: State = "flowing" if rates["stored"] else "behind" if metrics.unstored else "idle"
    store = "parked" if metrics.store_parked else "down" if metrics.store_why else store
    queue: State = "flowing" if passes else "idle" if not metrics.waiting else label
    ledger: State = "flowing" if passes else "idle"
    gated = (("kept back by the gate", metrics.counts["gated"], ""),) if settings.gate.file else ()
    kind = "MongoDB" if settings.store.mongo_uri.get_secret_value() else "SQLite"
    return [
        Stage("ledger", ledger, (("posts waiting", metrics.waiting, ""), ("failed", metrics.counts["failed"], ""))),
        Stage("queue", queue, (("read ahead", settings.queue.items, "at most"),), _plain(metrics.context_why)),
        Stage(
            "label", label,
            (
                ("labelled", rates["labelled"], "/s"), *gated, ("model", settings.label.model or "none", ""),
                *_workers(metrics),
            ),
            _plain(metrics.model_why),
        ),
        Stage(
            "store", store, ((f"to {kind}", rates["stored"], "/s"), ("documents waiting", metrics.unstored, "")),
            _plain(metrics.store_why),
        ),
    ]  # fmt: skip


def _workers(metrics: Metrics) -> list[tuple[str, float | str | None, str]]:
    """Of label workers on other machines, where there are any."""
    told = metrics.workers
    if not told.used:
        return []
    resting = sum(bool(one.why) for one in told.there)
    workers = f"{len(told.there)}, {resting} resting" if resting else len(told.there)
    return [("workers", workers, ""), ("in flight", told.in_flight, ""), ("waiting for a worker", told.queued, ""),
            ("redelivered", told.redelivered, "")]  # fmt: skip


def _plain(why: str) -> str:
    return log.harmless(why)[:_WHY_CHARS]


def rejected(metrics: Metrics) -> dict[str, int]:
    """By reason the posts that were not kept since the start."""
    return {why: n for (unit, outcome, why), n in metrics.outcomes.items() if (unit, outcome) == ("post", "rejected")}
