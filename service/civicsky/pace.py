"""How often one server may be asked, and with how many tokens: what is set, and what its answers' headers say. Pure.

All times are Unix seconds of a clock that the caller passes in and that never goes back.
"""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Final, Literal

from civicsky.model import parse_time

Unit = Literal["requests", "tokens"]

MINUTE: Final = 60.0
DAY: Final = 86_400.0
BURST: Final = 1.0
"""Seconds' worth that may be caught up on at once, after a wait that was too long."""
LATE: Final = 0.75
"""Seconds that one request may take longer to the server than another: its minute is not quite ours."""
HELD: Final = 0.25
"""A request that waited elsewhere for longer, after its turn, is counted as of when it is sent; the rest of LATE is for
its way to the server."""
MAX_RESET: Final = DAY
"""No server is believed that it opens again only later than this many seconds from now."""
UNKNOWN_RESET: Final = 60.0
"""What is left is believed for so many seconds when the server does not say until when."""


@dataclass(slots=True, eq=False)
class Call:
    """One request that was begun: what it was counted as."""

    number: int
    at: float
    tokens: int
    """As estimated; once it has ended, as used."""
    ended: bool = False


class PerMinute:
    """At most `limit` in any 60 s, evenly spread (GCRA: one theoretical time of arrival), never a whole minute at once.

    Spacing alone keeps single requests below the limit: half-open windows of 60 s + LATE hold at most `limit` of them.
    Tokens come in lumps, so those of the last minute are counted besides. Memory: what was taken in a minute.
    """

    def __init__(self, limit: int, now: float) -> None:
        self._limit = limit
        self._each = (MINUTE + LATE + BURST) / limit
        # A former process may have taken its share until just now: at a start there is no burst, and one unit's wait.
        self._due = now + BURST + self._each
        self._taken: deque[tuple[Call, float]] = deque()
        self._counted: dict[Call, int] = {}
        self._sum = 0

    def delay(self, amount: int, now: float) -> float:
        """Seconds until so much may be taken. More than the limit counts as the limit, or it would wait for ever."""
        self._forget(now)
        wait = max(0.0, self._due - BURST - now)
        over = self._sum + min(amount, self._limit) - self._limit
        for call, at in self._taken:
            if over <= 0:
                break
            over -= self._counted[call]
            wait = max(wait, at + MINUTE + LATE - now)
        return wait

    def take(self, call: Call, amount: int, now: float) -> None:
        """Count it, from now on."""
        self._forget(now)
        amount = min(amount, self._limit)
        self._due = max(self._due, now) + amount * self._each
        self._taken.append((call, now))
        self._counted[call] = amount
        self._sum += amount

    def correct(self, call: Call, amount: int) -> None:
        """It was another amount, as it turned out."""
        before = self._counted.get(call)
        if before is None:  # it is more than a minute ago
            return
        self._counted[call] = amount
        self._sum += amount - before
        self._due += (amount - before) * self._each

    def give_back(self, call: Call, _amount: int) -> None:
        """It is not sent, or only later. Room that it had before others stays empty: to fill it now would be a lump."""
        if call in self._counted:
            amount = self._counted.pop(call)
            self._sum -= amount
            if self._taken[-1][0] is call:
                self._due -= amount * self._each
            self._taken.remove((call, call.at))

    def spacing(self, amount: int) -> float:
        """Seconds from one to the next when so much is taken each time."""
        return min(amount, self._limit) * self._each

    def _forget(self, now: float) -> None:
        while self._taken and self._taken[0][1] + MINUTE + LATE <= now:
            self._sum -= self._counted.pop(self._taken.popleft()[0])


