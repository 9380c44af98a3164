"""Writes docs/scale.md and its plots from what was measured, what is simulated, and the text in `bench/scale.md.in`."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from bench.scaling import needs, plots, queues
from bench.scaling.needs import Measured, Stage
from bench.shown import number, spread

TEXT: Final = Path(__file__).parent.parent / "scale.md.in"
NAME: Final = "scale.md"
SEED: Final = 20_261_127
ANSWERS: Final = 4_000
"""Of a simulated run."""
IN_FLIGHT: Final = (1, 4, 16, 64, 256)
LATENCIES: Final = (50, 200, 500)
"""Milliseconds, as measured."""
RUN: Final = "seconds a run, without start-up"
SURGE: Final = (19.0, 20.0, 10.0)
"""An hour of ten times the traffic, an hour behind the busiest."""


def write(docs: Path, parts: Measured) -> None:
    """Write the page and its plots into a folder. Raises `KeyError` when something was never measured."""
    lines, measured = ceilings(parts)
    plots.save(docs, "ceiling", plots.ceilings(lines, measured))
    plots.save(docs, "stages", plots.shares(stages(parts)))
    plots.save(docs, "surge", plots.backlogs(surge_curves()))
    (docs / NAME).write_text(render(TEXT.read_text(encoding="utf-8"), parts), encoding="utf-8")


def render(text: str, parts: Measured) -> str:
    """The page. Raises `KeyError` for a mark of another name, or a figure that was never measured."""
    blocks = {
        "ceiling": _ceiling(parts), "stages": _stages(parts), "slots": _slots(), "gpus": _gpus(),
        "posts": _posts(needs.TOKENS_OWN), "read": _posts(needs.TOKENS_IN), "surge": _surge(),
        "behind": _behind(parts), "waits": _waits(), "workers": _workers(parts), "disk": _disk(),
    }  # fmt: skip
    facts = _facts(parts)
    return re.sub(
        r"\{\{([^{}]*)\}\}", lambda mark: facts[mark[1]] if mark[1] in facts else "\n".join(blocks[mark[1]]), text
    )


def stages(parts: Measured) -> list[Stage]:
    """The one that breaks first stands first."""
    return needs.first_to_break(list(needs.stages(parts)))


def cost(parts: Measured) -> float:
    """Seconds of the home node's loop for an answer, at full speed."""
    return 1 / needs.median(parts, "label", "256 in flight, 0 ms")


Points = dict[str, list[tuple[float, float]]]


def ceilings(parts: Measured) -> tuple[Points, Points]:
    """(simulated, measured): answers a second by calls in flight, for each latency."""
    own = cost(parts)
    lines: Points = {
        f"{ms} ms": [
            (slots, queues.answers_a_second(slots, queues.always(ms / 1000), queues.always(own), ANSWERS))
            for slots in IN_FLIGHT
        ]
        for ms in LATENCIES
    }
    measured: Points = {
        f"{ms} ms": [
            (slots, needs.median(parts, "label", f"{slots} in flight, {ms} ms")) for slots in IN_FLIGHT
        ]
        for ms in LATENCIES
    }  # fmt: skip
    return lines, measured


def surge_curves() -> dict[str, list[float]]:
    """Posts that wait through a day with a surge, by number of L4 that label all English posts."""
    each = needs.labels_a_second(needs.GPUS[0], needs.TOKENS_OWN, needs.TOKENS_OUT)
    return {f"{n} x L4 ({number(n * each)} labels/s)": queues.waiting(_surge_day(), 60 * n * each) for n in (1, 2, 4)}


def _surge_day() -> list[float]:
    """And a day as all others behind it."""
    rng, mean, busiest = Random(SEED), needs.POSTS * needs.ENGLISH, needs.BUSIEST * needs.ENGLISH
    return [*queues.day(rng, mean, busiest, SURGE), *queues.day(rng, mean, busiest)]


