"""Commands that look and change nothing."""

import json
import os
import sys
from typing import Annotated, Literal

import typer

from civicsky import log
from civicsky.cli.options import (
    AsJson,
    Config,
    DataDir,
    ModelName,
    ModelUrl,
    Relays,
    StoreKind,
    app,
    finished,
    label_flags,
    load,
)
from civicsky.errors import EXIT_FAILED, Usage


@app.command()
def status(data_dir: DataDir = None, as_json: AsJson = False, config: Config = None) -> None:
    """Show where things stand, from the data directory alone."""
    from civicsky.status import as_text, gather  # noqa: PLC0415

    found = finished(gather(load(config, {"data_dir": data_dir}).data_dir))
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
    from civicsky.watch.probe import probe  # noqa: PLC0415

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

    flags = {"source.relays": relay, "data_dir": data_dir, **label_flags(store, model_url, model)}
    settings = load(config, flags)
    log.configure(settings.log.model_copy(update={"level": "error"}))  # what parts would log stands in the findings
    found = finished(examine(settings, offline=offline, seconds=seconds))
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

    if unknown := sorted(set(event or ()) - set(log.EVENTS)):
        raise Usage(f"--event {unknown[0]}: there is no such event; docs/operations.md lists them")
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
    from civicsky.notify.ways import test  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir})
    log.configure(settings.log)
    code = finished(test(settings, print, lambda text: print(f"civicsky: {text}", file=sys.stderr)))
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

    rows = finished(rejects_listed(load(config, {"data_dir": data_dir}).data_dir, limit))
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(rejects_text(rows))


@app.command()
def coverage(data_dir: DataDir = None, as_json: AsJson = False, config: Config = None) -> None:
    """Show what was held of the stream, and every gap with its cause."""
    from civicsky.status import coverage_text, gather_coverage  # noqa: PLC0415

    found = finished(gather_coverage(load(config, {"data_dir": data_dir}).data_dir))
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
        tried = finished(amend.retry(settings, ids or []))
        if not tried:
            print("nothing failed")
        for kind, (n, good) in tried.items():
            print(f"{kind}: {n:,} tried again, {good:,} " + ("of use now" if kind == "frame" else "put back in line"))
        return
    if action == "show" and not ids:
        raise typer.BadParameter("give an ID from `civicsky failed list`", param_hint="ID")
    if action == "show":
        for name in ids or []:
            print(json.dumps(finished(amend.failed_shown(settings.data_dir, name)), indent=2))
        return
    rows = finished(amend.failed(settings.data_dir))
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(amend.as_text(rows))