class PerDay:
    """At most `limit` in a day of UTC."""

    def __init__(self, limit: int, used: int, now: float) -> None:
        self._limit, self._used, self._day = limit, used, now // DAY

    def delay(self, amount: int, now: float) -> float:
        """Seconds until so much may be taken: 0, or until midnight."""
        self._turn(now)
        if self._used == 0 or self._used + amount <= self._limit:
            return 0.0
        return (self._day + 1) * DAY - now

    def take(self, _call: Call, amount: int, now: float) -> None:
        """Count it, today."""
        self._turn(now)
        self._used += amount

    def correct(self, call: Call, amount: int) -> None:
        """It was another amount, as it turned out."""
        if call.at // DAY == self._day:
            self._used += amount - call.tokens

    def give_back(self, call: Call, amount: int) -> None:
        """It is not sent, or only later."""
        if call.at // DAY == self._day:
            self._used -= amount

    def _turn(self, now: float) -> None:
        if now // DAY != self._day:
            self._used, self._day = 0, now // DAY


@dataclass(slots=True)
class Told:
    """What a server said is left, whatever its limits are of: so much until a time, less what it cannot know of yet."""

    left: float | None = None
    """None: it said nothing, or what it said is over."""
    until: float = 0.0
    limit: float | None = None
    number: int = 0
    """The call that it answered so: what it says to an earlier call is older."""

    def delay(self, amount: int, now: float) -> float:
        """Seconds until so much may be taken."""
        if self.left is None or now >= self.until or self.left >= min(amount, self.limit or amount):
            return 0.0
        return self.until - now

    def renew(self, calls: int, in_flight: float, now: float) -> None:
        """The time is over: there is as much as the limit, if it is known, but for what is under way."""
        self.left = None if self.limit is None else self.limit - in_flight
        self.until, self.number = now + UNKNOWN_RESET, calls


@dataclass(slots=True)
class Pace:
    """One server's limits: those that are set, and what it tells."""

    limits: dict[Unit, list[PerMinute | PerDay]]
    told: dict[Unit, Told] = field(default_factory=lambda: {"requests": Told(), "tokens": Told()})
    _recent: deque[Call] = field(default_factory=deque)
    """Calls since the oldest that is under way, in the order in which they began."""
    _calls: int = 0

    def delay(self, tokens: int, now: float) -> float:
        """Seconds until a request of about so many tokens may be sent; 0: now."""
        waits = [0.0]
        for unit, amount in _amounts(tokens):
            told = self.told[unit]
            if told.left is not None and now >= told.until:
                told.renew(self._calls, sum(_counts(call, unit) for call in self._recent if not call.ended), now)
            waits.append(told.delay(amount, now))
            waits += [limit.delay(amount, now) for limit in self.limits[unit]]
        return max(waits)

    def spacing(self, tokens: int) -> float:
        """Seconds from one request of so many tokens to the next, in the long run; 0 without a limit a minute."""
        amounts = dict(_amounts(tokens))
        minutes = [(limit, amounts[unit]) for unit, own in self.limits.items() for limit in own]
        return max((limit.spacing(amount) for limit, amount in minutes if isinstance(limit, PerMinute)), default=0.0)

    def begin(self, tokens: int, now: float) -> Call:
        """A request of about so many tokens is sent now, since `delay` was 0."""
        self._calls += 1
        call = Call(self._calls, now, tokens)
        self._recent.append(call)
        for unit, amount in _amounts(tokens):
            told = self.told[unit]
            if told.left is not None:
                told.left -= amount
        self._take(call, now)
        return call

    def recount(self, call: Call, now: float) -> bool:
        """Whether a request that was begun, and waited elsewhere since, may be sent now; it counts as of now then."""
        if now - call.at <= HELD:
            return True
        if any(limit.delay(amount, now) > 0 for limit, amount in self._each(call)):
            return False
        for limit, amount in self._each(call):
            limit.give_back(call, amount)
        call.at = now
        self._take(call, now)
        return True

    def withdraw(self, call: Call) -> None:
        """It was not sent after all; `end` must follow."""
        for unit, amount in _amounts(call.tokens):
            told = self.told[unit]
            if told.left is not None:
                told.left += amount
        for limit, amount in self._each(call):
            limit.give_back(call, amount)

    def _take(self, call: Call, now: float) -> None:
        for limit, amount in self._each(call):
            limit.take(call, amount, now)

    def _each(self, call: Call) -> list[tuple[PerMinute | PerDay, int]]:
        """All limits that are set, and how much of each it counts as."""
        return [(limit, amount) for unit, amount in _amounts(call.tokens) for limit in self.limits[unit]]

    def end(self, call: Call, headers: Mapping[str, str], now: float, tokens: int | None = None) -> None:
        """It ended, with this answer's headers, after so many tokens (None: nobody knows, so the estimate stands)."""
        if tokens is not None:
            for limit in self.limits["tokens"]:
                limit.correct(call, tokens)
            told = self.told["tokens"]
            if told.left is not None:
                told.left -= tokens - call.tokens
            call.tokens = tokens
        call.ended = True
        self._learn(call, headers, now)
        while self._recent and self._recent[0].ended:
            self._recent.popleft()

    def _learn(self, call: Call, headers: Mapping[str, str], now: float) -> None:
        """Take over what the server says is left, less the calls that it may not have counted yet.

        Those are all under way, and those that began later, even if they have ended.
        """
        for unit in self.told:
            told, left = self.told[unit], _number(_header(headers, "remaining", unit))
            told.limit = _number(_header(headers, "limit", unit)) or told.limit
            if left is None or (told.left is not None and call.number < told.number):
                continue
            reset = seconds(_header(headers, "reset", unit), now)
            unseen = [other for other in self._recent if not other.ended or other.number > call.number]
            told.left = left - sum(_counts(other, unit) for other in unseen)
            told.until = now + (UNKNOWN_RESET if reset is None else min(reset, MAX_RESET))
            told.number = call.number