def _facts(parts: Measured) -> dict[str, str]:
    found = stages(parts)
    full = {one.name: number(one.breaks_at) for one in found}
    return {
        "answers": number(needs.median(parts, "label", needs.ANSWERING)),
        "fastest": number(needs.median(parts, "label", "256 in flight, 0 ms")),
        "cost": number(1000 * cost(parts)),
        "english": number(needs.POSTS * needs.ENGLISH),
        "busiest": number(needs.BUSIEST * needs.ENGLISH),
        "times": number(needs.median(parts, "label", needs.ANSWERING) / (needs.BUSIEST * needs.ENGLISH)),
        "seconds": number(parts["label"]["facts"][RUN]),
        "machine": f"{parts['label']['machine']['processors']} processors ({parts['label']['machine']['processor']})",
        "missed": ", ".join(f"{0.1 * ms / parts['label']['facts'][RUN]:.0f} % at {ms} ms" for ms in LATENCIES),
        "cached": _from_to(needs.TOKENS_OWN),
        "uncached": _from_to(needs.TOKENS_IN),
        "first": found[0].name,
        "nats": _nats(parts),
        "at_ten": ", ".join(one.name for one in found if one.share(10) >= 1),
        "journal_at": full["the journal's bound"],
        "calls_at": full["calls in flight"],
        "run_at": full["`run`: both halves in one process"],
        "picows_at": full["collecting, picows"],
        "label_at": full["labelling, the home node's processor"],
        "network_at": full["network, from the relay"],
        "mongo_at": full["one MongoDB"],
        "replayed": number(needs.replayed(parts)),
    }


def _from_to(tokens_read: float) -> str:
    """The fewest and the most GPUs for all English posts, by their kind."""
    found = [
        needs.gpus(needs.BUSIEST * needs.ENGLISH, needs.labels_a_second(gpu, tokens_read, needs.TOKENS_OUT))
        for gpu in needs.GPUS
    ]
    return f"{min(found)} to {max(found)}"


def _ceiling(parts: Measured) -> Iterator[str]:
    lines, measured = ceilings(parts)
    yield "| calls in flight | " + " | ".join(f"{name}: measured | simulated" for name in lines) + " |"
    yield "|---|" + "---|---|" * len(lines)
    for at, slots in enumerate(IN_FLIGHT):
        cells = [f"{number(measured[name][at][1])} | {number(lines[name][at][1])}" for name in lines]
        yield f"| {slots} | " + " | ".join(cells) + " |"


def _workers(parts: Measured) -> Iterator[str]:
    """What was measured with workers, if it was."""
    part = parts.get("workers")
    if not part or not part["figures"]:
        yield "Not measured yet: `make bench ARGS='--only workers'`."
        return
    yield "| by way of | answers/s | of linear | spread | n | home node's processor, ms an answer |"
    yield "|---|---|---|---|---|---|"
    for what, one in part["figures"].items():
        if re.fullmatch(r"\d+ workers", what):
            linear = next(value for name, value in part["ratios"].items() if name.startswith(f"{what}:"))
            cpu = part["figures"][f"{what}: CPU of the home node a post"]
            name = "1 worker" if what == "1 workers" else what
            yield (
                f"| {name} | {number(one['median'])} | {number(linear['median'])} | {spread(linear)} | {linear['n']} "
                f"| {number(cpu['median'])} |"
            )
    if full := part["figures"].get(needs.FULL):
        own = part["figures"][f"{needs.FULL}: CPU of its worker a post"]["median"]
        yield (
            f"\nWith all calls that it can have in flight, {number(full['median'])} answers/s: home node, NATS, "
            f"workers and model shared those processors. A worker took {number(own)} ms of them for each, so one "
            f"worker can ask for some {number(1000 / own)} a second."
        )
    if idle := part["load"]["not_idle"]:
        yield f"\nThe machine was not idle: {idle}."


def _nats(parts: Measured) -> str:
    """Whether it carries a hundred times today's traffic."""
    most = needs.BUSIEST * needs.ENGLISH * needs.TIMES[-1]
    if (nats := needs.nats_cost(parts)) is not None:
        share = f"{100 * nats * most:.0f} % of a processor at 100 times"
        return f"For each label it took {number(1000 * nats)} ms (measured), so {share}."
    return f"That would be {10 * most:,.0f} messages a second at 100 times; what it takes for them is not measured yet."


def _slots() -> Iterator[str]:
    rates = [needs.BUSIEST * needs.ENGLISH * times for times in needs.TIMES]
    yield "| seconds a call | " + " | ".join(f"{number(rate)} labels/s" for rate in rates) + " |"
    yield "|---|" + "---|" * len(rates)
    for seconds in (0.2, 0.5, 1.0, 2.0, 5.0):
        found = [needs.in_flight(rate, seconds) for rate in rates]
        yield f"| {seconds:g} | " + " | ".join(map(_bounded, found)) + " |"


def _gpus() -> Iterator[str]:
    yield "| GPU | peak, TFLOP/s | memory, GB/s | labels/s, all tokens read | labels/s, with a prefix cache |"
    yield "|---|---|---|---|---|"
    for gpu in needs.GPUS:
        plain = needs.labels_a_second(gpu, needs.TOKENS_IN, needs.TOKENS_OUT)
        cached = needs.labels_a_second(gpu, needs.TOKENS_OWN, needs.TOKENS_OUT)
        yield (
            f"| {gpu.name} | {number(gpu.flops / 1e12)} | {number(gpu.bandwidth / 1e9)} | {number(plain)} "
            f"| {number(cached)} |"
        )


