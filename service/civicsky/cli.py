"""The command line: the only place that prints."""

import asyncio
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from civicsky import __version__, datadir, log
from civicsky.errors import EXIT_FAILED, FULL, CivicskyError, Failed, Held, Usage
from civicsky.export.columns import Level
from civicsky.model import format_time, now_us
from civicsky.settings import Log as LogSettings, Settings, documented, effective, file_of, load

app = typer.Typer(
    name="civicsky",
    help="Hold Bluesky's firehose, keep the English posts, label each as civic or not, and deliver a dataset.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
dev = typer.Typer(help="Tools to try things out: serve a recorded stream, record one.", no_args_is_help=True)
app.add_typer(dev, name="dev")
service = typer.Typer(help="Have cron or systemd start what must be started.", no_args_is_help=True)
app.add_typer(service, name="service")

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings file (TOML).")]
# Not a Path: typer would look at it, and a network mount that hangs would hang us before we can refuse it.
DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", metavar="DIR", help="Local folder of data; default: civicsky-data."),
]
Relays = Annotated[
    list[str] | None, typer.Option("--relay", metavar="URL", help="Relay, best first; may be given several times.")
]
StoreKind = Annotated[Literal["sqlite", "mongo"] | None, typer.Option("--store", help="Where users read.")]
ModelUrl = Annotated[
    str | None, typer.Option("--model-url", metavar="URL", help="OpenAI-compatible server, with its /v1.")
]
ModelName = Annotated[str | None, typer.Option("--model", metavar="NAME", help="The model's name there, or: local.")]
MaxFrames = Annotated[int | None, typer.Option("--max-frames", metavar="N", help="End after so many frames.")]
MaxPosts = Annotated[
    int | None, typer.Option("--max-posts", metavar="N", help="End after so many posts of all languages.")
]
MaxKept = Annotated[int | None, typer.Option("--max-kept", metavar="N", help="End after so many posts kept.")]
MaxMinutes = Annotated[float | None, typer.Option("--max-minutes", metavar="M", help="End after so many minutes.")]
LogFile = Annotated[
    str | None,
    typer.Option("--log-file", metavar="FILE", help="Log into files of bounded size; relative: in the data directory."),
]
Origin = Annotated[
    str, typer.Option("--origin", metavar="firehose|feed:NAME|any", help="Which posts count, by how they came.")
]
Since = Annotated[str, typer.Option("--since", metavar="TIME", help="Date (UTC) or RFC 3339 time.")]
Until = Annotated[str, typer.Option("--until", metavar="TIME", help="The same; not included.")]
GoldFile = Annotated[
    Path | None, typer.Option("--gold", metavar="FILE", help="CSV or JSONL: posts and what people judged of them.")
]
Tasks = Annotated[list[str] | None, typer.Option("--task", metavar="NAME|FILE", help="May be given several times.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
HttpAt = Annotated[
    str | None,
    typer.Option("--http", metavar="[HOST:]PORT", help="Answer /livez, /readyz and /metrics there; host: 127.0.0.1."),
]
IfNotRunning = Annotated[
    bool, typer.Option("--if-not-running", help="End well at once if it runs already: for cron and Slurm.")
]


@app.command()
def init(
    data_dir: Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Local folder of data.")] = None,
    relay: Relays = None,
    store: StoreKind = None,
    model_url: ModelUrl = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model's name there, or: local, or: none.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; what is not given has its default.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Try nothing out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there; they stay beside.")] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="File to write; default: ~/.config/civicsky/civicsky.toml."),
    ] = None,
) -> None:
    """Ask for what is needed, write a settings file, and try it out."""
    from civicsky.init import Wanted, init as begun  # noqa: PLC0415

    log.configure(LogSettings())
    if not begun(Wanted(config, data_dir, relay, store, model_url, model, yes, offline, force), _Terminal()):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def run(
    relay: Relays = None,
    data_dir: DataDir = None,
    store: StoreKind = None,
    model_url: ModelUrl = None,
    model: ModelName = None,
    max_posts: MaxPosts = None,
    max_kept: MaxKept = None,
    max_frames: MaxFrames = None,
    max_minutes: MaxMinutes = None,
    http: HttpAt = None,
    if_not_running: IfNotRunning = False,
    log_file: LogFile = None,
    config: Config = None,
) -> None:
    """Collect and label in one process."""
    flags = {
        "http.listen": http,
        "log.file": log_file,
        **_collect_flags(relay, data_dir, max_posts, max_kept, max_frames, max_minutes),
        **_label_flags(store, model_url, model),
    }
    _serve(load(config, flags), "both", if_not_running=if_not_running)


@app.command()
def collect(
    relay: Relays = None,
    data_dir: DataDir = None,
    max_posts: MaxPosts = None,
    max_kept: MaxKept = None,
    max_frames: MaxFrames = None,
    max_minutes: MaxMinutes = None,
    http: HttpAt = None,
    if_not_running: IfNotRunning = False,
    log_file: LogFile = None,
    config: Config = None,
) -> None:
    """Collect only; posts wait on disk for `label`."""
    flags = {
        "http.listen": http,
        "log.file": log_file,
        **_collect_flags(relay, data_dir, max_posts, max_kept, max_frames, max_minutes),
    }
    _serve(load(config, flags), "collect", if_not_running=if_not_running)


@app.command()
def label(
    data_dir: DataDir = None,
    store: StoreKind = None,
    model_url: ModelUrl = None,
    model: ModelName = None,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing waits any more.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also ask once more about posts that were drawn before.")
    ] = False,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME", help="With --again: under this task only.")
    ] = None,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="With --again: events from then on.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="With --again: events before that.")] = "",
    where: Annotated[
        str, typer.Option("--where", metavar="FIELD=VALUE", help="With --again: where the label says so.")
    ] = "",
    http: HttpAt = None,
    if_not_running: IfNotRunning = False,
    log_file: LogFile = None,
    config: Config = None,
) -> None:
    """Label what was collected, and go on as more comes."""
    flags = {"data_dir": data_dir, "http.listen": http, "log.file": log_file}
    settings = load(config, {**flags, **_label_flags(store, model_url, model)})
    if not again and (task or since or until or where):
        raise Usage(
            "--task, --since, --until and --where choose what --again asks about: add --again, or leave them out"
        )
    if again:
        from civicsky import amend  # noqa: PLC0415

        if not asyncio.run(amend.again(settings, task or [], since, until, where)):
            print("the running service will do it")
            return
    _serve(settings, "label", drain=drain, if_not_running=if_not_running)


