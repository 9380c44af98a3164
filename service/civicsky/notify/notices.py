"""What a person is told: that something wants them, that it still does, that it is over. No clock, file or network.

A problem is told once when it begins to want a human, again after `notify.repeat_hours` while it lasts, and once when
it has been gone for `notify.well_seconds`. What comes back before that is the same problem. In an hour there are at
most `notify.per_hour` messages, beside the first of each problem; of what was left out one message tells afterwards.

All times are microseconds since 1970. The book goes to disk as plain values and comes back, so that a service that is
started again and again does not say the same again and again.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from civicsky.log import harmless
from civicsky.model import format_time
from civicsky.settings import Notify

Kind = Literal["problem", "still", "recovered", "note", "left_out", "test"]
"""problem: it wants a human. still: it has for long. recovered: it is over. note: it happened, and is over by nature.
left_out: of so many messages nobody was told. test: `civicsky notify`."""


class About(NamedTuple):
    """What is the same whenever a problem is told."""

    means: str
    look: tuple[str, ...]
    """The command to begin with, without `civicsky` and the data directory."""
    section: str
    """Of docs/operations.md."""


ABOUT: Final[dict[str, About]] = {
    "relay_down": About("no relay is connected: nothing is being collected", ("doctor",), "being-told"),
    "behind": About(
        "what is committed is old: it cannot keep up, or a relay replays for long", ("status",), "being-told"
    ),
    "disk_full": About("the journal's disk bound is reached: reading pauses, or posts are shed", ("status",), "disk"),
    "model_down": About("the model cannot be used; posts wait on disk", ("doctor",), "being-told"),
    "model_parked": About("the model refuses us: labelling stands still until a restart", ("doctor",), "being-told"),
    "store_down": About("the store cannot be reached; documents wait in the ledger", ("doctor",), "being-told"),
    "store_parked": About("the store refuses us: storing stands still until a restart", ("doctor",), "being-told"),
    "context_down": About("what stands around posts cannot be fetched; those posts wait", ("doctor",), "being-told"),
    "balance": About("what came in is not what was counted: a defect, please report it", ("status",), "balances"),
    "ended": About("the service ended by itself", ("doctor",), "troubleshooting"),
    "gap": About("frames of the stream were missed for good", ("coverage",), "coverage"),
    "left_out": About("more happened than is told in an hour", ("status",), "being-told"),
    "test": About("somebody ran `civicsky notify` to see whether this arrives", ("status",), "being-told"),
}
"""Everything that is told. The documentation's table is tested against this."""

_ELSE: Final = About("something is wrong", ("status",), "troubleshooting")
_HOUR: Final = 3_600_000_000
_SECOND: Final = 1_000_000
_MAX_LASTING: Final = 20


class Seen(NamedTuple):
    """Something that is wrong now."""

    name: str
    why: str
    since: int
    wanting: bool
    """Whether it has lasted for so long that it wants a human."""


class Notice(NamedTuple):
    """One message, before it is known who says it."""

    kind: Kind
    name: str
    why: str
    at: int
    since: int
    until: int | None = None
    """When it was over; None: it lasts, or nobody can say."""


class Who(NamedTuple):
    """Who says it: the same for all messages of a process."""

    name: str
    host: str
    data_dir: str
    role: str
    version: str
    config: str = ""
    """The settings file; empty when there is none."""


@dataclass
class Standing:
    """A problem that was told and is not over."""

    why: str
    since: int
    told_at: int
    gone_at: int | None = None
    """Since when it has not been seen, in this process; None: it is there."""


