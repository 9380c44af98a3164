"""What the commands share: the groups they stand in, options that several have, and the one way to complain.

To start costs more than most commands do. So what not every command needs, such as the settings, is imported in the
functions that need it, here and in the commands.
"""

import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from civicsky.settings import Settings

_T = TypeVar("_T")

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
    typer.Option(
        "--http", metavar="[HOST:]PORT", help="Serve the page, /livez, /readyz, /metrics there; host: 127.0.0.1."
    ),
]
IfNotRunning = Annotated[
    bool, typer.Option("--if-not-running", help="End well at once if it runs already: for cron and Slurm.")
]


def complain(message: str, code: int) -> int:
    """One line on standard error; gives the code back."""
    print(f"civicsky: {message}", file=sys.stderr)
    return code


def load(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> "Settings":
    """The settings; see `loading.load`."""
    from civicsky.loading import load as loaded  # noqa: PLC0415

    return loaded(config, flags)


def finished(work: Coroutine[Any, Any, _T]) -> _T:
    """What it gives; see `asyncio.run`."""
    import asyncio  # noqa: PLC0415

    return asyncio.run(work)


def collect_flags(
    relay: list[str] | None,
    data_dir: str | None,
    max_posts: int | None,
    max_kept: int | None,
    max_frames: int | None,
    max_minutes: float | None,
) -> dict[str, Any]:
    """Settings by dotted name, of what the flags of the collecting half give; None: not given."""
    return {
        "source.relays": relay,
        "data_dir": data_dir,
        "limits.max_posts": max_posts,
        "limits.max_kept": max_kept,
        "limits.max_frames": max_frames,
        "limits.max_minutes": max_minutes,
    }


def label_flags(store: str | None, model_url: str | None, model: str | None) -> dict[str, Any]:
    """The same of the labelling half."""
    return {"store.kind": store, "label.model_url": model_url, "label.model": model}