@app.command()
def plan(
    data_dir: DataDir = None,
    store: StoreKind = None,
    model_url: ModelUrl = None,
    model: ModelName = None,
    posts: Annotated[
        int, typer.Option("--posts", metavar="N", help="How long until so many posts have come?", min=1)
    ] = 10_000,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Reckon what a labelling will take, before any call."""
    from civicsky.plan import gather  # noqa: PLC0415
    from civicsky.plan_text import as_text  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, **_label_flags(store, model_url, model)})
    found = asyncio.run(gather(settings, posts=posts))
    print(json.dumps(found, indent=2) if as_json else as_text(found))


@app.command()
def status(data_dir: DataDir = None, as_json: AsJson = False, config: Config = None) -> None:
    """Show where things stand, from the data directory alone."""
    from civicsky.status import as_text, gather  # noqa: PLC0415

    found = asyncio.run(gather(load(config, {"data_dir": data_dir}).data_dir))
    print(json.dumps(found, indent=2) if as_json else as_text(found))


@app.command()
def health(
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Of the running service; default: where the settings listen.")
    ] = "",
    live: Annotated[bool, typer.Option("--live", help="Whether it is alive, not whether it is ready.")] = False,
    config: Config = None,
) -> None:
    """Ask the running service whether it is ready."""
    from civicsky.probe import probe  # noqa: PLC0415

    found = probe(load(config).http, url, live=live)
    print(found.line)
    if not found.good:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def doctor(
    relay: Relays = None,
    data_dir: DataDir = None,
    store: StoreKind = None,
    model_url: ModelUrl = None,
    model: ModelName = None,
    offline: Annotated[bool, typer.Option("--offline", help="Leave out what needs the network.")] = False,
    seconds: Annotated[float, typer.Option("--seconds", help="Bound of each check.", min=0.1)] = 10,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show also what is in order.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Find out what is wrong, and what to do about it."""
    from civicsky.doctor import as_json as for_programs, as_text, examine, healthy  # noqa: PLC0415

    flags = {"source.relays": relay, "data_dir": data_dir, **_label_flags(store, model_url, model)}
    settings = load(config, flags)
    log.configure(settings.log)
    found = asyncio.run(examine(settings, offline=offline, seconds=seconds))
    print(json.dumps(for_programs(found), indent=2) if as_json else as_text(found, verbose=verbose))
    if not healthy(found):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def logs(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Default: the settings' log, or systemd's journal; - is stdin.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the last lines, and go on as more come.")
    ] = False,
    stage: Annotated[
        list[str] | None, typer.Option("--stage", metavar="WORD", help="May be given several times.")
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option("--event", metavar="NAME", help="May be given several times.")
    ] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--level", help="Least level shown.")
    ] = "debug",
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Date (UTC), RFC 3339 time, or how long ago: 30m, 2h, 3d.")
    ] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show the log as people read it."""
    from civicsky import logs as reading  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir})
    wanted = reading.Wanted(stage or (), event or (), level, reading.moment(since))
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def say(line: reading.Line) -> None:
        text = reading.as_json(line) if as_json else reading.as_text(line, colour=colour)
        if text is not None:
            print(text, flush=follow or file == reading.STDIN)

    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        reading.show(reading.find(settings, file, follow=follow, since=wanted.since), wanted, say, follow=follow)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough; Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise Usage(f"the log cannot be read: {error}") from None
    except KeyboardInterrupt:
        return


@app.command()
def notify(data_dir: DataDir = None, config: Config = None) -> None:
    """Send a test message, and tell whether it arrived."""
    from civicsky.notify import test  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir})
    log.configure(settings.log)
    code = asyncio.run(test(settings, print, lambda text: print(f"civicsky: {text}", file=sys.stderr)))
    if code:
        raise typer.Exit(code)


@app.command()
def rejects(
    data_dir: DataDir = None,
    limit: Annotated[int, typer.Option("--limit", help="Newest ones at most, of each kind.", min=1)] = 50,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """List what the filter rejected or flagged, and why."""
    from civicsky.report import rejects_listed, rejects_text  # noqa: PLC0415

    rows = asyncio.run(rejects_listed(load(config, {"data_dir": data_dir}).data_dir, limit))
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(rejects_text(rows))


@app.command()
def coverage(data_dir: DataDir = None, as_json: AsJson = False, config: Config = None) -> None:
    """Show what was held of the stream, and every gap with its cause."""
    from civicsky.status import coverage_text, gather_coverage  # noqa: PLC0415

    found = asyncio.run(gather_coverage(load(config, {"data_dir": data_dir}).data_dir))
    print(json.dumps(found, indent=2) if as_json else coverage_text(found))


@app.command()
def failed(
    action: Annotated[Literal["list", "show", "retry"], typer.Argument(help="What to do.")] = "list",
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="As listed; for retry, none means all.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """List, show, or try again what could not be decoded, labelled or stored."""
    from civicsky import amend  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir})
    log.configure(settings.log)
    if action == "retry":
        tried = asyncio.run(amend.retry(settings, ids or []))
        if not tried:
            print("nothing failed")
        for kind, (n, good) in tried.items():
            print(f"{kind}: {n:,} tried again, {good:,} " + ("of use now" if kind == "frame" else "put back in line"))
        return
    if action == "show" and not ids:
        raise typer.BadParameter("give an ID from `civicsky failed list`", param_hint="ID")
    if action == "show":
        for name in ids or []:
            print(json.dumps(asyncio.run(amend.failed_shown(settings.data_dir, name)), indent=2))
        return
    rows = asyncio.run(amend.failed(settings.data_dir))
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(amend.as_text(rows))


@app.command()
def recheck(
    names: Annotated[list[str] | None, typer.Argument(metavar="DID|HANDLE|POST", help="None means all posts.")] = None,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Ask the public API which posts are gone, and remove them."""
    from civicsky import amend  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir})
    log.configure(settings.log)
    shown, so_many = sys.stderr.isatty(), 0

    def show(n: int) -> None:
        nonlocal so_many
        so_many = n
        if shown:
            print(f"\r{n:,} posts looked up", end="", file=sys.stderr, flush=True)

    if not asyncio.run(amend.recheck(settings, names or [], show)):
        print("the running service will look them up")
        return
    if shown and so_many:
        print(file=sys.stderr)
    print(f"{so_many:,} post{'s' * (so_many != 1)} looked up")


