"""The ways to tell people and the outbox, against a real HTTP server, real processes and a real file."""

import asyncio
import datetime as dt
import json
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from civicsky.errors import BadInput, Doubtful, Refused, Transient
from civicsky.model import now_us
from civicsky.notify import outbox
from civicsky.notify.notices import Notice, Seen, Who, message
from civicsky.notify.outbox import Delivery, State, Way
from civicsky.notify.ways import Command, Webhook
from civicsky.settings import Notify
from support.webhook import HUGE, Webhook as Server, webhook

SECRET = "hunter2-in-the-path"
AT = 1_800_000_000_000_000
WHO = Who("lab", "node7", "/data", "collect", "1")
TOLD = message(Notice("problem", "relay_down", "says <!channel> & @everyone", AT, AT), WHO, "id-1")


@pytest.fixture
def server() -> Iterator[Server]:
    with webhook(f"/{SECRET}") as hook:
        yield hook


@pytest.fixture
def events() -> Iterator[Callable[[str], list[Any]]]:
    """The log's lines of one event so far."""
    with capture_logs() as logs:
        yield lambda name: [line for line in logs if line["event"] == name]


def settings(**values: Any) -> Notify:
    return Notify(**{"timeout_seconds": 10, **values})


async def sent(way: Way, told: dict[str, Any] = TOLD) -> None:
    try:
        await way.send(told)
    finally:
        await way.close()


# ---- webhook ---------------------------------------------------------------------------------------------------------


async def test_each_format_has_the_body_that_its_receivers_take_and_calls_nobody(server: Server) -> None:
    for form in ("json", "slack", "discord", "plain"):
        await sent(Webhook(settings(url=server.url, format=form)))
    whole, slack, discord, plain = server.heard
    assert whole.values == TOLD
    assert list(slack.values) == ["text"]
    assert "&lt;!channel&gt; &amp; @everyone" in slack.values["text"]
    assert discord.values == {"content": TOLD["text"], "allowed_mentions": {"parse": []}}
    assert plain.body.decode() == TOLD["text"]
    assert [one.headers["Content-Type"].partition(";")[0] for one in server.heard] == ["application/json"] * 3 + [
        "text/plain"
    ]
    assert {one.path for one in server.heard} == {f"/{SECRET}"}


async def test_a_token_goes_into_the_header_and_without_one_there_is_none(server: Server) -> None:
    await sent(Webhook(settings(url=server.url, token="tk-1")))
    await sent(Webhook(settings(url=server.url)))
    assert [one.headers.get("Authorization") for one in server.heard] == ["Bearer tk-1", None]


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        ("500", Transient), ("503", Transient), ("429", Transient), ("408", Transient), ("hang_up", Doubtful),
        ("302", Refused), ("307", Refused), ("308", Refused), ("401", Refused), ("403", Refused), ("404", Refused),
        ("410", Refused), ("400", BadInput), ("413", BadInput),
    ],
)  # fmt: skip
async def test_each_failure_means_what_its_caller_must_do_and_never_tells_the_address(
    behave: str, kind: type[Exception], server: Server
) -> None:
    server.behave = behave
    with pytest.raises(kind) as caught:
        await sent(Webhook(settings(url=server.url)))
    assert type(caught.value) is kind
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert [one.path for one in server.heard] == [f"/{SECRET}"], "no redirect is followed"


async def test_a_server_may_ask_for_time(server: Server) -> None:
    server.behave, server.retry_after = "429", "17"
    with pytest.raises(Transient) as caught:
        await sent(Webhook(settings(url=server.url)))
    assert caught.value.retry_after == 17


