"""Runs the benchmark, or some of its parts. See `part` for what a part is.

    make bench                                           all of it; an hour on an idle machine
    make bench ARGS='--only decode,label --rounds 3'     two parts, three rounds
    make bench ARGS=--quick                              whether it works; its figures mean nothing

Figures are printed as they come, and written to bench/results.json and docs/performance.md (with --quick into
bench/.cache/quick). A part that is run alone takes the place of its former figures; the others stay. Exit code 1 when a
part failed, or a bar was not met (with --quick: when a part failed), 2 for wrong usage.
"""

import argparse
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import machine, page, results
from bench.part import Ask, CannotRun, Measured, Part
from bench.results import Entry
from bench.scaling import page as scaling_page
from bench.shown import lines

PARTS: Final = ("decode", "collect", "memory", "loop", "label", "store", "growth", "script", "workers")
ROOT: Final = Path(__file__).parent.parent
QUICK: Final = ROOT / "bench" / ".cache" / "quick"


def main(words: list[str] | None = None) -> int:
    told = _parser().parse_args(words)
    names = told.only.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        print(f"bench: there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    into = told.into or (QUICK if told.quick else ROOT)
    rounds = told.rounds or (1 if told.quick else 5)
    with _saying(len(names)) as (tell, say, step):
        done = {}
        for name in names:
            done[name] = run_part(name, Ask(rounds, told.scale, told.quick, say))
            tell("\n".join(lines(name, done[name])))
            write(into, done)
            step()
        tell(f"written: {into / 'bench/results.json'}, {into / 'docs/performance.md'}")
    bad = [name for name, one in done.items() if one["failed"] or (not told.quick and results.missed(one))]
    return int(bool(bad))


def run_part(name: str, ask: Ask, load_module: Callable[[str], Any] = importlib.import_module) -> Entry:
    """Measure one part; whatever goes wrong is told in what it gives."""
    watch, failed = machine.Watch(), ""
    measured = Measured(Part(name, name, ""))
    try:
        module = load_module(f"bench.{name}")
        measured.part = module.PART
        with closing(module.rounds(ask)) as measures:
            for measure in measures:
                measured.take(measure)
    except CannotRun as why:
        failed = f"cannot run: {why}"
    except ModuleNotFoundError as error:
        failed = f"cannot run: {error.name} is not there"
    except Exception as error:  # noqa: BLE001  (the other parts go on)
        failed = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    where = {"machine": machine.describe(), "commit": machine.commit()}
    return results.entry(measured, ask, seconds=watch.seconds, load=watch.load(), failed=failed, where=where)


def write(into: Path, done: dict[str, Entry]) -> None:
    """Put these parts in the place of their former figures, and write the page anew."""
    for folder in ("bench", "docs"):
        (into / folder).mkdir(parents=True, exist_ok=True)
    file = into / "bench" / "results.json"
    parts = {**results.read(file), **done}
    parts = {name: parts[name] for name in PARTS if name in parts}
    results.write(file, parts)
    page.write(into / "docs", parts, PARTS)
    with suppress(KeyError):  # something that it reckons with was never measured
        scaling_page.write(into / "docs", parts)


@contextmanager
def _saying(parts: int) -> Iterator[tuple[Callable[[str], None], Callable[[str], None], Callable[[], None]]]:
    """(tell what stays, say what is done now, one more part is done): a bar on a terminal, plain lines elsewhere."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        yield _plainly, _plainly, lambda: None
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=parts)
        yield (
            console.print,
            lambda text: progress.update(task, description=text.replace("[", r"\[")),
            lambda: progress.advance(task),
        )


def _plainly(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    parser.add_argument("--scale", type=float, default=1.0, help="times the full sizes; bars are meant for 1")
    parser.add_argument("--rounds", type=int, help="5, or 1 with --quick")
    parser.add_argument("--into", type=Path, help="the folder above bench/ and docs/ that are written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
