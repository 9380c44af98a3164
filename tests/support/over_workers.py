"""A plugin of pytest: the tests of labelling as they are, with label workers between asker and model.

    PYTHONPATH=tests pytest -p support.over_workers tests/integration/test_label.py ...

Each server that a test names has a dispatcher and a worker of its own. A command that is started with `--model-url`
gets a worker beside it, as a process, and asks by that; it is not told itself where the model is.

That a worker is between is checked. Whoever asks a model and is no worker fails the test, and so does a command that is
told where the model is. How many calls workers made is told in the end; a file whose tests made none fails the run:
it shows nothing here.
"""

import asyncio
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from civicsky import endpoint
from civicsky.endpoint import Came, Endpoint, Endpoints, Far, Line
from civicsky.lifecycle import Stop
from civicsky.metrics import Metrics
from civicsky.model import Spend
from civicsky.pace import Call
from civicsky.settings import Label, Settings, Workers
from civicsky.workers.dispatch import Dispatcher
from civicsky.workers.serve import Worker
from support import command
from support.nats_server import NatsServer, nats_server

_LABEL: Final = "tests/integration/test_label.py::"
_FAULTS: Final = "tests/acceptance/test_faults.py::"
OUTSIDE: Final[Mapping[str, str]] = {
    _LABEL + "test_a_probe_asks_each_server_once_for_all_slots": "the worker looks itself whether its server is there",
    _LABEL + "test_a_key_that_one_server_refuses_does_not_stop_the_others": (
        "the worker finds that out first, and ends; others go on: see test_workers"
    ),
    _LABEL + "test_a_server_that_is_not_there": (
        "the worker takes nothing meanwhile, so there is nothing for the home node to wait for: see test_workers"
    ),
    _FAULTS + "test_label_with_an_unreachable_model_waits_and_says_so_once": (
        "the home node says what its workers say, besides that nobody took a question: see test_worker_roster"
    ),
    _FAULTS + "test_a_model_that_refuses_ends_label_and_parks_run[options0-mock-refuses the key (HTTP 401); set "
    "CIVICSKY_LABEL__API_KEY]": "it is the worker that ends with 2; the home node waits for one whose key is accepted",
}
"""Tests that cannot hold with a worker between, and why. One that is not there fails the run."""
SLOTS: Final = 32
WAIT_SECONDS: Final = 3.0
THERE_SECONDS: Final = 3.0
"""So long a worker within the loop has to find its model; one that is not there it never finds."""
END_SECONDS: Final = 2
CALLS: Final = "calls by workers"
COMMANDS: Final = ("run", "label")
UNLIMITED: Final = dict.fromkeys(("requests_per_minute", "requests_per_day", "tokens_per_minute", "tokens_per_day"))
_open, _line, _turn = endpoint.open_endpoints, Endpoints.line, Endpoint.turn
_exchange, _close = Line.exchange, Line.close
_numbers = count()


class Way:
    """Dispatcher and worker of one server, within the test's loop."""

    def __init__(self, label: Label, url: str) -> None:
        workers = Workers(url=_nats[0].url, name=f"t{next(_numbers)}", wait_seconds=WAIT_SECONDS)
        own = label.model_copy(update={"model_url": url, "more_urls": (), **UNLIMITED})
        self.dispatcher = Dispatcher(workers, label.model, None, Metrics(), Stop())
        self.theirs, self._stop = _open(own), Stop()
        self.worker = Worker(Settings(label=own, workers=workers), self.theirs, SLOTS, self._stop)
        loop = asyncio.get_running_loop()
        self.tasks = [loop.create_task(self.dispatcher.run()), loop.create_task(self.worker.run())]
        self.lines: set[Line] = set()
        """By which it is asked."""
        self._is_there = False

    async def there(self) -> None:
        """Wait until the worker takes questions, as it does where a service has been running for a while."""
        if self._is_there:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(THERE_SECONDS):
                while self.worker.servers.why or not self.dispatcher._made:  # noqa: ASYNC110  (they need not know)
                    await asyncio.sleep(0.01)
        self._is_there = True

    async def end(self) -> None:
        """Finish calls, if that is quick; then cancel them."""
        if self._stop.requested.is_set():
            return
        self._stop.request("the test is over")
        await asyncio.wait(self.tasks[1:], timeout=END_SECONDS)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@dataclass
class Between:
    """What is between in the test that runs now, and what it did."""

    here: list[Way] = field(default_factory=list)
    beside: dict[str, tuple[str, "subprocess.Popen[str]"]] = field(default_factory=dict)
    """By the model's address: the workers' name, and the worker's process."""
    calls: int = 0
    """Made by workers that have ended."""
    direct: list[str] = field(default_factory=list)
    """Who went to a model without a worker, or could have."""


_now = Between()
_nats: list[NatsServer] = []


# ---- what is put between ----


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
    way = Way(label, url)
    _now.here.append(way)
    return way.dispatcher


def _ways(endpoints: Endpoints) -> list[Way]:
    return [way for way in _now.here if any(server.far is way.dispatcher for server in endpoints.servers)]


async def _turned(server: Endpoint, tokens: int) -> Call:
    """The turn of a call, whose worker is there then."""
    for way in _now.here:
        if server.far is way.dispatcher:
            await way.there()
    return await _turn(server, tokens)


def _lined(endpoints: Endpoints) -> Line:
    line = _line(endpoints)
    for way in _ways(endpoints):
        way.lines.add(line)
    return line


