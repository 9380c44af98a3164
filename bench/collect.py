"""Collecting: from the sender's socket through decoding and filtering into the journal, up to the committed cursor.

All candidates get the same bytes from `bench.sender`, a process of its own that does not count. The clock and the count of
processor time begin when it sends the first frame to a candidate that is connected and stands still, so that its start
does not count, and end when a reader from outside sees the cursor behind 95 % of the frames; the rest is there to keep
the candidate at work until then. What is received and not committed yet counts against the candidate. Every journal is
then compared with the truth about the frames.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import sys

from bench import journals
from bench.part import Against, Ask, CannotRun, Fact, Figure, Measure, Part
from bench.processes import CIVICSKY, Child, Sender, folder, running, until
from bench.traffic import Truth, recording, truths
from bench.sender import PATH
from civicsky.settings import Settings, Source

PART: Final = Part(
    "collect",
    "Collecting",
    "civicsky from socket to committed cursor, against the SDK's client with the same filter and tables, and against "
    "receiving alone",
)
FRAMES: Final = 100_000
BEHIND: Final = 0.95
"""Share of the frames up to which is measured."""
CLIENTS: Final = ("websockets", "picows")
OVER_SDK, OVER_SDK_CPU = 6.0, 3.5
OVER_BARE: Final = {"websockets": 0.5, "picows": 0.55}


class Traffic(NamedTuple):
    """What is sent."""

    recording: Path
    truths: list[Truth]

    @classmethod
    def of(cls, frames: int) -> "Traffic":
        made = recording(frames)
        return cls(made, truths(made))


@dataclass(frozen=True)
class Took:
    """One run of one candidate."""

    frames: int
    seconds: float
    cpu: float
    sender_cpu: float

    @property
    def rate(self) -> float:
        return self.frames / self.seconds

    @property
    def each_us(self) -> float:
        return self.cpu / self.frames * 1e6


Candidate = Callable[[Traffic, Path, bool], Took]
"""Measures one; the folder is empty but for the certificate, the last says whether TLS is wanted."""


@contextmanager
def sending(traffic: Traffic, where: Path, tls: bool, *options: str | Path) -> Iterator[Sender]:
    """A sender of these frames, over TLS if it is wanted."""
    with running(Sender(traffic.recording, *(["--tls", where / "tls.pem"] if tls else []), *options)) as sender:
        yield sender


def civicsky(
    traffic: Traffic, where: Path, tls: bool, client: str = "websockets", command: list[str | Path] | None = None
) -> Took:
    """The installed command, or another one that takes the same flags; its journal is checked."""
    with sending(traffic, where, tls) as sender:
        flags = ["collect", "--data-dir", where, "--relay", sender.url]
        chosen = {"source__client": client} if "client" in Source.model_fields else {}
        child = Child([*(command or [CIVICSKY]), *flags], trusted=where / "tls.pem", appview__recheck=False, **chosen)
        with running(child):
            took = to_cursor(sender, child, traffic, where)
            child.finish()
    journals.check(where, traffic.truths)
    return took


def sdk(traffic: Traffic, where: Path, tls: bool) -> Took:
    """The SDK's way; see `sdk_collect`."""
    last, batch = str(journals.last_seq(traffic.truths)), str(Settings().worker.batch_frames)
    with sending(traffic, where, tls) as sender:
        command = [sys.executable, "-m", "bench.sdk_collect", sender.url, where, last, "--batch", batch]
        with running(Child(command, trusted=where / "tls.pem")) as child:
            return to_cursor(sender, child, traffic, where)


def bare(traffic: Traffic, where: Path, tls: bool, client: str) -> Took:
    """Receiving alone; see `receive`."""
    frames = len(traffic.truths)
    with sending(traffic, where, tls) as sender:
        command = [sys.executable, "-m", "bench.receive", client, sender.url + PATH, str(frames)]
        with running(Child(command, trusted=where / "tls.pem")) as child:
            sender.wait_for_reader()
            before, sender_before = child.settle(), sender.cpu()
            began = sender.send(frames)
            done = child.heard()["done"]
            return Took(frames, done - began, child.cpu() - before, sender.cpu() - sender_before)


