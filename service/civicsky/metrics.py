"""Counters and gauges of the running process, by stage. Plain numbers in one place; no network, no database."""

from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

from civicsky.model import now_us
from civicsky.pulse import Pulse


class WorkerSeen(NamedTuple):
    """A label worker on another machine, as it last said."""

    name: str
    version: str
    """Of civicsky."""
    server: str
    """Its model's server."""
    slots: int
    in_flight: int
    done: int
    """Calls since it began."""
    why: str
    """Why it takes nothing; empty while it does."""


@dataclass
class Workers:
    """Label workers on other machines, and what is asked by way of them. Counts begin with the process."""

    used: bool = False
    """Whether the model is asked that way at all."""
    why: str = ""
    """Why NATS cannot be reached; empty when it can."""
    there: tuple[WorkerSeen, ...] = ()
    queued: int = 0
    """Questions that no worker has taken yet."""
    in_flight: int = 0
    """Questions that a worker has taken."""
    handed_out: int = 0
    """Jobs that NATS says workers hold."""
    dispatched: int = 0
    claimed: int = 0
    """Calls that workers were let make."""
    results: int = 0
    late: int = 0
    """Results that nobody waited for any more."""
    redelivered: int = 0
    """Calls for a job that a worker took before and was silent about."""
    dispatched_again: int = 0
    """Jobs that NATS lost."""


@dataclass
class Metrics:
    """What the minute line, the progress display and the summary read. Counts begin with the process."""

    started_at: int = field(default_factory=now_us)
    counts: Counter[str] = field(default_factory=Counter)
    """frames (arrived), posts (new ones seen), kept, labelled, failed, gated, stored, connections, connect_failures;
    and what the model was asked, whether its answers were of use or not: calls, tokens_in, tokens_out."""
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By (unit, outcome, reason) what was committed; the units are those of `Committed.counts`."""
    gaps: Counter[str] = field(default_factory=Counter)
    """By `GapCause` the gaps that were recorded."""
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (task, `labelled` | `failed` | `gated`)."""
    cost: float = 0.0
    """What the calls cost, in `label.currency`; 0 for a model without a price."""
    host: str = ""
    connected: bool = False
    news: int = 0
    """Frames that were new: only they prove that a relay serves us."""
    relay_why: str = ""
    """Why the relay is not there; empty when it is."""
    window_why: str = ""
    """Until when `source.window` is closed; empty while it is open, and without one. Nothing is wrong then."""
    model_why: str = ""
    """Why the model cannot be used now; empty when it can."""
    store_why: str = ""
    """Why the store cannot be used now; empty when it can."""
    model_parked: str = ""
    """Why the model refuses us, which ends only with a restart; empty when it does not."""
    store_parked: str = ""
    """The same of the store."""
    journal_why: str = ""
    """What the disk's bound makes us do; empty while there is room."""
    paused: bool = False
    """Whether that is to stop reading."""
    appview_why: str = ""
    """Why posts cannot be looked up again; empty when they can."""
    context_why: str = ""
    """Why what stands around posts cannot be fetched; empty when it can."""
    authors_why: str = ""
    """Why authors cannot be looked up; empty when they can."""
    clock_doubts: set[str] = field(default_factory=set)
    """What says that this machine's clock is off: `handshake`, `event`; see `clock.py`. Nothing rests on it."""
    waiting: int = 0
    """Posts on disk or in the queue that have no label yet."""
    unstored: int = 0
    """Documents in the ledger of which the store knows an older version, or nothing."""
    journal_bytes: int = 0
    """Bytes of the journal in use, as of its last commit or pruning."""
    event_at: int | None = None
    """Time of the last frame that was committed."""
    behind_seconds: float = 0.0
    """How old the last committed frame was when it was committed. Unlike `lag_seconds` it does not grow in silence."""
    in_hand: int = 0
    """Frames that were taken in and are not committed yet."""
    moved_at: float = 0.0
    """When frames were last committed, or the first was taken in hand: by `time.monotonic`."""
    workers: Workers = field(default_factory=Workers)
    pulse: Pulse = field(default_factory=Pulse)
    """Whether the flow moves."""
    _began: float = field(default_factory=monotonic)
    _marks: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, name: str, n: int = 1) -> None:
        """Count."""
        self.counts[name] += n

    def take(self, frames: int = 1) -> None:
        """So many frames were taken in."""
        if not frames:
            return
        self.add("frames", frames)
        if not self.in_hand:
            self.moved_at = monotonic()
        self.in_hand += frames
        self.pulse.frames.take(frames)

    def settle(self, frames: int, event_at: int | None = None) -> None:
        """So many frames are committed, or dropped on purpose; `event_at` is the newest time in them, if any."""
        self.in_hand -= frames
        self.pulse.frames.give(frames)
        self.moved_at = monotonic()
        if event_at is not None:
            self.behind_seconds = max(0.0, (now_us() - event_at) / 1e6)

    @property
    def lag_seconds(self) -> float | None:
        """How far the last committed frame lies behind the present; None before the first."""
        return None if self.event_at is None else max(0.0, (now_us() - self.event_at) / 1e6)

    def health(self) -> tuple[str, str]:
        """(`ok` | `degraded` | `bad`, why). bad: nothing is being collected. degraded: something waits on disk.

        With `ok`, `why` says until when the window is closed, if it is: then nothing need be collected.
        """
        if self.relay_why:
            return "bad", self.relay_why
        if self.paused:
            return "bad", self.journal_why
        why = self.journal_why or self.model_why or self.store_why or self.context_why
        return ("degraded", why) if why else ("ok", self.window_why)

    def rate(self, reader: str, name: str) -> float:
        """Per second since the same reader last asked for this count."""
        now, n = monotonic(), self.counts[name]
        then, before = self._marks.get(reader + name, (self._began, 0))
        self._marks[reader + name] = (now, n)
        return (n - before) / (now - then) if now > then else 0.0
