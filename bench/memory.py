"""Memory of all processes: at start, after a million frames and after ten, and when no model answers.

*Collecting*: `civicsky collect`. *No model*: `civicsky run` with a model's address at which nothing listens, so that
every kept post waits. Frames come as fast as they are taken; the sender goes through its recording again and again, and
each time makes new posts of it. Memory is read when a count of frames is committed and the processes stand still. RSS
counts what processes share in each of them, PSS once; the bars are on RSS.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from bench import journals
from bench.collect import Traffic, sending
from bench.part import Against, Ask, Fact, Figure, Measure, Part
from bench.processes import CIVICSKY, Child, Memory, Sender, folder, running, until
from bench.traffic import SPAN

PART: Final = Part(
    "memory", "Memory", "all processes, at start, after 1 M and after 10 M frames, and while no model answers"
)
FEW, MANY = 1_000_000, 10_000_000
GROWTH: Final = 1.10
LIMIT_MB: Final = 500


def rounds(ask: Ask) -> Iterator[Measure]:
    """One round: memory hardly differs between two, and ten million frames take minutes."""
    few, many = ask.size(FEW, least=2000), ask.size(MANY, least=20_000)
    traffic = Traffic.of(min(SPAN, few))
    yield Fact("frames, few", few)
    yield Fact("frames, many", many)
    ask.say(f"memory: collecting {many:,} frames")
    start, after_few, after_many = after(traffic, ["collect"], (0, few, many))
    yield Fact("processes, collecting", after_many.processes)
    yield from _figures("collecting", "at start", start)
    yield from _figures("collecting", "after few", after_few)
    yield from _figures("collecting", "after many", after_many)
    yield Against("RSS after many over few, collecting", after_many.rss / after_few.rss, GROWTH, at_least=False)
    ask.say(f"memory: {few:,} frames while no model answers")
    start, after_tenth, after_few = after(traffic, ["run", *nobody()], (0, few // 10, few))
    yield Fact("processes, no model", after_few.processes)
    yield from _figures("no model", "at start", start)
    yield from _figures("no model", "after a tenth of few", after_tenth)
    yield from _figures("no model", "after few", after_few)
    yield Against("RSS after few over a tenth, no model", after_few.rss / after_tenth.rss, None, at_least=False)


def after(traffic: Traffic, command: Sequence[str], counts: Sequence[int]) -> list[Memory]:
    """What the command's processes have after so many frames, in rising order."""
    found: list[Memory] = []
    with folder() as where, sending(traffic) as sender:
        full: list[str | Path] = [CIVICSKY, *command, "--data-dir", where, "--relay", sender.url]
        with running(Child(full, appview__recheck=False)) as child:
            sender.wait_for_reader()
            with closing(journals.Cursor(where)) as cursor:
                for count in counts:
                    if count:
                        _send(sender, child, cursor, count, journals.last_seq(traffic.truths, count))
                    child.settle()
                    found.append(child.memory())
            child.finish()
    return found


def _send(sender: Sender, child: Child, cursor: journals.Cursor, count: int, last: int) -> None:
    """Up to so many frames in all, until the last is committed."""
    sender.send(count)
    until(lambda: cursor.read() >= last, "the frames were committed", child, sender, every=0.1)
    sender.wait_sent()


def nobody() -> list[str]:
    """Flags for a model at an address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["--model-url", f"http://127.0.0.1:{port}/v1", "--model", "nobody"]


def _figures(what: str, when: str, memory: Memory) -> Iterator[Measure]:
    yield Figure(f"RSS {when}, {what}", "MB", memory.rss / 1e6, "lower", bar=LIMIT_MB)
    yield Figure(f"PSS {when}, {what}", "MB", memory.pss / 1e6, "lower")
