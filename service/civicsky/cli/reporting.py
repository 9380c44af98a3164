"""Commands that read the store for people and programs."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from civicsky import log
from civicsky.cli.options import (
    AsJson,
    Config,
    DataDir,
    GoldFile,
    ModelUrl,
    Origin,
    Since,
    StoreKind,
    Tasks,
    Until,
    app,
    finished,
    label_flags,
    load,
)
from civicsky.errors import EXIT_FAILED


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
    events: Annotated[
        Path | None,
        typer.Option("--events", metavar="FOLDER", help="Articles: ask without and with them, and compare."),
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Hold models' labels against people's, and write a report."""
    from civicsky.research.evaluate import Wanted, evaluate as evaluated  # noqa: PLC0415

    flags = {"data_dir": data_dir, "events.folder": events, **label_flags(store, model_url, None)}
    settings = load(config, flags)
    log.configure(settings.log)
    ways = tuple(filter(None, way.replace(" ", "").split(",")))
    wanted = Wanted(gold, out, task or (), model or (), ways)
    done = finished(evaluated(settings, wanted, lambda text: print(f"civicsky: {text}", file=sys.stderr)))
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

    settings = load(config, {"data_dir": data_dir, **label_flags(store, None, None)})
    log.configure(settings.log)
    tables = finished(estimated(settings, Wanted(task or (), field or (), since, until, gold, by, origin)))
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

    settings = load(config, {"data_dir": data_dir, **label_flags(store, None, None)})
    log.configure(settings.log)
    wanted = Wanted(since, until, gold, task or (), origin)
    done = finished(reported(settings, wanted, out, with_page=not as_json or out is not None))
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
        Literal["internal", "restricted", "public"],
        typer.Option("--level", help="All; or addresses alone; or pseudonyms, labels and no text."),
    ] = "internal",
    since: Since = "",
    until: Until = "",
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

    settings = load(config, {"data_dir": data_dir, **label_flags(store, None, None)})
    log.configure(settings.log)
    wanted = Wanted(
        out, form, table or (), level, since, until, task or (), where or (), origin, model, prompt, key_file
    )
    done = finished(exported(settings, wanted, lambda text: print(f"civicsky: {text}", file=sys.stderr)))
    print(json.dumps(done.found, indent=1) if as_json else done.text)