@app.command()
def hydrate(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="List of posts: text, CSV, JSONL or Parquet.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSONL; default: NAME.hydrated.jsonl.")
    ] = None,
    respect: Annotated[
        Literal["flag", "drop"] | None,
        typer.Option("--respect", help="What to do about posts whose authors ask not to be shown to the public."),
    ] = None,
    counts: Annotated[
        bool, typer.Option("--counts", help="Count labelled posts again that have reached an age.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Look up every post of the store; remove what is gone.")
    ] = False,
    authors: Annotated[bool, typer.Option("--authors", help="Look up the authors of labelled posts.")] = False,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="With --verify: events from then on.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="With --verify: events before that.")] = "",
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Ask the public API again: texts for a list of posts, counts, deletions, authors."""
    from civicsky import counting, hydrate as texts, verify as verifying  # noqa: PLC0415

    if sum((file is not None, counts, verify, authors)) != 1:
        raise Usage("hydrate: give a FILE, or one of --counts, --verify and --authors")
    if file is None and (out or respect):
        raise Usage("--out and --respect are for a FILE: give one, or leave them out")
    if not verify and (since or until):
        raise Usage("--since and --until choose what --verify looks up: add --verify, or leave them out")
    settings = load(config, {"data_dir": data_dir, **_label_flags(store, None, None)})
    log.configure(settings.log)
    good = True
    if file is not None:
        done = asyncio.run(texts.hydrate(settings, file, out, respect, _say_some(texts.TOLD)))
        text, values = texts.as_text(done), texts.as_json(done)
    elif counts:
        report = asyncio.run(counting.count(settings))
        text, values, good = counting.as_text(report), counting.as_json(report), report.good
    elif verify:
        verified = asyncio.run(verifying.verify(settings, since, until))
        text, values, good = verifying.as_text(verified), verifying.as_json(verified), not verified.why
    else:
        n = asyncio.run(texts.look_up_authors(settings))
        text = "the running service looks them up" if n is None else f"{n:,} authors looked up"
        values = {"looked_up": n}
    print(json.dumps(values, indent=2) if as_json else text)
    if not good:
        raise typer.Exit(EXIT_FAILED)


def _say_some(most: int) -> Callable[[str], None]:
    """Tell the first lines on standard error; of the others only that there are more."""
    said = count(1)

    def say(text: str) -> None:
        n = next(said)
        if n <= most + 1:
            print(f"civicsky: {text if n <= most else 'more bad lines; they are counted'}", file=sys.stderr)

    return say


@app.command()
def erase(
    names: Annotated[list[str], typer.Argument(metavar="DID|HANDLE|POST", help="Whose posts, or which post.")],
    data_dir: DataDir = None,
    store: StoreKind = None,
    config: Config = None,
) -> None:
    """Remove an account's posts, or one post, everywhere, and never collect them again."""
    from civicsky import amend  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, "store.kind": store})
    log.configure(settings.log)
    done = asyncio.run(amend.erase(settings, names))
    for one in done:
        print(f"{one.name}: {one.posts:,} posts erased" + ("" if one.stored else f"; the store follows: {one.why}"))
    for line in amend.held_elsewhere(settings, [one.name for one in done]):
        print(line)
    print("exports, reports and hand-label files that you made are yours to clean, and copies of backups")
    if not all(one.stored for one in done):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|URL", help="Feeds of feeds.lists, or their addresses; none: feeds.daily."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="Posts of each at most.", min=1)] = None,
    from_local: Annotated[
        bool, typer.Option("--from-local", help="Import the newest file of each again, without the network.")
    ] = False,
    due: Annotated[
        bool, typer.Option("--due", help="Only those that were not fetched since the day's time (feeds.at).")
    ] = False,
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Fetch feeds, such as the most liked posts, and import them."""
    from civicsky.fetch import fetch as fetched  # noqa: PLC0415
    from civicsky.fetch_text import as_json as for_programs, as_text  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, "store.kind": store})
    log.configure(settings.log)
    report = asyncio.run(fetched(settings, names or [], limit, local=from_local, due=due))
    print(json.dumps(for_programs(report), indent=2) if as_json else as_text(report))
    if not report.good:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def evaluate(
    gold: Annotated[Path, typer.Argument(metavar="GOLD", help="CSV or JSONL: posts and what people judged of them.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: evaluation-DATE.")] = None,
    task: Tasks = None,
    way: Annotated[
        str, typer.Option("--way", metavar="WAY[,WAY]...", help="Ways of asking: schema, json, plain, words.")
    ] = "",
    model_url: ModelUrl = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="May be given several times.")
    ] = None,
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Hold models' labels against people's, and write a report."""
    from civicsky.research.evaluate import Wanted, evaluate as evaluated  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, **_label_flags(store, model_url, None)})
    log.configure(settings.log)
    wanted = Wanted(gold, out, task or (), model or (), tuple(filter(None, way.replace(" ", "").split(","))))
    done = asyncio.run(evaluated(settings, wanted, lambda text: print(f"civicsky: {text}", file=sys.stderr)))
    print(json.dumps(done.found, indent=1) if as_json else done.text)
    if not done.whole:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def estimate(
    task: Tasks = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME", help="May be given several times; default: all fields."),
    ] = None,
    since: Since = "",
    until: Until = "",
    gold: GoldFile = None,
    by: Annotated[Literal["none", "day"], typer.Option("--by", help="One estimate, or one a day.")] = "none",
    origin: Origin = "firehose",
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Estimate which share of the posts has which label, with intervals."""
    from civicsky.research.estimate import Wanted, as_json as in_json, as_text, estimate as estimated  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, **_label_flags(store, None, None)})
    log.configure(settings.log)
    tables = asyncio.run(estimated(settings, Wanted(task or (), field or (), since, until, gold, by, origin)))
    print(json.dumps(in_json(tables), indent=1) if as_json else as_text(tables))


@app.command()
def report(
    since: Since = "",
    until: Until = "",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: report-SINCE-UNTIL.html.")] = None,
    gold: GoldFile = None,
    task: Tasks = None,
    origin: Origin = "firehose",
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Make a page of a period: posts, shares, gaps, breaks, cost."""
    from civicsky.research.period import Wanted  # noqa: PLC0415
    from civicsky.research.period_report import report as reported  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, **_label_flags(store, None, None)})
    log.configure(settings.log)
    wanted = Wanted(since, until, gold, task or (), origin)
    done = asyncio.run(reported(settings, wanted, out, with_page=not as_json or out is not None))
    print(json.dumps(done.found, indent=1) if as_json else done.text)