async def _closed(line: Line) -> None:
    """When nobody can ask any more by a worker, it ends, and its connections with it."""
    await _close(line)
    for way in _ways(line._endpoints):
        way.lines.discard(line)
        if not way.lines:
            await way.end()


def between(args: Sequence[str], settings: dict[str, Any]) -> tuple[Sequence[str], dict[str, Any]]:
    """With what a command asks by a worker, which is there then."""
    if args[0] not in COMMANDS or "--model-url" not in args:
        return args, settings
    at = args.index("--model-url")
    url, model = args[at + 1], args[args.index("--model") + 1]
    if url not in _now.beside or _now.beside[url][1].poll() is not None:
        if url in _now.beside:
            _now.calls += _calls_of(_now.beside[url][1])
        name = f"c{next(_numbers)}"
        asks = {key: value for key, value in settings.items() if key.startswith("label__") and "per_" not in key}
        process = subprocess.Popen(
            [command.CIVICSKY, "label", "--worker", _nats[0].url, "--model-url", url, "--model", model],
            env=command.environment(
                **{**asks, "label__slots": SLOTS, "workers__name": name, "limits__drain_seconds": END_SECONDS}
            ),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        _now.beside[url] = (name, process)
    ours = {
        "workers__url": _nats[0].url, "workers__name": _now.beside[url][0], "workers__wait_seconds": WAIT_SECONDS
    }  # fmt: skip
    return [*args[:at], *args[at + 2 :]], {**settings, **ours}


@pytest.fixture(scope="session", autouse=True)
def _over_workers() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, nats_server(Path(folder) / "nats") as nats:
        _nats.append(nats)
        command.between = between
        yield
        command.between = None


@pytest.fixture(autouse=True)
async def _asks_by_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    global _now
    if hasattr(request.module, "open_endpoints"):
        monkeypatch.setattr(request.module, "open_endpoints", opened)
    for owner, name, ours in PATCHES:
        monkeypatch.setattr(owner, name, ours)
    yield
    await asyncio.gather(*(way.end() for way in _now.here))
    _now.calls += sum(way.worker.done for way in _now.here)
    for _, process in _now.beside.values():
        process.terminate()
    _now.calls += sum(_calls_of(process) for _, process in _now.beside.values())
    request.node.user_properties.append((CALLS, _now.calls))
    over, _now = _now, Between()
    assert over.direct == [], "somebody asks a model without a worker"


def _calls_of(process: "subprocess.Popen[str]") -> int:
    """How many calls a worker says that it made, once it has been told to end."""
    try:
        out, _ = process.communicate(timeout=3 * END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    told = re.search(r"([\d,]+) calls made", out)
    return int(told[1].replace(",", "")) if told else 0


# ---- that it is between ----


async def _watched(line: Line, server: Endpoint, method: str, path: str, content: bytes, seconds: float) -> Came:
    """A call that is really sent: only workers may."""
    if not any(line._endpoints is way.theirs for way in _now.here):
        _now.direct.append(f"{method} {path} to {server.name}")
    return await _exchange(line, server, method, path, content, seconds)


PATCHES: Final = (
    (Line, "exchange", _watched), (Line, "close", _closed), (Endpoints, "line", _lined), (Endpoint, "turn", _turned)
)  # fmt: skip


def _started(event: str, args: tuple[Any, ...]) -> None:
    """A process starts: of our commands, only workers may be told where a model is."""
    if event == "subprocess.Popen" and isinstance(args[1], list | tuple):
        words = [str(word) for word in args[1]]
        asks = len(words) > 1 and words[0] == command.CIVICSKY and words[1] in COMMANDS
        if asks and "--model-url" in words and "--worker" not in words:
            _now.direct.append(" ".join(words))


sys.addaudithook(_started)


class _Counted:
    """How many calls workers made for the tests of each file."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        """Whether the tests of a file are all there."""
        self.calls: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            told = [n for name, n in report.user_properties if name == CALLS and isinstance(n, int)]
            self.calls[report.nodeid.partition("::")[0]] += sum(told)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.silent and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for name, why in OUTSIDE.items():
            if name.partition("::")[0] in self.calls:
                terminalreporter.write_line(f"left out {name}: {why}")
        terminalreporter.write_line(f"workers made {self.calls.total():,} calls for these tests")
        for name in self.silent:
            terminalreporter.write_line(f"FAILED {name}: no worker made a call for it, so it shows nothing here")

    @property
    def silent(self) -> list[str]:
        """Files for which workers made no call."""
        return [name for name, calls in self.calls.items() if not calls] if self.whole else []


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # beside others, the one who gathers what they report
        config.pluginmanager.register(_Counted(whole=_is_whole(config)), "over_workers_counted")


def _is_whole(config: pytest.Config) -> bool:
    return not config.option.keyword and not any("::" in arg for arg in config.args)


@pytest.hookimpl(tryfirst=True)  # before others leave tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out those that are outside."""
    there = {item.nodeid for item in items}
    files = {name.partition("::")[0] for name in there}
    gone = [name for name in OUTSIDE if name.partition("::")[0] in files and name not in there]
    if gone and _is_whole(config):
        raise pytest.UsageError(f"OUTSIDE names tests that are not there: {', '.join(gone)}")
    out = [item for item in items if item.nodeid in OUTSIDE]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item.nodeid not in OUTSIDE]
