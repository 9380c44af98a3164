"""Collecting: from the sender's socket through decoding and filtering into the journal, up to the committed cursor.

All candidates get the same bytes from `bench.sender`, a process of its own that does not count. The clock and the count
of processor time begin when it sends the first frame to a candidate that is connected and stands still, so that its
start does not count, and end when a reader from outside sees the cursor behind 95 % of the frames; the rest is there
to keep the candidate at work until then. What is received and not committed yet counts against the candidate. Every
journal is then compared with the truth about the frames.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

from bench import journals
from bench.part import Against, Ask, CannotRun, Fact, Figure, Measure, Part
from bench.processes import CIVICSKY, Child, Sender, folder, running, until
from bench.sender import PATH
from bench.tls import certificate
from bench.traffic import recording, truths
from bench.truth import Truth
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
OURS: Final = {"websockets": "civicsky", "picows": "civicsky with picows"}
SDK: Final = "the SDK's way"
ALONE: Final = {"websockets": "websockets alone", "picows": "picows alone"}
OVER_SDK: Final = 6.0
OVER_SDK_CPU: Final = 3.5
OVER_WEBSOCKETS: Final = {"websockets": 0.5, "picows": 0.55}


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
    began: float
    seconds: float
    cpu: float
    sender_cpu: float
    size: int = 0
    """Bytes received, where that was counted."""

    @property
    def rate(self) -> float:
        return self.frames / self.seconds

    @property
    def each_us(self) -> float:
        return self.cpu / self.frames * 1e6


Candidate = Callable[[Traffic, Path, Path | None], Took]
"""Measures one, in an empty folder; over TLS when there is a certificate."""


@contextmanager
def sending(traffic: Traffic, *options: str | Path, tls: Path | None = None) -> Iterator[Sender]:
    """A sender of these frames; over TLS with this certificate."""
    chosen: list[str | Path] = ["--tls", tls] if tls else []
    with running(Sender(traffic.recording, *chosen, *options)) as sender:
        yield sender


def started(
    sender: Sender, where: Path, client: str = "", command: Sequence[str | Path] = (CIVICSKY,), **settings: Any
) -> Child:
    """`civicsky collect`, or another command that takes the same flags, with the default client or this one."""
    flags: list[str | Path] = ["collect", "--data-dir", where, "--relay", sender.url]
    chosen = {"source__client": client} if client else {}
    return Child([*command, *flags], appview__recheck=False, **chosen, **settings)


def civicsky(traffic: Traffic, where: Path, tls: Path | None, client: str = "") -> Took:
    """The installed command; its journal is checked."""
    with sending(traffic, tls=tls) as sender, running(started(sender, where, client, trusted=tls)) as child:
        took = to_cursor(sender, child, traffic, where)
        child.finish()
    journals.check(where, traffic.truths)
    return took


def sdk(traffic: Traffic, where: Path, tls: Path | None) -> Took:
    """The SDK's way; see `sdk_collect`."""
    last, batch = str(journals.last_seq(traffic.truths)), str(Settings().worker.batch_frames)
    with sending(traffic, tls=tls) as sender:
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "bench.sdk_collect",
            sender.url,
            where,
            last,
            "--batch",
            batch,
        ]
        with running(Child(command, trusted=tls)) as child:
            return to_cursor(sender, child, traffic, where)


def bare(traffic: Traffic, _where: Path, tls: Path | None, client: str) -> Took:
    """Receiving alone; see `receive`."""
    frames = len(traffic.truths)
    with sending(traffic, tls=tls) as sender:
        command = [sys.executable, "-m", "bench.receive", client, sender.url + PATH, str(frames)]
        with running(Child(command, trusted=tls)) as child:
            sender.wait_for_reader()
            before, sender_before = child.settle(), sender.cpu()
            began = sender.send(frames)
            told = child.heard()
            cpu, sender_cpu = child.cpu() - before, sender.cpu() - sender_before
            return Took(frames, began, told["done"] - began, cpu, sender_cpu, told["bytes"])


