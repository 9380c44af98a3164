"""Commands around it: the demo, the settings, what the machine starts, and tools to try things out."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from civicsky import log
from civicsky.cli.options import (
    AsJson,
    Config,
    DataDir,
    ModelName,
    ModelUrl,
    StoreKind,
    app,
    dev,
    finished,
    label_flags,
    load,
    service,
)
from civicsky.errors import Usage


@app.command()
def demo(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="Folder in which each demo makes its own.")
    ] = Path("demo-data"),
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", help="Only the first so many: quicker, less to see.", min=200)
    ] = None,
) -> None:
    """Do the main job on a recorded stream, and report."""
    from civicsky.demo import run_demo  # noqa: PLC0415

    raise typer.Exit(run_demo(data_dir, print, frames))


@app.command()
def config(
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Print the settings, secrets masked, and check the task files."""
    from civicsky.loading import documented, effective  # noqa: PLC0415
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
    from civicsky.loading import file_of  # noqa: PLC0415
    from civicsky.setup import service as installed  # noqa: PLC0415

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
    from civicsky.loading import file_of  # noqa: PLC0415
    from civicsky.setup import service as installed  # noqa: PLC0415

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
    import asyncio  # noqa: PLC0415

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
        finished(serve())
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
    n = finished(capture_frames(settings.source, max_frames, file))
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


@dev.command("train-gate")
def train_gate(
    task: Annotated[str, typer.Argument(help="A task that ships, or the path of a task file (.toml).")],
    gold: Annotated[Path, typer.Argument(help="Posts that people have judged: CSV or JSONL.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Gate's file to write.")],
    recall: Annotated[
        float, typer.Option("--recall", metavar="R", help="Share of the posts looked for that is to pass.")
    ] = 0.95,
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Default: the task's first field.")] = "",
    value: Annotated[
        str, typer.Option("--value", metavar="NAME", help="What is looked for. Default: the field's first value.")
    ] = "",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the folds.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a gate: a small model that keeps posts from the one that is paid for."""
    from civicsky.research.train_gate import Wanted, as_text, train_gate as train  # noqa: PLC0415

    if not 0 < recall < 1:
        raise typer.BadParameter("a share between 0 and 1", param_hint="--recall")
    notes: list[str] = []
    gate = train(Wanted(task, gold, recall, field, value, seed), out, notes.append)
    if as_json:
        shown = gate.model_dump(exclude={"weights", "bias"})
        print(json.dumps({"version": gate.version, **shown, "notes": notes}, indent=2))
        return
    print("\n".join([*notes, as_text(gate, out)]))


@dev.command()
def tune(
    task: Annotated[str, typer.Argument(help="A task that ships, or the path of a task file (.toml).")],
    gold: Annotated[Path, typer.Argument(metavar="GOLD", help="CSV or JSONL: posts and what people judged of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="NEW.toml", help="The new task file.")],
    field: Annotated[
        str, typer.Option("--field", metavar="NAME", help="The one that decides; default: the first.")
    ] = "",
    by: Annotated[Literal["f1", "accuracy"], typer.Option("--by", help="What decides; f1: macro F1.")] = "f1",
    way: Annotated[
        Literal["auto", "schema", "json", "plain", "words"] | None, typer.Option("--way", help="How it is asked.")
    ] = None,
    search: Annotated[
        Literal["random", "tpe"], typer.Option("--search", help="By chance; or by what helped (the extra `tune`).")
    ] = "random",
    tries: Annotated[int, typer.Option("--candidates", metavar="N", help="Sets of examples to try.", min=1)] = 24,
    examples: Annotated[
        str, typer.Option("--examples", metavar="N[,N]...", help="How many examples a set may have.")
    ] = "4,8,12",
    wordings: Annotated[
        Path | None, typer.Option("--wordings", metavar="FILE|DIR", help="Task files whose words are tried, too.")
    ] = None,
    write: Annotated[
        int, typer.Option("--write", metavar="N", help="Wordings that the model is to write.", min=0, max=20)
    ] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Sets may take the place of the old examples.")] = False,
    no_texts: Annotated[bool, typer.Option("--no-texts", help="No post of GOLD comes into the new file.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of split and search.", min=0, max=2**32 - 1)] = 1,
    max_calls: Annotated[
        int | None, typer.Option("--max-calls", metavar="N", help="In all runs together.", min=1)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", metavar="N", help="The same.", min=1)] = None,
    max_money: Annotated[
        float | None, typer.Option("--max-money", metavar="X", help="The same, by label.prices.")
    ] = None,
    model_url: ModelUrl = None,
    model: ModelName = None,
    data_dir: DataDir = None,
    store: StoreKind = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Make a task's examples and wording better on judged posts, and tell by others whether it is."""
    from civicsky.tuning.asked import Budget  # noqa: PLC0415
    from civicsky.tuning.tune import tune as tuned  # noqa: PLC0415
    from civicsky.tuning.wanted import Wanted  # noqa: PLC0415

    settings = load(config, {"data_dir": data_dir, "label.way": way, **label_flags(store, model_url, model)})
    log.configure(settings.log)
    try:
        sizes = tuple(int(size) for size in examples.split(",") if size.strip())
    except ValueError:
        raise Usage(f"--examples {examples}: give numbers of 1 or more, such as 4,8,12") from None
    budget = Budget(max_calls, max_tokens or settings.label.budget_tokens, max_money or settings.label.budget_money)
    wanted = Wanted(task, gold, out, field, by, search, tries, sizes, wordings, write, replace, no_texts, seed, budget)
    done = tuned(settings, wanted, lambda text: print(f"civicsky: {text}", file=sys.stderr))
    print(json.dumps(done.found, indent=1) if as_json else done.text)
