"""The command with which people label posts by hand."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from civicsky import log
from civicsky.cli.options import AsJson, Config, DataDir, Since, StoreKind, Until, app, finished, label_flags, load
from civicsky.errors import Usage


@app.command()
def annotate(
    action: Annotated[
        Literal["label", "list", "export"], typer.Argument(help="Label; or list what there is; or write GOLD of it.")
    ] = "label",
    annotator: Annotated[str, typer.Option("--annotator", metavar="NAME", help="Who labels.")] = "",
    adjudicate: Annotated[
        str, typer.Option("--adjudicate", metavar="NAME", help="Who decides where annotators differ.")
    ] = "",
    task: Annotated[str, typer.Option("--task", metavar="NAME|FILE", help="Default: the first of the settings.")] = "",
    posts: Annotated[
        int | None, typer.Option("--posts", metavar="N", help="Posts to draw; default: 300.", min=1)
    ] = None,
    by: Annotated[
        Literal["uniform", "uncertainty", "disagreement"],
        typer.Option("--by", help="How to draw; only a uniform draw is for estimates."),
    ] = "uniform",
    rejects: Annotated[bool, typer.Option("--rejects", help="Draw from the kept share of rejected posts.")] = False,
    among: Annotated[
        Literal["labelled", "collected"] | None,
        typer.Option("--among", help="Posts with a label of the task, or all; default: labelled."),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option("--origin", metavar="firehose|feed:NAME|any", help="How the posts came; default: firehose."),
    ] = None,
    since: Since = "",
    until: Until = "",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of the draw; default: by chance.", min=0, max=2**63 - 1)
    ] = None,
    draw: Annotated[
        int | None, typer.Option("--draw", metavar="N", help="A draw that there is, as listed.", min=1)
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Another draw beside those that there are.")] = False,
    port: Annotated[
        int, typer.Option("--port", help="Of the page, on loopback; 0: any free one.", min=0, max=65535)
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="With export; default: gold-TASK-DRAW.jsonl.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="With export: the posts' texts, too.")] = False,
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Label posts by hand on a local page, blind to the model."""
    from civicsky.annotate.annotating import Wanted, annotate as opened, export, listed  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, **label_flags(store, None, None)})
    log.configure(settings.log)
    if rejects and by != "uniform":
        raise Usage(f"--rejects is a draw of its own, and not by {by}; leave one of them out")
    wanted = Wanted(
        annotator, adjudicate, task, "rejects" if rejects else by, among, origin, since or None, until or None, posts,
        seed, draw, new, port,
    )  # fmt: skip
    if action == "label":
        finished(opened(settings, wanted, lambda line: print(line, flush=True)))
        return
    if action == "list":
        done = finished(listed(settings))
    else:
        tell = lambda line: print(f"civicsky: {line}", file=sys.stderr)  # noqa: E731
        done = finished(export(settings, wanted, out, tell, with_text=text))
    print(json.dumps(done.found, indent=1) if as_json else done.text)
