"""How long things wait: on the event loop while it catches up, and between the socket and the journal while it is live.

*Catching up*: the collecting half with a timer on its loop (see `watched`), while it takes in frames as fast as it can.
*Live*: the installed command; the sender paces its frames, and notes when each goes out. A reader from outside looks at
the committed cursor every 2 ms: a frame's wait ends when it first sees a cursor that covers it.
"""

import statistics
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Final

from bench import journals
from bench.collect import Traffic, sending, started, to_cursor
from bench.part import Ask, Fact, Figure, Measure, Part
from bench.processes import Child, Sender, folder, running, until

PART: Final = Part(
    "loop",
    "Waiting",
    "how late the event loop is while catching up, and a frame's way into the journal when live",
)
FRAMES: Final = 100_000
RATE: Final = 450.0
LIVE_FRAMES: Final = 9000
"""20 seconds."""
LOOK_SECONDS: Final = 0.002


def rounds(ask: Ask) -> Iterator[Measure]:
    """Catching up, then live, in each round."""
    frames, live = ask.size(FRAMES, least=2000), ask.size(LIVE_FRAMES, least=1000)
    busy, paced = Traffic.of(frames), Traffic.of(live)
    yield Fact("frames while catching up", frames)
    yield Fact("frames while live", live)
    yield Fact("frames a second while live", RATE)
    for turn in range(ask.rounds):
        ask.say(f"loop: round {turn + 1} of {ask.rounds}")
        late = catching_up(busy)
        yield Figure("loop while catching up, p50", "ms", percentile(late, 50), "lower")
        yield Figure("loop while catching up, p99", "ms", percentile(late, 99), "lower", bar=20)
        yield Figure("loop while catching up, longest stall", "ms", max(late), "lower")
        waits = live_waits(paced)
        yield Figure("from sent to committed while live, p50", "ms", percentile(waits, 50), "lower", bar=150)
        yield Figure("from sent to committed while live, p99", "ms", percentile(waits, 99), "lower", bar=500)
        yield Figure("from sent to committed while live, longest", "ms", max(waits), "lower")


def catching_up(traffic: Traffic) -> list[float]:
    """Milliseconds by which timers were late between the first frame and the last commit."""
    with folder() as where, sending(traffic) as sender:
        file = where / "late"
        with running(started(sender, where, command=[sys.executable, "-m", "bench.watched", file])) as child:
            took = to_cursor(sender, child, traffic, where)
            child.finish()
        journals.check(where, traffic.truths)
        return [late * 1000 for due, late in _pairs(file) if took.began <= due <= took.began + took.seconds]


def live_waits(traffic: Traffic, rate: float = RATE) -> list[float]:
    """Milliseconds from a frame's sending to the moment at which a reader sees it committed."""
    with folder() as where, sending(traffic, "--times", where / "times") as sender:
        with running(started(sender, where)) as child:
            sender.wait_for_reader()
            child.settle()
            with closing(journals.Cursor(where)) as cursor:
                sender.send(len(traffic.truths), rate)
                seen = _watched(child, sender, cursor, journals.last_seq(traffic.truths))
            sender.wait_sent()
            child.finish()
        journals.check(where, traffic.truths)
        return list(waits(_doubles(where / "times"), seen))


def _watched(child: Child, sender: Sender, cursor: journals.Cursor, last: int) -> list[tuple[float, int]]:
    """When which cursor was first seen, until it is the last."""
    seen = [(monotonic(), 0)]

    def look() -> bool:
        at = cursor.read()
        if at > seen[-1][1]:
            seen.append((monotonic(), at))
        return at >= last

    until(look, "the last frame was committed", child, sender, every=LOOK_SECONDS)
    return seen[1:]


def waits(sent: Sequence[float], seen: Sequence[tuple[float, int]]) -> Iterator[float]:
    """Milliseconds for each frame, given when each was sent, and when which cursor was first seen."""
    done = 0
    for moment, cursor in seen:
        upto = journals.frames_up_to(cursor, len(sent))
        for at in range(done, upto):
            yield (moment - sent[at]) * 1000
        done = upto


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _doubles(file: Path) -> "array[float]":
    found = array("d")
    found.frombytes(file.read_bytes())
    return found


def _pairs(file: Path) -> Iterator[tuple[float, float]]:
    flat = iter(_doubles(file))
    return zip(flat, flat, strict=True)
