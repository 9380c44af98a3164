"""Commands that change what is stored, or copy it."""

import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import typer

from civicsky import log
from civicsky.cli.options import AsJson, Config, DataDir, StoreKind, app, finished, label_flags, load
from civicsky.errors import EXIT_FAILED, Usage


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

    if not finished(amend.recheck(settings, names or [], show)):
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
    settings = load(config, {"data_dir": data_dir, **label_flags(store, None, None)})
    log.configure(settings.log)
    good = True
    if file is not None:
        done = finished(texts.hydrate(settings, file, out, respect, _say_some(texts.TOLD)))
        text, values = texts.as_text(done), texts.as_json(done)
    elif counts:
        report = finished(counting.count(settings))
        text, values, good = counting.as_text(report), counting.as_json(report), report.good
    elif verify:
        verified = finished(verifying.verify(settings, since, until))
        text, values, good = verifying.as_text(verified), verifying.as_json(verified), not verified.why
    else:
        n = finished(texts.look_up_authors(settings))
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
    done = finished(amend.erase(settings, names))
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
    report = finished(fetched(settings, names or [], limit, local=from_local, due=due))
    print(json.dumps(for_programs(report), indent=2) if as_json else as_text(report))
    if not report.good:
        raise typer.Exit(EXIT_FAILED)


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