@dataclass
class Book:
    """What was told. Changed by what is seen; gives what is to be told now."""

    problems: dict[str, Standing] = field(default_factory=dict)
    sent: list[tuple[int, str]] = field(default_factory=list)
    """Time and problem of the messages of the last hour."""
    left_out: dict[str, int] = field(default_factory=dict)
    left_out_since: int = 0
    gaps: int | None = None
    """Gaps of the coverage that were told or are older than this book; None: nobody has looked yet."""

    def see(self, seen: Iterable[Seen], settings: Notify, now: int) -> list[Notice]:
        """All that is wrong now, each name once; what is not among it is not there."""
        found = {one.name: one for one in seen}
        notices = [notice for one in found.values() if (notice := self._met(one, settings, now))]
        for name in [name for name in self.problems if name not in found]:
            notices += self._missed(name, settings, now)
        return self._admitted(notices, settings, now)

    def meet(self, one: Seen, settings: Notify, now: int) -> list[Notice]:
        """One thing that is wrong, which says nothing of others."""
        notice = self._met(one, settings, now)
        return self._admitted([notice] if notice else [], settings, now)

    def note(self, name: str, why: str, settings: Notify, since: int, until: int | None, now: int) -> list[Notice]:
        """Something happened that does not last."""
        return self._admitted([Notice("note", name, why, now, since, until)], settings, now)

    def _met(self, one: Seen, settings: Notify, now: int) -> Notice | None:
        standing = self.problems.get(one.name)
        if standing is None:
            if not one.wanting:
                return None
            self.problems[one.name] = Standing(one.why, one.since, now)
            return Notice("problem", one.name, one.why, now, one.since)
        standing.gone_at, standing.why = None, one.why
        standing.told_at = min(standing.told_at, now)  # a clock that was put back delays nothing for long
        if settings.repeat_hours and now - standing.told_at >= settings.repeat_hours * _HOUR:
            standing.told_at = now
            return Notice("still", one.name, one.why, now, standing.since)
        return None

    def _missed(self, name: str, settings: Notify, now: int) -> list[Notice]:
        standing = self.problems[name]
        if standing.gone_at is None or standing.gone_at > now:
            standing.gone_at = now
        if now - standing.gone_at < settings.well_seconds * _SECOND:
            return []
        del self.problems[name]
        return [Notice("recovered", name, standing.why, now, standing.since, standing.gone_at)]

    def _admitted(self, notices: list[Notice], settings: Notify, now: int) -> list[Notice]:
        """Those that are within the bound of an hour; before them the one that tells of those that were not."""
        self.sent = [(at, name) for at, name in self.sent if now - _HOUR < at <= now]
        admitted: list[Notice] = []
        if self.left_out and not self.left_out_since <= now < self.left_out_since + _HOUR:
            admitted.append(Notice("left_out", "left_out", self._summary(), now, self.left_out_since))
            self.sent.append((now, "left_out"))
            self.left_out = {}
        for notice in notices:
            # The first of a problem always: one that comes and goes must not hide another.
            if len(self.sent) < settings.per_hour or notice.name not in {name for _, name in self.sent}:
                self.sent.append((now, notice.name))
                admitted.append(notice)
                continue
            self.left_out_since = self.left_out_since if self.left_out else now
            self.left_out[notice.name] = self.left_out.get(notice.name, 0) + 1
        return admitted

    def _summary(self) -> str:
        n = sum(self.left_out.values())
        of = ", ".join(f"{name} {count}" for name, count in sorted(self.left_out.items()))
        lasting = ", ".join(sorted(self.problems)[:_MAX_LASTING]) or "none"
        return f"{n} message{'s' * (n != 1)} left out ({of}); problems that last now: {lasting}"

    # ---- to disk and back ----

    def as_values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "problems": {name: [one.why, one.since, one.told_at] for name, one in self.problems.items()},
            "sent": [list(one) for one in self.sent],
            "left_out": self.left_out,
            "left_out_since": self.left_out_since,
            "gaps": self.gaps,
        }

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> "Book":
        """What `as_values` gave. Raises ValueError, TypeError, KeyError or AttributeError for anything else."""
        return cls(
            {
                str(name): Standing(str(why), int(since), int(told_at))
                for name, (why, since, told_at) in values["problems"].items()
            },
            [(int(at), str(name)) for at, name in values["sent"]],
            {str(name): int(n) for name, n in values["left_out"].items()},
            int(values["left_out_since"]),
            None if values["gaps"] is None else int(values["gaps"]),
        )


# ---- words ---------------------------------------------------------------------------------------------------------


def message(notice: Notice, who: Who, number: str) -> dict[str, Any]:
    """A notice with all that is told of it, as plain values: the body of the format `json`. Bounded, and harmless."""
    about = ABOUT.get(notice.name, _ELSE)
    told = {name: _quotable(value) for name, value in who._asdict().items()}
    config = ("--config", told["config"]) if told["config"] else ()
    seconds = None if notice.until is None else max(0, (notice.until - notice.since) // _SECOND)
    values = {
        "id": number,
        "kind": notice.kind,
        "problem": notice.name,
        "means": about.means,
        "why": _quotable(notice.why),
        "at": format_time(notice.at),
        "since": format_time(notice.since),
        "lasted_seconds": seconds,
        "look": shlex.join(("civicsky", *about.look, *config, "--data-dir", told["data_dir"])),
        "section": f"docs/operations.md#{about.section}",
        **told,
    }
    return {"text": _text(values), **values}


def _quotable(text: str) -> str:
    """A far side's words that stay within the quotes, which in chats also keep them from calling people."""
    return harmless(text).encode(errors="replace").decode().replace("`", "'")


def _text(values: Mapping[str, Any]) -> str:
    """For people: the first line says it all."""
    lasted = "" if values["lasted_seconds"] is None else f", lasted {_span(values['lasted_seconds'])}"
    lines = [f"{_headline(values, lasted)} [{values['name']}]"]
    over = values["kind"] == "recovered"
    if values["why"]:
        lines.append(f"{'it was' if over else 'why'}: `{values['why']}`")
    lines.append(f"what it {'meant' if over else 'means'}: {values['means']}")
    lines.append(f"look: `{values['look']}`; {values['section']}")
    lines.append(f"from: {values['role']} on {values['host']}, civicsky {values['version']}")
    return "\n".join(lines)


def _headline(values: Mapping[str, Any], lasted: str) -> str:
    name, since = values["problem"], values["since"]
    return {
        "problem": f"civicsky: {name} since {since}",
        "still": f"civicsky: still {name}, since {since}",
        "recovered": f"civicsky: {name} is over{lasted}",
        "note": f"civicsky: {name} at {since}{lasted}",
        "left_out": f"civicsky: messages left out since {since}",
        "test": "civicsky: this is a test",
    }[values["kind"]]


def _span(seconds: int) -> str:
    """A length of time for people."""
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