@app.command()
def export(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="A new folder; default: export-TIME.")
    ] = None,
    form: Annotated[Literal["parquet", "csv", "jsonl"], typer.Option("--format", help="Of the tables.")] = "parquet",
    table: Annotated[
        list[str] | None,
        typer.Option("--table", metavar="NAME", help="posts, labels, snapshots or authors; default: all of the level."),
    ] = None,
    level: Annotated[
        Level, typer.Option("--level", help="All; or addresses alone; or pseudonyms, labels and no text.")
    ] = "internal",
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Date (UTC) or RFC 3339 time.")] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="The same; not included.")] = "",
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME", help="May be given several times; default: all.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="FIELD=VALUE", help="Where the label says so; several must all hold."),
    ] = None,
    origin: Annotated[
        str, typer.Option("--origin", metavar="firehose|feed:NAME|any", help="Where the posts came from.")
    ] = "any",
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Labels of this model: the newest of each post.")
    ] = "",
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="HASH", help="Labels of this prompt: the first digits of its hash.")
    ] = "",
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="Key of the level public's pseudonyms.")
    ] = None,
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Write the dataset as Parquet, CSV or JSONL, with manifest and codebook."""
    from civicsky.export.dataset import Wanted, export as exported  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, **_label_flags(store, None, None)})
    log.configure(settings.log)
    wanted = Wanted(
        out, form, table or (), level, since, until, task or (), where or (), origin, model, prompt, key_file
    )
    done = asyncio.run(exported(settings, wanted, lambda text: print(f"civicsky: {text}", file=sys.stderr)))
    print(json.dumps(done.found, indent=1) if as_json else done.text)


@app.command()
def backup(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder in which each backup makes its own.")],
    keep: Annotated[
        int | None,
        typer.Option("--keep", metavar="N", help="Remove all but the newest N of this directory.", min=1),
    ] = None,
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Copy a data directory as of one moment, while the service runs or not."""
    from civicsky.backup import as_json as for_programs, as_text, back_up  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, "store.kind": store})
    log.configure(settings.log)
    done = back_up(settings, dest, keep, lambda text: print(f"civicsky: {text}", file=sys.stderr))
    print(json.dumps(for_programs(done), indent=2) if as_json else as_text(done))


