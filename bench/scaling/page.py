"""Writes docs/scale.md and its plots from what was measured, what is simulated, and the text in `bench/scale.md.in`."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from bench.scaling import needs, plots, queues
from bench.scaling.needs import Measured, Stage
from bench.shown import number

TEXT: Final = Path(__file__).parent.parent / "scale.md.in"
NAME: Final = "scale.md"
SEED: Final = 20_261_127
ANSWERS: Final = 4_000
"""Of a simulated run."""
IN_FLIGHT: Final = (1, 4, 16, 64, 256)
LATENCIES: Final = (50, 200, 500)
"""Milliseconds, as measured."""
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
        "posts": _posts(), "surge": _surge(), "behind": _behind(parts), "waits": _waits(), "workers": _workers(parts),
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
    return queues.day(Random(SEED), needs.POSTS * needs.ENGLISH, needs.BUSIEST * needs.ENGLISH, SURGE)


def _facts(parts: Measured) -> dict[str, str]:
    first = stages(parts)[0]
    return {
        "answers": number(needs.median(parts, "label", "256 in flight, 0 ms")),
        "cost": number(1000 * cost(parts)),
        "english": number(needs.POSTS * needs.ENGLISH),
        "busiest": number(needs.BUSIEST * needs.ENGLISH),
        "times": number(needs.median(parts, "label", "256 in flight, 0 ms") / (needs.BUSIEST * needs.ENGLISH)),
        "machine": f"{parts['label']['machine']['processors']} processors ({parts['label']['machine']['processor']})",
        "first": first.name,
        "first_at": number(first.breaks_at),
        "picows_at": number(next(one.breaks_at for one in stages(parts) if "picows" in one.name)),
        "label_at": number(next(one.breaks_at for one in stages(parts) if "processor" in one.name)),
        "mongo_at": number(next(one.breaks_at for one in stages(parts) if one.name == "one MongoDB")),
        "disk": number(86_400 * needs.POSTS * needs.ENGLISH * needs.STORE_BYTES / 1e9),
    }


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
    yield "| by way of | answers/s | of linear | home node's processor, ms an answer |"
    yield "|---|---|---|---|"
    for what, one in part["figures"].items():
        if re.fullmatch(r"\d+ workers", what):
            linear = next(value for name, value in part["ratios"].items() if name.startswith(f"{what}:"))
            cpu = part["figures"][f"{what}: CPU of the home node a post"]
            yield f"| {what} | {number(one['median'])} | {number(linear['median'])} | {number(cpu['median'])} |"
    if idle := part["load"]["not_idle"]:
        yield f"\nThe machine was not idle: {idle}."


def _slots() -> Iterator[str]:
    rates = [needs.BUSIEST * needs.ENGLISH * times for times in needs.TIMES]
    yield "| seconds a call | " + " | ".join(f"{number(rate)} labels/s" for rate in rates) + " |"
    yield "|---|" + "---|" * len(rates)
    for seconds in (0.2, 0.5, 1.0, 2.0, 5.0):
        found = [needs.in_flight(rate, seconds) for rate in rates]
        cells = [f"{number(one)}" if one <= needs.SLOTS else f"**{number(one)}**" for one in found]
        yield f"| {seconds:g} | " + " | ".join(cells) + " |"


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


def _posts() -> Iterator[str]:
    wanted = {"20,000 a day (the sample's default)": 20_000 / 86_400} | {
        ("all English posts" if times == 1 else f"all, {times} times today's traffic"): needs.BUSIEST
        * needs.ENGLISH
        * times
        for times in needs.TIMES
    }
    yield "| labels | labels/s | calls in flight at 1 s | " + " | ".join(gpu.name for gpu in needs.GPUS) + " |"
    yield "|---|---|---|" + "---|" * len(needs.GPUS)
    for name, rate in wanted.items():
        cells = []
        for gpu in needs.GPUS:
            both = [needs.labels_a_second(gpu, read, needs.TOKENS_OUT) for read in (needs.TOKENS_OWN, needs.TOKENS_IN)]
            cells.append(" / ".join(f"{needs.gpus(rate, each):,}" for each in both))
        yield f"| {name} | {number(rate)} | {number(needs.in_flight(rate, 1.0))} | " + " | ".join(cells) + " |"


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
        over = next((minute for minute in range(int(SURGE[1] * 60), 1440) if not left[minute]), None)
        when = f"{(over - begin) / 60:.1f} hours after its beginning" if over else "not on that day"
        yield f"| {name} | {number(max(left))} | {number(max(left) / a_minute)} | {when} |"


def _behind(parts: Measured) -> Iterator[str]:
    capacity = needs.median(parts, "collect", "civicsky with picows, TLS")
    yield "| stop of | " + " | ".join("today" if times == 1 else f"{times} times" for times in needs.TIMES) + " |"
    yield "|---|" + "---|" * len(needs.TIMES)
    for hours in (1, 24, 72):
        found = [needs.catch_up_hours(hours, needs.FRAMES * times, capacity) for times in needs.TIMES]
        yield f"| {hours} h | " + " | ".join(map(_hours, found)) + " |"


def _hours(hours: float) -> str:
    if math.isinf(hours):
        return "never"
    return f"{60 * hours:.0f} minutes" if hours < 2 else f"{hours:.1f} hours"


def _waits() -> Iterator[str]:
    """How long a post waits for a free slot, by how busy slots are."""
    yield "| slots | 50 % busy | 70 % | 90 % | 97 % |"
    yield "|---|---|---|---|---|"
    for slots in (4, 16, 64):
        cells = []
        for busy in (0.5, 0.7, 0.9, 0.97):
            rng = Random(SEED)
            between = queues.by_chance(rng, 1 / (busy * slots))
            found = sorted(queues.waits(between, queues.by_chance(rng, 1.0), slots, 20_000)[2_000:])
            cells.append(f"{found[int(0.99 * len(found))]:.1f} s")
        yield f"| {slots} | " + " | ".join(cells) + " |"