def _posts(tokens_read: float) -> Iterator[str]:
    """GPUs and calls in flight by what is to be labelled, when so many tokens of a question are read."""
    wanted = {"20,000 a day (the sample's default)": 20_000 / 86_400} | {
        ("all English posts" if times == 1 else f"all, {times} times today's traffic"): needs.BUSIEST
        * needs.ENGLISH
        * times
        for times in needs.TIMES
    }
    yield "| labels | labels/s | " + " | ".join(f"{gpu.name} | calls in flight" for gpu in needs.GPUS) + " |"
    yield "|---|---|" + "---|---|" * len(needs.GPUS)
    for name, rate in wanted.items():
        cells = []
        for gpu in needs.GPUS:
            many = needs.gpus(rate, needs.labels_a_second(gpu, tokens_read, needs.TOKENS_OUT))
            seconds = needs.call_seconds(gpu, tokens_read, needs.TOKENS_OUT, rate / many)
            cells.append(f"{many:,} | {_bounded(math.ceil(needs.in_flight(rate, seconds)))} of {number(seconds)} s")
        yield f"| {name} | {number(rate)} | " + " | ".join(cells) + " |"


def _bounded(calls: float) -> str:
    """Bold where one home node cannot have so many in flight."""
    return number(calls) if calls <= needs.SLOTS else f"**{number(calls)}**"


def _stages(parts: Measured) -> Iterator[str]:
    yield "| part | today, busiest hour | it can do | today | 10 times | 100 times | full at | |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in stages(parts):
        cells = [f"{100 * one.share(times):.2g} %" if one.share(times) < 1 else f"**{100 * one.share(times):,.0f} %**"
                 for times in needs.TIMES]  # fmt: skip
        yield (
            f"| {one.name} | {number(one.wanted)} {one.unit} | {number(one.capacity)} | {' | '.join(cells)} "
            f"| {number(one.breaks_at)} times | {one.whence} |"
        )


def _surge() -> Iterator[str]:
    yield "| | most that wait | longest wait, minutes | caught up |"
    yield "|---|---|---|---|"
    for name, left in surge_curves().items():
        a_minute = 60 * float(re.findall(r"\d+", name)[0]) * needs.labels_a_second(
            needs.GPUS[0], needs.TOKENS_OWN, needs.TOKENS_OUT
        )  # fmt: skip
        begin = int(SURGE[0] * 60)
        over = next((minute for minute in range(int(SURGE[1] * 60), len(left)) if not left[minute]), None)
        when = f"{(over - begin) / 60:.1f} hours after its beginning" if over else "not on the next day either"
        yield f"| {name} | {number(max(left))} | {number(max(left) / a_minute)} | {when} |"


def _behind(parts: Measured) -> Iterator[str]:
    capacity = needs.replayed(parts)
    yield "| stop of | " + " | ".join("today" if times == 1 else f"{times} times" for times in needs.TIMES) + " |"
    yield "|---|" + "---|" * len(needs.TIMES)
    for hours in (1, 24, 72):
        found = [needs.catch_up_hours(hours, needs.FRAMES * times, capacity) for times in needs.TIMES]
        yield f"| {hours} h | " + " | ".join(map(_hours, found)) + " |"


def _hours(hours: float) -> str:
    if math.isinf(hours):
        return "never"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _disk() -> Iterator[str]:
    """What ledger and store grow by, and how long a disk is enough."""
    yield "| labels | GB a day | 1 TB is full after |"
    yield "|---|---|---|"
    for times in needs.TIMES:
        traffic = "today" if times == 1 else f"{times} times today's traffic"
        for what, labels in (("20,000 a day", 20_000), ("all", None)):
            found = needs.bytes_a_day(labels, times)
            yield f"| {what}, {traffic} | {number(found / 1e9)} | {number(needs.DISK / found)} days |"


def _waits() -> Iterator[str]:
    """How long a post waits for a free slot, by how busy slots are."""
    yield "| slots | 50 % busy | 70 % | 90 % | 97 % |"
    yield "|---|---|---|---|---|"
    for slots in (4, 16, 64):
        found = [needs.waits_at_most(slots, busy) for busy in (0.5, 0.7, 0.9, 0.97)]
        yield f"| {slots} | " + " | ".join(f"{one:.1f} s" for one in found) + " |"