@app.command()
def restore(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder civicsky-TIME that `backup` made.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Make a new data directory from a backup; the service goes on with it."""
    from civicsky.restore import as_json as for_programs, as_text, restore as restored  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir})
    log.configure(settings.log)
    done = restored(settings, backup)
    print(json.dumps(for_programs(done), indent=2) if as_json else as_text(done))


@app.command()
def demo(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="Folder in which each demo makes its own.")
    ] = Path("demo-data"),
) -> None:
    """Do the main job on a recorded stream, and report."""
    from civicsky.demo import run_demo  # noqa: PLC0415

    raise typer.Exit(run_demo(data_dir, print))


@app.command()
def config(
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Print the settings, secrets masked, and check the task files."""
    from civicsky.task import file_hash, load_tasks  # noqa: PLC0415

    settings = load(config)
    shown = effective(settings)
    tasks = [(task.name, task.version, file_hash(text)) for task, text in load_tasks(settings.label.tasks)]
    if as_json:
        shown["tasks"] = [dict(zip(("name", "version", "sha256"), task, strict=True)) for task in tasks]
        print(json.dumps(shown, indent=2))
        return
    for name, _default, variable in documented():
        value: Any = shown
        for part in name.split("."):
            value = value[part]
        print(f"{name:28} = {json.dumps(value):36} # {variable}")
    for name, version, digest in tasks:
        print(f"task {name}, version {version}, SHA-256 of its file {digest}")


Cron = Annotated[bool, typer.Option("--cron", help="Lines in your crontab.")]
Timer = Annotated[bool, typer.Option("--timer", help="The daily fetch as a timer of your systemd.")]
Systemd = Annotated[bool, typer.Option("--systemd", help="The service as a unit of your systemd.")]


@service.command("install")
def service_install(
    systemd: Systemd = False,
    cron: Cron = False,
    timer: Timer = False,
    split: Annotated[bool, typer.Option("--split", help="With --systemd: a unit for each half.")] = False,
    keep_alive: Annotated[
        bool, typer.Option("--keep-alive", help="With --cron: start the service again whenever it does not run.")
    ] = False,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print what would be written, and write nothing.")
    ] = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Have the machine start the service, and the daily fetch at the time of the settings."""
    from civicsky import service as installed  # noqa: PLC0415

    installed.check_wanted(cron=cron, timer=timer, systemd=systemd, keep_alive=keep_alive, split=split)
    place = installed.place_of(load(config, {"data_dir": data_dir}), file_of(config))
    if cron:
        installed.install_cron(place, print, keep_alive=keep_alive, only_print=only_print)
    if timer:
        installed.install_timer(place, print, only_print=only_print)
    if systemd:
        installed.install_systemd(place, print, split=split, only_print=only_print)


@service.command("uninstall")
def service_uninstall(
    systemd: Systemd = False,
    cron: Cron = False,
    timer: Timer = False,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Take out what `install` wrote for a data directory, and nothing else."""
    from civicsky import service as installed  # noqa: PLC0415

    installed.check_wanted(cron=cron, timer=timer, systemd=systemd)
    place = installed.place_of(load(config, {"data_dir": data_dir}), file_of(config))
    if cron:
        installed.uninstall_cron(place, print)
    if timer:
        installed.uninstall_timer(print)
    if systemd:
        installed.uninstall_systemd(place, print)


@dev.command("serve-frames")
def serve_frames(
    file: Annotated[Path, typer.Argument(help="Recorded frames; `sample` for the packaged recording.")],
    port: Annotated[int, typer.Option("--port", help="0: any free one.")] = 0,
    rate: Annotated[str, typer.Option("--rate", help="Frames a second, or: max.")] = "max",
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end, with rising numbers.")] = False,
    mode: Annotated[
        Literal["inclusive", "exclusive"], typer.Option("--mode", help="Is the event at the cursor sent again?")
    ] = "exclusive",
) -> None:
    """Be a relay that plays a recording, on loopback, until Ctrl-C."""
    from civicsky.frames import read_frames, sample_file  # noqa: PLC0415
    from civicsky.relay import Playback, Relay  # noqa: PLC0415

    try:
        per_second = None if rate == "max" else float(rate)
    except ValueError:
        per_second = -1.0
    if per_second is not None and per_second <= 0:
        raise typer.BadParameter("a number above 0, or: max", param_hint="--rate")
    frames = list(read_frames(sample_file() if str(file) == "sample" else file))
    relay = Relay(frames, Playback(per_second, loop, mode))

    async def serve() -> None:
        async with relay.serve(port) as url:
            print(f"{url}  ({len(frames):,} frames; Ctrl-C ends)", flush=True)
            await asyncio.Event().wait()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        return


@dev.command("codebook")
def codebook_of(
    task: Annotated[str, typer.Argument(help="A task that ships, or the path of a task file (.toml).")],
) -> None:
    """Print a task as a section of a codebook, in Markdown."""
    from civicsky.task import codebook, load_task  # noqa: PLC0415

    print(codebook(load_task(task)[0]))


@dev.command()
def capture(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    relay: Annotated[str, typer.Option("--relay", metavar="URL", help="Relay to record.")] = "wss://bsky.network",
    max_frames: Annotated[int, typer.Option("--max-frames", metavar="N", help="Frames to record.", min=1)] = 1000,
    window: Annotated[bool, typer.Option("--window", help="Begin with the oldest that the relay has.")] = False,
) -> None:
    """Record frames as they come, byte for byte."""
    from civicsky.relay import capture_frames  # noqa: PLC0415

    flags = {"source.relays": (relay,), "source.start": "window" if window else "live"}
    settings = load(None, flags)
    log.configure(settings.log)
    n = asyncio.run(capture_frames(settings.source, max_frames, file))
    print(f"{n:,} frames in {file}")


@dev.command("sample-gold")
def sample_gold(file: Annotated[Path, typer.Argument(help="File to write (JSONL).")]) -> None:
    """Write the packaged sample's own labels as a GOLD file for `civicsky evaluate`."""
    from civicsky.research.gold import sample_rows  # noqa: PLC0415

    rows = sample_rows()
    try:
        with file.open("x", encoding="utf-8") as stream:  # what is there may be somebody's judgements
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise Usage(f"{file}: {error.strerror}; name a file that is not there yet") from None
    print(f"{len(rows):,} items in {file}")


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"civicsky {__version__}")
        raise typer.Exit