def to_cursor(sender: Sender, child: Child, traffic: Traffic, where: Path) -> Took:
    """Send everything to a child that writes a journal, and measure up to `BEHIND`; all is committed in the end."""
    block, last = len(traffic.truths), journals.last_seq(traffic.truths)
    sender.wait_for_reader()
    before, sender_before = child.settle(), sender.cpu()
    with closing(journals.Cursor(where)) as cursor:
        began = sender.send(block)
        mark = traffic.truths[int(block * BEHIND)].seq
        until(lambda: cursor.read() >= mark, child, "the cursor to get there")
        ended, cpu, seen = monotonic(), child.cpu(), cursor.read()
        took = Took(
            journals.frames_up_to(seen, block), ended - began, cpu - before, sender.cpu() - sender_before
        )
        until(lambda: cursor.read() >= last, child, "the last frame to be committed")
    return took


def candidates() -> dict[str, Candidate | str]:
    """By name what is measured, or why it cannot be."""
    has_choice, has_picows = "client" in Source.model_fields, find_spec("picows") is not None
    missing = "picows is not installed"
    return {
        "civicsky": partial(civicsky, client="websockets"),
        **({"civicsky with picows": partial(civicsky, client="picows") if has_picows else missing} if has_choice else {}),
        "the SDK's way": sdk,
        "websockets alone": partial(bare, client="websockets"),
        "picows alone": partial(bare, client="picows") if has_picows else missing,
    }


def rounds(ask: Ask) -> Iterator[Measure]:
    """All candidates in each round, over a plain connection and over TLS."""
    frames = ask.size(FRAMES, least=2000)
    traffic = Traffic.of(frames)
    yield Fact("frames", frames)
    yield Fact("posts made in them", sum(truth.new_posts for truth in traffic.truths))
    yield Fact("batch of the SDK's way, frames", Settings().worker.batch_frames)
    able = {name: one for name, one in candidates().items() if not isinstance(one, str)}
    for name, why in candidates().items():
        if isinstance(why, str):
            yield CannotRun(f"{name}: {why}")
    for turn in range(ask.rounds):
        for tls in (False, True):
            ask.say(f"collect: round {turn + 1} of {ask.rounds}, {'TLS' if tls else 'plain'}")
            took, same = _round(able, traffic, tls)
            yield from _told(took, ", TLS" if tls else "")
            yield Fact("posts kept, the same by civicsky and the SDK's way", same)


def _round(able: dict[str, Candidate], traffic: Traffic, tls: bool) -> tuple[dict[str, Took], int]:
    """What each took, and how many posts were compared."""
    took: dict[str, Took] = {}
    kept: dict[str, dict[journals.Key, journals.Post]] = {}
    for name, candidate in able.items():
        with folder() as where:
            took[name] = candidate(traffic, where, tls)
            if (where / "journal.db").exists():
                kept[name] = journals.kept(where)
    theirs = kept.pop("the SDK's way")
    return took, min(journals.check_same(ours, theirs, traffic.truths) for ours in kept.values())


def _told(took: dict[str, Took], how: str) -> Iterator[Measure]:
    for name, one in took.items():
        yield Figure(f"{name}{how}", "frames/s", one.rate)
        yield Figure(f"{name}{how}, CPU", "us/frame", one.each_us, better="lower")
    yield Figure(f"the sender itself{how}, CPU", "us/frame", took["civicsky"].sender_cpu / took["civicsky"].frames * 1e6, better="lower")
    theirs = took["the SDK's way"]
    for client, name in (("websockets", "civicsky"), ("picows", "civicsky with picows")):
        if name not in took:
            continue
        ours, counts = took[name], not how
        yield Against(f"{name} over the SDK's way{how}, frames/s", ours.rate / theirs.rate, OVER_SDK if counts else None)
        yield Against(
            f"{name} over the SDK's way{how}, frames per CPU second", theirs.each_us / ours.each_us, OVER_SDK_CPU if counts else None
        )
        for alone in CLIENTS:
            if f"{alone} alone" in took:
                bar = OVER_BARE[client] if counts and alone == "websockets" else None
                yield Against(f"{name} over {alone} alone{how}, frames/s", ours.rate / took[f"{alone} alone"].rate, bar)
