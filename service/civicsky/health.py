"""What is wrong now, how long it has lasted, and whether that is beyond its bound. No network, no database.

`Metrics` has the facts, `settings.health` the bounds. This is the one place that judges them: what is told over HTTP,
to a service manager, in the log and to people rests on one `Look` a second. A quiet stream and a closed window are
never wrong. What has lasted beyond its bound makes the service unready.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, Literal, NamedTuple, get_args

from civicsky import log
from civicsky.metrics import Metrics
from civicsky.settings import Health as Bounds

Name = Literal["relay_down", "behind", "disk_full", "model_down", "store_down", "context_down"]

MEANINGS: Final[dict[Name, str]] = {
    "relay_down": "No relay is connected, though hours are open: nothing is being collected. One that connects again "
    "and again, and brings nothing new, counts as away.",
    "behind": "What is committed is old: frames wait here, or the relay replays what was missed.",
    "disk_full": "The journal's disk bound is reached: reading pauses, or posts are shed.",
    "model_down": "The model cannot be used; posts wait for a label on disk.",
    "store_down": "The store cannot be used; documents wait in the ledger.",
    "context_down": "What stands around posts cannot be fetched; those posts wait for a label on disk.",
}
"""Every condition. The documentation's table is tested against this."""

assert set(get_args(Name)) == set(MEANINGS)

LOOK_SECONDS: Final = 1.0
PACE_SECONDS: Final = 60.0
"""How often it is said how fast we come nearer; also the time over which that is reckoned."""
_PACE_LEAST: Final = 10.0
"""Seconds over which it is reckoned at least."""
_NEAR: Final = 0.5
"""Below this share of `behind_seconds` we are no longer behind: so one late frame is not a change each second."""
_FALLEN: Final = 0.9
"""A lag below this share of its highest is falling."""


class Condition(NamedTuple):
    """One thing that is wrong."""

    name: Name
    why: str
    """Words of ours and of the far side, bounded; not yet made harmless for a terminal or a page."""
    seconds: float
    """How long it has lasted; of `behind` how far behind we are."""
    bound: float
    """Seconds from which on it is `over`."""

    @property
    def over(self) -> bool:
        """Whether it is beyond its bound: then the service is unready."""
        return self.seconds >= self.bound


class Pace(NamedTuple):
    """How what was missed is made up for."""

    behind: float
    """Seconds behind the stream."""
    speed: float
    """Seconds of the stream in one of ours; above 1 while we come nearer."""

    @property
    def left(self) -> float:
        """Seconds until nothing is left, at this speed."""
        return self.behind / (self.speed - 1)

    def __str__(self) -> str:
        """For people: 31 h behind, 46x real time, done in 41 min."""
        return f"{_spell(self.behind)} behind, {self.speed:.3g}x real time, done in {_spell(self.left)}"