UNFINISHED = "not all is labelled: "
BUDGET_SPENT = (
    "today's budget is spent; start again after midnight UTC, or raise label.budget_tokens or label.budget_money"
)
LOOK = "`civicsky status` shows what waits; start again to go on"
_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""


def run_command() -> int:
    """Run the command line; gives the exit code."""
    try:
        app(standalone_mode=True)
    except CivicskyError as error:
        return _complain(str(error), error.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            return _complain("ended by Ctrl-C", EXIT_FAILED)
        return end.code if isinstance(end.code, int) else EXIT_FAILED
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or "a file"
        return _complain(
            f"{where}: {error.strerror}; nothing is lost: make room on the disk and start again", EXIT_FAILED
        )
    except sqlite3.Error as error:
        return _complain(f"a database could not be read: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _complain("ended by Ctrl-C", EXIT_FAILED)
    return 0


def _serve(
    settings: Settings,
    halves: datadir.Halves,
    *,
    drain: bool = False,
    if_not_running: bool = False,
) -> None:
    if if_not_running and (held := datadir.running(settings.data_dir, datadir.roles_of(halves))):
        _runs_already(held)
    from civicsky.app import run_service  # noqa: PLC0415  (heavy: whoever looks every few minutes does without)

    log.configure(settings.log)
    try:
        summary = run_service(settings, halves, drain=drain)
    except Held as held:  # somebody was faster
        if not if_not_running:
            raise
        _runs_already(held)
    parts = f"started {summary.started}, ended {summary.ended}, {summary.minutes:g} minutes"
    if halves != "label":
        parts += f", {summary.frames:,} frames, {summary.posts:,} posts, {summary.kept:,} kept"
    if halves != "collect":
        parts += f", {summary.labelled:,} labelled"
    if summary.waiting:
        parts += f"; {summary.waiting:,} wait for a label"
    print(parts)
    if summary.exit_code:
        bounded = settings.label.budget_tokens is not None or settings.label.budget_money is not None
        _complain(UNFINISHED + (BUDGET_SPENT if bounded else LOOK), summary.exit_code)
    raise typer.Exit(summary.exit_code)


def _runs_already(held: Held) -> NoReturn:
    print(f"{format_time(now_us())} nothing to do, it runs already: {str(held).partition(';')[0]}")
    raise typer.Exit


class _Terminal:
    """Asks a person, if one is there; see `init.Terminal`."""

    def __init__(self) -> None:
        self.asks = sys.stdin.isatty() and sys.stdout.isatty()
        self.width = min(shutil.get_terminal_size().columns, 100) if self.asks else 1000

    def ask(self, question: str, default: str) -> str:
        return self._asked(question, default=default, show_default=bool(default))

    def ask_unseen(self, question: str) -> str:
        return self._asked(question, default="", show_default=False, hide_input=True)

    def say(self, text: str) -> None:
        print(text)

    def _asked(self, question: str, **how: Any) -> str:
        try:
            return str(typer.prompt(question, **how))
        except typer.Abort:
            print()
            raise Failed("ended before all was answered; nothing was written") from None


def _collect_flags(
    relay: list[str] | None,
    data_dir: str | None,
    max_posts: int | None,
    max_kept: int | None,
    max_frames: int | None,
    max_minutes: float | None,
) -> dict[str, Any]:
    return {
        "source.relays": relay,
        "data_dir": data_dir,
        "limits.max_posts": max_posts,
        "limits.max_kept": max_kept,
        "limits.max_frames": max_frames,
        "limits.max_minutes": max_minutes,
    }


def _label_flags(store: str | None, model_url: str | None, model: str | None) -> dict[str, Any]:
    return {"store.kind": store, "label.model_url": model_url, "label.model": model}


def _complain(message: str, code: int) -> int:
    print(f"civicsky: {message}", file=sys.stderr)
    return code
