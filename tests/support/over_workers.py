"""A plugin of pytest: the tests of labelling as they are, with label workers between asker and model.

    PYTHONPATH=tests pytest -p support.over_workers tests/integration/test_label.py ...

Each server that a test names has a dispatcher and a worker of its own. A command that is started with `--model-url`
gets a worker beside it, as a process, and asks by that.
"""

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from civicsky import endpoint
from civicsky.endpoint import Endpoints, Far
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import Spend
from civicsky.settings import Label, Settings, Workers
from civicsky.workers.dispatch import Dispatcher
from civicsky.workers.serve import Worker
from support import command
from support.nats_server import NatsServer, nats_server

SLOTS: Final = 32
WAIT_SECONDS: Final = 3.0
COMMANDS: Final = ("run", "label")
_numbers = count()
_open = endpoint.open_endpoints
_tasks: list["asyncio.Task[None]"] = []
_here: list[tuple[Stop, "asyncio.Task[None]"]] = []
"""Workers within the test's loop."""
_workers: dict[str, tuple[str, "subprocess.Popen[bytes]"]] = {}
_nats: list[NatsServer] = []


def opened(
    settings: Label, local: Any = None, abilities: Mapping[str, str] | None = None, used_today: Spend | None = None
) -> Endpoints:
    """As `open_endpoints`, by way of a worker for each server."""
    if local is not None:
        return _open(settings, local, abilities, used_today)
    urls = (settings.model_url, *settings.more_urls)
    fars = {url.split("/v1")[0]: _far(settings, url) for url in dict.fromkeys(urls)}
    return _open(settings, None, abilities, used_today, fars)


def _far(label: Label, url: str) -> Far:
    workers = Workers(url=_nats[0].url, name=f"t{next(_numbers)}", wait_seconds=WAIT_SECONDS)
    unlimited = dict.fromkeys(("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day"))
    own = label.model_copy(update={"model_url": url, "more_urls": (), **unlimited})
    dispatcher = Dispatcher(workers, label.model, None, Metrics(), Stop())
    stop = Stop()
    worker = Worker(Settings(label=own, workers=workers), _open(own), SLOTS, stop)
    loop = asyncio.get_running_loop()
    _tasks.append(loop.create_task(dispatcher.run()))
    _here.append((stop, loop.create_task(worker.run())))
    return dispatcher


def between(args: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with which a command asks by a worker, which is there then."""
    if args[0] not in COMMANDS or "--model-url" not in args:
        return settings
    url, model = args[args.index("--model-url") + 1], args[args.index("--model") + 1]
    if url not in _workers or _workers[url][1].poll() is not None:
        name = f"c{next(_numbers)}"
        asks = {key: value for key, value in settings.items() if key.startswith("label__") and "per_" not in key}
        process = subprocess.Popen(
            [command.CIVICSKY, "label", "--worker", _nats[0].url, "--model-url", url, "--model", model],
            env=command.environment(**{**asks, "label__slots": SLOTS, "workers__name": name}),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _workers[url] = (name, process)
    ours = {"workers__url": _nats[0].url, "workers__name": _workers[url][0], "workers__wait_seconds": WAIT_SECONDS}
    return {**settings, **ours}


@pytest.fixture(scope="session", autouse=True)
def _over_workers() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, nats_server(Path(folder) / "nats") as nats:
        _nats.append(nats)
        command.between = between
        yield
        command.between = None


@pytest.fixture(autouse=True)
async def _asks_by_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    if hasattr(request.module, "open_endpoints"):
        monkeypatch.setattr(request.module, "open_endpoints", opened)
    yield
    for stop, task in _here:
        stop.request("the test is over")
        await asyncio.wait([task], timeout=2)
    _tasks.extend(task for _, task in _here)
    for task in _tasks:
        task.cancel()
    await asyncio.gather(*_tasks, return_exceptions=True)
    _tasks.clear()
    _here.clear()
    for _, process in _workers.values():
        process.kill()
        process.wait()
    _workers.clear()