def to_cursor(sender: Sender, child: Child, traffic: Traffic, where: Path) -> Took:
    """Send everything to a child that writes a journal, and measure up to `BEHIND`; all is committed in the end."""
    block, last = len(traffic.truths), journals.last_seq(traffic.truths)
    sender.wait_for_reader()
    before, sender_before = child.settle(), sender.cpu()
    with closing(journals.Cursor(where)) as cursor:
        began = sender.send(block)
        mark = traffic.truths[int(block * BEHIND)].seq
        until(lambda: cursor.read() >= mark, "the cursor was there", child, sender)
        ended, cpu, seen = monotonic(), child.cpu(), cursor.read()
        took = Took(
            journals.frames_up_to(seen, block), began, ended - began, cpu - before, sender.cpu() - sender_before
        )
        until(lambda: cursor.read() >= last, "the last frame was committed", child, sender)
    return took


def candidates() -> dict[str, Candidate | str]:
    """By name what is measured, or why it cannot be."""
    has_choice, has_picows = "client" in Source.model_fields, find_spec("picows") is not None
    ours: dict[str, Candidate | str] = {"civicsky": civicsky}
    if has_choice:
        ours = {OURS[client]: partial(civicsky, client=client) for client in CLIENTS}
    alone = {ALONE[client]: partial(bare, client=client) for client in CLIENTS}
    found: dict[str, Candidate | str] = {**ours, SDK: sdk, **alone}
    if not has_picows:
        found |= dict.fromkeys(found.keys() & {OURS["picows"], ALONE["picows"]}, "picows is not installed")
    return found


def rounds(ask: Ask) -> Iterator[Measure]:
    """All candidates in each round, over a plain connection and over TLS."""
    traffic = Traffic.of(ask.size(FRAMES, least=2000))
    yield Fact("frames", len(traffic.truths))
    yield Fact("posts made in them", sum(truth.new_posts for truth in traffic.truths))
    yield Fact("frames in a batch of the SDK's way", Settings().worker.batch_frames)
    able: dict[str, Candidate] = {}
    for name, one in candidates().items():
        if isinstance(one, str):
            yield CannotRun(f"{name}: {one}")
        else:
            able[name] = one
    for turn in range(ask.rounds):
        for how in ("", ", TLS"):
            ask.say(f"collect: round {turn + 1} of {ask.rounds}{how}")
            took, same = _round(able, traffic, with_tls=bool(how))
            yield from _figures(took, how)
            yield from _ratios(took, how)
            yield Fact("posts kept, the same by civicsky and by the SDK's way", same)


def _round(able: dict[str, Candidate], traffic: Traffic, *, with_tls: bool) -> tuple[dict[str, Took], int]:
    """What each took, and how many posts were compared."""
    took: dict[str, Took] = {}
    kept: dict[str, dict[journals.Key, journals.Post]] = {}
    for name, candidate in able.items():
        with folder() as where:
            took[name] = candidate(traffic, where, certificate(where) if with_tls else None)
            if name not in ALONE.values():
                kept[name] = journals.kept(where)
    theirs = kept.pop(SDK)
    return took, min(journals.check_same(ours, theirs, traffic.truths) for ours in kept.values())


def _figures(took: dict[str, Took], how: str) -> Iterator[Measure]:
    for name, one in took.items():
        yield Figure(f"{name}{how}", "frames/s", one.rate)
        yield Figure(f"{name}{how}, CPU", "us/frame", one.each_us, better="lower")
    ours = took[OURS["websockets"]]
    yield Figure(f"the sender{how}, CPU", "us/frame", ours.sender_cpu / ours.frames * 1e6, better="lower")


def _ratios(took: dict[str, Took], how: str) -> Iterator[Measure]:
    """Bars are meant for a plain connection: with TLS all share the cost of its ciphers."""
    theirs = took[SDK]
    for client, name in OURS.items():
        if (ours := took.get(name)) is None:
            continue
        bar = None if how else OVER_SDK
        yield Against(f"{name} over {SDK}{how}, frames/s", ours.rate / theirs.rate, bar)
        bar = None if how else OVER_SDK_CPU
        yield Against(f"{name} over {SDK}{how}, frames per CPU second", theirs.each_us / ours.each_us, bar)
        for other, alone in ALONE.items():
            if alone in took:
                bar = OVER_WEBSOCKETS[client] if other == "websockets" and not how else None
                yield Against(f"{name} over {alone}{how}, frames/s", ours.rate / took[alone].rate, bar)
