"""Commands that begin: a settings file, the service and its halves, and what a labelling will take."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from civicsky import log
from civicsky.cli.options import (
    AsJson,
    Config,
    DataDir,
    HttpAt,
    IfNotRunning,
    LogFile,
    MaxFrames,
    MaxKept,
    MaxMinutes,
    MaxPosts,
    ModelName,
    ModelUrl,
    Relays,
    StoreKind,
    app,
    collect_flags,
    complain,
    finished,
    label_flags,
    load,
)
from civicsky.errors import EXIT_FAILED, Failed, Held, Usage

if TYPE_CHECKING:
    from civicsky.datadir import Halves
    from civicsky.settings import Settings


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
    from civicsky.settings import Log  # noqa: PLC0415
    from civicsky.setup.init import Wanted, init as begun  # noqa: PLC0415

    log.configure(Log())
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
        **collect_flags(relay, data_dir, max_posts, max_kept, max_frames, max_minutes),
        **label_flags(store, model_url, model),
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
        **collect_flags(relay, data_dir, max_posts, max_kept, max_frames, max_minutes),
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
    worker: Annotated[
        str | None,
        typer.Option("--worker", metavar="URL", help="Ask our model for a home node, by NATS at nats://HOST:4222."),
    ] = None,
    http: HttpAt = None,
    if_not_running: IfNotRunning = False,
    log_file: LogFile = None,
    config: Config = None,
) -> None:
    """Label what was collected, and go on as more comes."""
    flags = {"data_dir": data_dir, "http.listen": http, "log.file": log_file, "workers.url": worker}
    settings = load(config, {**flags, **label_flags(store, model_url, model)})
    if worker is not None:
        if data_dir or store or drain or again or task or since or until or where or http or if_not_running:
            raise Usage(ONLY_A_MODEL)
        _work(settings)
    if not again and (task or since or until or where):
        raise Usage(
            "--task, --since, --until and --where choose what --again asks about: add --again, or leave them out"
        )
    if again:
        from civicsky import amend  # noqa: PLC0415

        if not finished(amend.again(settings, task or [], since, until, where)):
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

    settings = load(config, {"data_dir": data_dir, **label_flags(store, model_url, model)})
    found = finished(gather(settings, posts=posts))
    print(json.dumps(found, indent=2) if as_json else as_text(found))


ONLY_A_MODEL = "--worker goes with --model-url, --model, --log-file and --config alone: a worker has only a model"


UNFINISHED = "not all is labelled: "


BUDGET_SPENT = (
    "today's budget is spent; start again after midnight UTC, or raise label.budget_tokens or label.budget_money"
)


LOOK = "`civicsky status` shows what waits; start again to go on"


def _work(settings: "Settings") -> NoReturn:
    from civicsky.workers.serve import run_worker  # noqa: PLC0415

    log.configure(settings.log)
    print(run_worker(settings))
    raise typer.Exit


def _serve(
    settings: "Settings",
    halves: "Halves",
    *,
    drain: bool = False,
    if_not_running: bool = False,
) -> None:
    from civicsky import datadir  # noqa: PLC0415

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
        complain(UNFINISHED + (BUDGET_SPENT if bounded else LOOK), summary.exit_code)
    raise typer.Exit(summary.exit_code)


def _runs_already(held: Held) -> NoReturn:
    from civicsky.model import format_time, now_us  # noqa: PLC0415

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