async def test_nobody_there_is_a_failure_that_surely_did_not_arrive(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(Transient) as caught:
            await sent(Webhook(settings(url=f"http://127.0.0.1:{taken.getsockname()[1]}/{SECRET}")))
    assert type(caught.value) is Transient
    assert SECRET not in str(caught.value)


async def test_a_slow_server_is_given_up_in_time_and_the_message_may_have_arrived(server: Server) -> None:
    server.behave = "slow"
    with pytest.raises(Doubtful):
        await sent(Webhook(settings(url=server.url, timeout_seconds=0.2)))


@pytest.mark.parametrize("behave", ["huge", "drip"])
async def test_an_answer_without_end_has_arrived_and_is_not_read(behave: str, server: Server) -> None:
    server.behave = behave
    await sent(Webhook(settings(url=server.url)))
    assert server.written < HUGE


def certificate(folder: Path) -> ssl.SSLContext:
    """One for 127.0.0.1 that nobody has reason to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_a_server_whose_certificate_is_not_trusted_is_told_nothing(tmp_path: Path) -> None:
    with webhook(context=certificate(tmp_path)) as server:
        with pytest.raises(Transient) as caught:
            await sent(Webhook(settings(url=server.url, token="tk-1")))
        assert type(caught.value) is Transient
        assert server.heard == []


async def test_a_proxy_of_the_environment_is_used_and_is_not_shown_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with proxy:
        with pytest.raises(Transient):
            await sent(Webhook(settings(url=f"https://chat.invalid/{SECRET}")))
    assert asked[0].startswith(b"CONNECT chat.invalid:443 ")
    assert SECRET.encode() not in asked[0]


@pytest.mark.parametrize("proxy", ["no address", "http://[::1", "socks5://127.0.0.1:1", "ftp://x"])
async def test_a_proxy_that_is_none_is_a_failure_like_others(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(Transient):
        await sent(Webhook(settings(url=f"https://chat.invalid/{SECRET}")))


# ---- command ---------------------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> str:
    file = folder / "tell"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o700)
    return str(file)


async def test_a_command_gets_the_message_on_its_input_and_a_bare_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVICSKY_LABEL__API_KEY", "sk-hunter3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter4")
    tell = script(
        tmp_path, f'cat > {tmp_path}/in; env > {tmp_path}/env; echo "$1" > {tmp_path}/arg; pwd > {tmp_path}/cwd'
    )
    await sent(Command(settings(command=(tell, "$(touch x); a b")), asyncio.subprocess.DEVNULL))
    assert json.loads((tmp_path / "in").read_text()) == TOLD
    assert (tmp_path / "arg").read_text() == "$(touch x); a b\n", "no shell looks at it"
    found = (tmp_path / "env").read_text()
    assert "hunter" not in found
    names = {line.partition("=")[0] for line in found.splitlines() if "=" in line}
    shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    told = {f"NOTIFY_{name}" for name in ("KIND", "PROBLEM", "WHY", "NAME", "ROLE", "TEXT")}
    assert names - shell == {"PATH", "HOME", "LANG"} | told
    assert "NOTIFY_PROBLEM=relay_down" in found.splitlines()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"waited in vain for: {what}"
        await asyncio.sleep(0.01)


async def test_a_command_that_is_late_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    tell = script(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; wait")
    for seconds in (0.3, 3, 30):  # a machine that is busy needs longer to start it
        with pytest.raises(Doubtful, match=f"took longer than {seconds} s"):
            await sent(Command(settings(command=(tell,), timeout_seconds=seconds), asyncio.subprocess.DEVNULL))
        if (tmp_path / "self").exists() and (tmp_path / "self").read_text():
            break
    for name in ("child", "self"):
        pid = int((tmp_path / name).read_text())
        await until(lambda: not lives(pid), f"the end of {name}")  # noqa: B023


async def test_a_command_that_is_cancelled_is_killed_too(tmp_path: Path) -> None:
    tell = script(tmp_path, f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/self; sleep 1000")
    task = asyncio.create_task(sent(Command(settings(command=(tell,)), asyncio.subprocess.DEVNULL)))
    await until((tmp_path / "self").exists, "the command to start")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not lives(int((tmp_path / "self").read_text())), "its end")


@pytest.mark.parametrize(
    ("text", "says"), [("exit 75", "exit code 75"), ("kill -9 $$", "signal 9"), ("exec <&-; exit 1", "exit code 1")]
)
async def test_a_command_that_fails_is_tried_again_whatever_it_did_with_its_input(
    text: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(Transient, match=says) as caught:
        await sent(Command(settings(command=(script(tmp_path, text),)), asyncio.subprocess.DEVNULL))
    assert type(caught.value) is Transient


@pytest.mark.parametrize("words", [("/nowhere/tell",), ("/etc/hostname",), ("/",)])
async def test_a_command_that_cannot_be_run_wants_a_person(words: tuple[str, ...]) -> None:
    with pytest.raises(Refused, match="cannot be run"):
        await sent(Command(settings(command=words), asyncio.subprocess.DEVNULL))


# ---- the file --------------------------------------------------------------------------------------------------------


def state(folder: Path, *ways: str) -> State:
    return State(folder / "notified-collect.json", ways or ("webhook",))


def with_a_problem(folder: Path, n: int = 1) -> State:
    found = state(folder)
    found.book.meet(Seen("relay_down", "refused", AT, wanting=True), Notify(), AT)
    for number in range(n):
        found.put({**TOLD, "id": str(number), "at_us": AT})
    found.running = AT
    return found


def test_the_state_comes_back_as_it_was_and_is_for_the_owner_alone(tmp_path: Path) -> None:
    before = with_a_problem(tmp_path, 3)
    before.write(before.as_text())
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    after = state(tmp_path)
    after.load()
    assert (after.book, after.outboxes, after.running) == (before.book, before.outboxes, AT)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"book": {}}', b"{}" * 3_000_000, b'{"a":' * 100_000],
)
def test_a_file_that_cannot_be_used_is_an_empty_state(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notified-collect.json").write_bytes(content)
    found = state(tmp_path)
    found.load()
    assert (found.book.problems, found.outboxes, found.running) == ({}, {"webhook": []}, None)


def test_a_message_that_could_not_be_sent_is_not_taken_from_the_file(tmp_path: Path) -> None:
    before = with_a_problem(tmp_path)
    values = json.loads(before.as_text())
    values["outboxes"]["webhook"][0]["text"] = ["no", "text"]
    (tmp_path / "notified-collect.json").write_text(json.dumps(values))
    found = state(tmp_path)
    found.load()
    assert found.outboxes == {"webhook": []}


def test_on_a_full_disk_the_state_is_written_into_the_room_that_the_file_has(
    tmp_path: Path, events: Callable[[str], list[Any]]
) -> None:
    before = state(tmp_path)
    before.write(before.as_text())
    (tmp_path / "notified-collect.new").symlink_to("/dev/full")  # whoever writes there is told that there is no space
    full = with_a_problem(tmp_path)
    full.write(full.as_text())
    after = state(tmp_path)
    after.load()
    assert after.book == full.book
    assert events("notify_unsaved") == []
    (tmp_path / "notified-collect.new").symlink_to("/dev/full")
    much = with_a_problem(tmp_path, 50)
    much.write(much.as_text())
    after.load()
    assert after.book == full.book, "what has no room leaves it as it was"
    assert len(events("notify_unsaved")) == 1


def test_of_more_messages_than_may_wait_the_oldest_are_given_up(tmp_path: Path) -> None:
    found = with_a_problem(tmp_path, outbox.WAITING)
    assert found.put({**TOLD, "id": "new", "at_us": AT}) == 1
    assert [one["id"] for one in found.outboxes["webhook"]] == [*map(str, range(1, outbox.WAITING)), "new"]


# ---- delivery --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds."""
    for name in ("PAUSE_SECONDS", "DOUBTFUL_SECONDS", "PAUSE_MAX_SECONDS"):
        monkeypatch.setattr(outbox, name, 0.002)


class Post:
    """A delivery with its outbox, which counts how often it was saved."""

    def __init__(self, way: Way) -> None:
        self.waiting: list[dict[str, Any]] = []
        self.saved: list[list[str]] = []
        self.closing = asyncio.Event()
        self.delivery = Delivery(way, self.waiting, self.closing, self._save)
        self.task = asyncio.create_task(self.delivery.run())

    async def _save(self) -> None:
        self.saved.append([one["id"] for one in self.waiting])

    def put(self, number: str, age_seconds: float = 0) -> None:
        self.waiting.append({**TOLD, "id": number, "at_us": now_us() - round(age_seconds * 1e6)})
        self.delivery.news.set()

    async def end(self) -> None:
        self.closing.set()
        self.delivery.news.set()
        await self.task
        await self.delivery._way.close()


@pytest.mark.usefixtures("quick")
async def test_messages_come_in_order_each_is_saved_before_it_is_sent_and_goes_when_it_has_arrived(
    server: Server,
) -> None:
    post = Post(Webhook(settings(url=server.url)))
    for number in ("1", "2", "3"):
        post.put(number)
    await until(lambda: not post.waiting, "all to be sent")
    await post.end()
    assert [one.values["id"] for one in server.heard] == ["1", "2", "3"]
    assert post.saved[0] == ["1", "2", "3"]
    assert post.saved[-1] == []
    assert not {"at_us", "doubts"} & set(server.heard[0].values)


@pytest.mark.usefixtures("quick")
async def test_a_webhook_that_is_down_for_a_while_gets_everything_later_and_the_log_has_one_line_for_each_change(
    server: Server, events: Callable[[str], list[Any]]
) -> None:
    server.behave = "503"
    post = Post(Webhook(settings(url=server.url)))
    post.put("1")
    post.put("2")
    await until(lambda: len(server.heard) >= 5, "some attempts")
    server.behave = "ok"
    await until(lambda: not post.waiting, "all to be sent")
    await post.end()
    ids = [one.values["id"] for one in server.heard]
    assert (set(ids[:-1]), ids[-1]) == ({"1"}, "2")
    (down,), (up,) = events("notify_down"), events("notify_up")
    assert (down["why"], down["way"]) == ("the webhook answers HTTP 503", "webhook")
    assert up["given_up"] == 0


@pytest.mark.usefixtures("quick")
async def test_a_message_that_is_not_taken_keeps_no_other_from_being_sent(
    server: Server, events: Callable[[str], list[Any]]
) -> None:
    server.behave = "400"
    post = Post(Webhook(settings(url=server.url)))
    post.put("bad")
    await until(lambda: not post.waiting, "it to be given up")
    server.behave = "ok"
    post.put("good")
    await until(lambda: not post.waiting, "the other to be sent")
    await post.end()
    assert [one.values["id"] for one in server.heard] == ["bad", "good"]
    assert [line["given_up"] for line in events("notify_down")] == [1]


@pytest.mark.usefixtures("quick")
async def test_what_could_not_be_sent_for_a_day_is_given_up_with_a_line_in_the_log(
    server: Server, events: Callable[[str], list[Any]]
) -> None:
    post = Post(Webhook(settings(url=server.url)))
    post.put("old", outbox.KEPT_SECONDS + 1)
    post.put("young", outbox.KEPT_SECONDS - 60)
    await until(lambda: not post.waiting, "an end")
    await post.end()
    assert [one.values["id"] for one in server.heard] == ["young"]
    assert [(line["why"], line["given_up"]) for line in events("notify_down")] == [("not sent for a day", 1)]


@pytest.mark.usefixtures("quick")
async def test_whoever_takes_messages_without_saying_so_gets_none_of_them_for_ever(server: Server) -> None:
    server.behave = "hang_up"
    post = Post(Webhook(settings(url=server.url)))
    post.put("1")
    await until(lambda: not post.waiting, "it to be given up")
    await post.end()
    assert [one.values["id"] for one in server.heard] == ["1"] * outbox.DOUBTS


async def test_after_a_doubt_a_minute_passes_and_a_pause_is_at_most_an_hour() -> None:
    assert outbox._pause_after(Transient("away"), 0) == 1
    assert outbox._pause_after(Transient("away"), 1) == 2
    assert outbox._pause_after(Transient("away", 17), 1) == 17
    assert outbox._pause_after(Doubtful("away"), 0) == 60
    assert outbox._pause_after(Refused("away"), 3000) == outbox._pause_after(Transient("away", 10**9), 0) == 3600


async def test_the_end_tries_what_waits_once_more_at_once_and_does_not_wait_for_a_pause(server: Server) -> None:
    server.behave = "503"
    post = Post(Webhook(settings(url=server.url)))
    post.put("1")
    await until(lambda: server.heard and post.delivery._pause, "a pause")
    server.behave = "ok"
    await post.end()
    assert post.waiting == []
    post = Post(Webhook(settings(url=server.url)))
    server.behave = "503"
    post.put("2")
    await post.end()
    assert [one["id"] for one in post.waiting] == ["2"], "the next start sends it"


def test_the_room_of_a_file_is_enough_for_a_crash_loop(tmp_path: Path) -> None:
    found = state(tmp_path)
    found.write(found.as_text())
    size = (tmp_path / "notified-collect.json").stat().st_size
    assert len(with_a_problem(tmp_path, 2).as_text()) < size