class Look(NamedTuple):
    """What one look saw, and what changed since the one before."""

    conditions: tuple[Condition, ...] = ()
    """In the order of `MEANINGS`, each name at most once."""
    quiet: bool = False
    """Connected, and nothing comes. Not wrong by itself."""
    began: tuple[Condition, ...] = ()
    ended: tuple[Condition, ...] = ()
    """As they were when they were last seen."""
    passed: tuple[Condition, ...] = ()
    """Those that went beyond their bound since the look before."""
    falling: bool = False
    """Behind, and less so than before; told once for each time that we are behind."""
    pace: Pace | None = None
    """How fast we are, while we come nearer and it can be told."""
    met: bool = True
    """Whether a relay was connected since the start, or none is needed now."""

    @property
    def over(self) -> tuple[Condition, ...]:
        """What has lasted beyond its bound: a human should know."""
        return tuple(one for one in self.conditions if one.over)

    @property
    def reasons(self) -> tuple[Condition, ...]:
        """Why it is unready. Whoever never had a relay is that from the beginning, which nobody need be told yet."""
        return tuple(one for one in self.conditions if one.over or (one.name == "relay_down" and not self.met))

    @property
    def ready(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


class Health:
    """Judges the facts of one running service; to be asked once a second or so.

    `collects` and `labels` say which halves run: what the other half needs is no concern of ours.
    """

    def __init__(self, bounds: Bounds, metrics: Metrics, *, collects: bool, labels: bool) -> None:
        self._bounds, self._metrics = bounds, metrics
        self._collects, self._labels = collects, labels
        self._since: dict[Name, float] = {}
        self._met = False
        self._relay = _Relay(bounds, metrics)
        self._heard = (-1, 0.0)
        self._behind = self._fell = False
        self._peak = self._lag_now = 0.0
        self._paced = _Paced()
        self.last = Look()
        """What the newest look saw."""

    async def watch(self, listeners: Sequence[Callable[[Look], None]]) -> None:
        """Look regularly, say in the log what changed, and let the listeners know of each look. Until cancelled."""
        pace_told_at = 0.0
        while True:
            before = self.last
            look = self.look(monotonic())
            _tell(before, look, self._metrics)
            if look.falling or (look.pace and monotonic() - pace_told_at >= PACE_SECONDS):
                pace_told_at = monotonic()
                _tell_pace(look)
            for listen in listeners:
                listen(look)
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> Look:
        """Judge the facts of this moment; `now` is in seconds by a clock that never jumps."""
        before = {one.name: one for one in self.last.conditions}
        quiet = self._is_quiet(now)
        conditions = tuple(self._conditions(now, quiet=quiet))
        present = {one.name for one in conditions}
        self.last = Look(
            conditions,
            quiet=quiet,
            began=tuple(one for one in conditions if one.name not in before),
            ended=tuple(one for name, one in before.items() if name not in present),
            passed=tuple(one for one in conditions if one.over and not (one.name in before and before[one.name].over)),
            falling=self._is_falling(),
            pace=self._paced.look(now, self._lag_now, behind=self._behind),
            met=self._met,
        )
        return self.last

    def _conditions(self, now: float, *, quiet: bool) -> list[Condition]:
        facts, bounds = self._metrics, self._bounds
        self._met |= facts.connected or not self._collects
        whys: dict[Name, tuple[str, float]] = {}
        gone_at = self._relay.gone_since(now) if self._collects else None
        if gone_at is not None:
            why = "relay: it connects, and brings nothing new" if facts.connected else "relay: not connected yet"
            whys["relay_down"] = (facts.relay_why or why, bounds.relay_seconds)
            self._since["relay_down"] = gone_at
        whys["disk_full"] = (facts.journal_why, bounds.disk_seconds)
        if self._labels:
            whys["model_down"] = (facts.model_why, bounds.model_seconds)
            whys["store_down"] = (facts.store_why, bounds.store_seconds)
            whys["context_down"] = (facts.context_why, bounds.model_seconds)
        self._since = {name: self._since.get(name, now) for name, (why, _) in whys.items() if why}
        found = {name: Condition(name, whys[name][0], now - at, whys[name][1]) for name, at in self._since.items()}
        lag = self._lag_now = self._lag(now, quiet=quiet)
        self._behind = lag >= bounds.behind_seconds * (_NEAR if self._behind else 1.0)
        self._peak = max(self._peak, lag) if self._behind else 0.0
        if self._behind:
            doubt = ", unless it is this machine's clock that is off" if facts.clock_doubts else ""
            found["behind"] = Condition("behind", f"{lag:,.0f} s behind the stream{doubt}", lag, bounds.lag_seconds)
        return [found[name] for name in MEANINGS if name in found]

    def _lag(self, now: float, *, quiet: bool) -> float:
        """How far behind we are, in seconds. It does not grow in silence: a quiet relay has no more to give."""
        facts = self._metrics
        if not self._collects or facts.window_why or (quiet and not facts.in_hand):
            return 0.0
        return facts.behind_seconds + (now - facts.moved_at if facts.in_hand else 0.0)

    def _is_falling(self) -> bool:
        if not self._behind:
            self._fell = False
            return False
        told, self._fell = self._fell, self._fell or self._metrics.behind_seconds < self._peak * _FALLEN
        return self._fell and not told

    def _is_quiet(self, now: float) -> bool:
        """Whether a connected relay has sent nothing for so long."""
        frames = self._metrics.counts["frames"]
        if frames != self._heard[0] or not self._metrics.connected or self._metrics.paused:
            self._heard = (frames, now)
        return now - self._heard[1] >= self._bounds.quiet_seconds


class _Paced:
    """How fast the lag goes down, over the last minute."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque()

    def look(self, now: float, lag: float, *, behind: bool) -> Pace | None:
        """Take note of the lag; None while it does not go down, or that cannot be told yet."""
        if not behind:
            self._marks.clear()
            return None
        self._marks.append((now, lag))
        while now - self._marks[0][0] > PACE_SECONDS:
            self._marks.popleft()
        then, before = self._marks[0]
        if now - then < _PACE_LEAST:
            return None
        speed = 1 + (before - lag) / (now - then)
        return Pace(lag, speed) if speed > 1 else None  # by the sum: a lag that is less by a hair adds nothing to it


class _Relay:
    """Since when no relay serves us. One that connects, brings nothing new and goes away again did not serve us."""

    def __init__(self, bounds: Bounds, metrics: Metrics) -> None:
        self._bounds, self._metrics = bounds, metrics
        self._gone_at: float | None = None
        self._back_at: float | None = None
        self._in_vain = False
        """Whether it was back since, and went away again."""
        self._news = 0

    def gone_since(self, now: float) -> float | None:
        """As above; None while one serves us, or none is needed. One that stays is only quiet."""
        facts, news = self._metrics, self._news
        self._news = facts.news
        stayed = self._back_at is not None and now - self._back_at >= self._bounds.quiet_seconds
        if facts.window_why or facts.news != news or stayed:
            self._gone_at, self._in_vain = None, False
        if facts.window_why:
            self._back_at = None
        elif facts.connected:
            self._back_at = now if self._back_at is None else self._back_at
            is_over = self._gone_at is not None and now - self._gone_at >= self._bounds.relay_seconds
            return self._gone_at if is_over and self._in_vain else None
        else:
            self._in_vain |= self._gone_at is not None and self._back_at is not None
            self._gone_at, self._back_at = now if self._gone_at is None else self._gone_at, None
        return self._gone_at


def _tell(before: Look, look: Look, metrics: Metrics) -> None:
    """One line a change. What source, label and store say of themselves is not said again."""
    if look.quiet != before.quiet and (look.quiet or metrics.connected):  # else `source_down` tells of the end
        log.event("source_quiet" if look.quiet else "source_heard", stage="source", host=metrics.host)
    lag = next((round(one.seconds) for one in look.conditions if one.name == "behind"), 0)
    if any(one.name == "behind" for one in look.began):
        log.event("behind", stage="source", seconds=lag)
    for one in look.passed:
        log.event("unready", name=one.name, why=one.why, seconds=round(one.seconds), bound=one.bound)
    if any(one.name == "behind" for one in look.ended):
        log.event("caught_up", stage="source")
    if before.over and not look.over:
        log.event("recovered")


def _tell_pace(look: Look) -> None:
    lag = next((round(one.seconds) for one in look.conditions if one.name == "behind"), 0)
    known = (
        {"speed": round(look.pace.speed, 1), "left_s": round(look.pace.left), "told": str(look.pace)}
        if look.pace
        else {}
    )
    log.event("catching_up", stage="source", seconds=lag, **known)


def _spell(seconds: float) -> str:
    """41 min, 31 h: two digits or more, in the largest unit that has them."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