def pace(
    per_minute: Mapping[Unit, int | None],
    per_day: Mapping[Unit, int | None],
    used_today: Mapping[Unit, int],
    now: float,
) -> Pace:
    """The pace of one server by its limits (None: unlimited) and by what was used of the day before."""
    limits: dict[Unit, list[PerMinute | PerDay]] = {"requests": [], "tokens": []}
    for unit, own in limits.items():
        if minute := per_minute[unit]:
            own.append(PerMinute(minute, now))
        if day := per_day[unit]:
            own.append(PerDay(day, used_today[unit], now))
    return Pace(limits)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that a server asks us to wait; None when it does not say, or nothing that can be read."""
    return seconds(headers.get("retry-after", ""), now)


_SPAN: Final = re.compile(
    r"(?=\d)(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_PARTS: Final = (DAY, 3600.0, 60.0, 1.0, 0.001)
_PLAIN: Final = re.compile(r"\d{1,18}(?:\.\d{1,18})?")


def seconds(text: str, now: float) -> float | None:
    """A span or a time as seconds from now, never negative: 6m0s, 20ms, 2.5, a Unix time, an HTTP date, RFC 3339.

    None for anything else.
    """
    text = text.strip()[:64]
    if _PLAIN.fullmatch(text):
        value = float(text)
        if value >= 1e12:  # noqa: PLR2004  (milliseconds since 1970; as seconds this would be the year 33658)
            value /= 1000
        return max(0.0, value - now) if value >= 1e9 else value  # noqa: PLR2004  (since 1970; as a span: 31 years)
    if span := _SPAN.fullmatch(text):
        return sum(float(part) * size for part, size in zip(span.groups(), _PARTS, strict=True) if part)
    if (micros := parse_time(text)) is not None:
        return max(0.0, micros / 1e6 - now)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _amounts(tokens: int) -> tuple[tuple[Unit, int], tuple[Unit, int]]:
    return ("requests", 1), ("tokens", tokens)


def _counts(call: Call, unit: Unit) -> int:
    return 1 if unit == "requests" else call.tokens


def _header(headers: Mapping[str, str], what: str, unit: Unit) -> str:
    """One of a server's headers; those without a unit are of requests."""
    plain = headers.get(f"x-ratelimit-{what}", "") if unit == "requests" else ""
    return headers.get(f"x-ratelimit-{what}-{unit}", plain)


def _number(text: str) -> float | None:
    try:
        value = float(text[:32])
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None
