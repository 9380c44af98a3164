"""The ways to tell people: a webhook, and a command of theirs. One message at a time; another home of httpx.

Every way in which one can fail becomes one of four: `Transient` (it cannot just now), `Doubtful` (the same, but the
message may have arrived), `Refused` (a person must act), `BadInput` (only this message is not taken). What is told is
`notices`', when and how often is `outbox`'s.

The webhook's address is a secret, and so may be what a server or a command says: no message, log line or error has it.
"""

import asyncio
import json
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, Final
from urllib.parse import urlsplit

from civicsky import __version__, pace
from civicsky.errors import EXIT_DONE, EXIT_FAILED, BadInput, Doubtful, Refused, Transient, Usage
from civicsky.lean import without
from civicsky.model import now_us
from civicsky.notify.notices import Notice, Who, message
from civicsky.settings import Notify, Settings, expanded, is_loopback

with without("click", "rich"):  # its own command line
    import httpx

NONE_SET: Final = "nobody is told: set notify.url (CIVICSKY_NOTIFY__URL) or notify.command, and try again"
_NOT_THIS: Final = frozenset({400, 413, 415, 422})
"""Statuses that refuse one message, not all."""
_LATER: Final = frozenset({408, 409, 425, 429})
_HALF_WAY: Final = (TimeoutError, httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError)
"""How a call ends that may have been heard."""
_DISCORD_CHARS: Final = 1900
_STANDARD_ERROR: Final = 2
_KILLED_SECONDS: Final = 2.0


class Webhook:
    """Sends messages by POST. Redirects are not followed, certificates are verified, answers are not read."""

    name = "webhook"

    def __init__(self, settings: Notify) -> None:
        self._settings = settings
        self._client: httpx.AsyncClient | None = None

    async def send(self, message: dict[str, Any]) -> None:
        """See `outbox.Way`."""
        url, seconds = self._settings.url.get_secret_value(), self._settings.timeout_seconds
        body, kind = body_of(message, self._settings.format)
        try:
            # The client's own bound is for each read; a server may drip for ever. The answer's body stays unread.
            async with asyncio.timeout(seconds):
                client = self._client or await self._open(url)
                async with client.stream("POST", url, content=body, headers={"Content-Type": kind}) as response:
                    status, after = response.status_code, pace.retry_after(response.headers, time())
        except _HALF_WAY as error:
            raise Doubtful(f"the webhook does not answer ({type(error).__name__})") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:
            # Its words may quote the address; those of its kind are enough.
            raise Transient(f"the webhook cannot be reached ({type(error).__name__})") from None
        _judge(status, after)

    async def close(self) -> None:
        """See `outbox.Way`."""
        if self._client is not None:
            await self._client.aclose()

    async def _open(self, url: str) -> httpx.AsyncClient:
        parts, token = urlsplit(url), self._settings.token.get_secret_value()
        # Some hundred certificates are read; a server of this machine without TLS needs none.
        trusted = (
            await asyncio.to_thread(httpx.create_ssl_context)
            if parts.scheme == "https"
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )
        self._client = httpx.AsyncClient(
            timeout=self._settings.timeout_seconds,
            headers={
                "User-Agent": f"civicsky/{__version__}",
                "Accept-Encoding": "identity",
                "Connection": "close",  # the next message may be a day away
                **({"Authorization": f"Bearer {token}"} if token else {}),
            },
            trust_env=not is_loopback(parts.hostname or ""),
            verify=trusted,
            follow_redirects=False,
        )
        return self._client


def body_of(message: dict[str, Any], form: str) -> tuple[bytes, str]:
    """(body, its type) in one of the formats of `notify.format`. No far side's words call people or make links."""
    if form == "plain":
        return message["text"].encode(), "text/plain; charset=utf-8"
    values: dict[str, Any] = message
    if form == "slack":
        text = message["text"].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        values = {"text": text}
    if form == "discord":
        values = {"content": message["text"][:_DISCORD_CHARS], "allowed_mentions": {"parse": []}}
    return json.dumps(values).encode(), "application/json"


def _judge(status: int, after: float | None) -> None:
    if httpx.codes.is_success(status):
        return
    if status in _NOT_THIS:
        raise BadInput(f"the webhook does not take it: HTTP {status}; see notify.format")
    if httpx.codes.is_redirect(status):
        raise Refused(f"the webhook answers HTTP {status}, a redirect, which is not followed: correct notify.url")
    if httpx.codes.is_client_error(status) and status not in _LATER:
        raise Refused(f"the webhook refuses us with HTTP {status}: correct notify.url or notify.token")
    raise Transient(f"the webhook answers HTTP {status}", after)


# ---- command -------------------------------------------------------------------------------------------------------


class Command:
    """Runs a program for each message, in a process group of its own, which is killed when it is late.

    It inherits nothing of our environment but where programs and a home are: our secrets may stand there.
    """

    name = "command"

    def __init__(self, settings: Notify, output: int | None) -> None:
        self._words, self._seconds, self._output = settings.command, settings.timeout_seconds, output

    async def send(self, message: dict[str, Any]) -> None:
        """See `outbox.Way`."""
        try:
            child = await asyncio.create_subprocess_exec(
                *self._words,
                stdin=asyncio.subprocess.PIPE,
                stdout=_STANDARD_ERROR if self._output is None else self._output,
                stderr=self._output,
                env=bare_environment(message),
                cwd="/",
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise Refused(f"notify.command cannot be run: {why}; correct it, with the program's whole path") from None
        try:
            async with asyncio.timeout(self._seconds):
                await child.communicate(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise Doubtful(f"notify.command took longer than {self._seconds:g} s, and was killed") from None
        finally:
            await _end(child)
        if child.returncode:
            raise Transient(f"notify.command ended with {_code(child.returncode)}")

    async def close(self) -> None:
        """See `outbox.Way`."""


def bare_environment(message: dict[str, Any]) -> dict[str, str]:
    """All that a command finds: the path, a home, a language, and the message's main fields."""
    told = {"KIND": "kind", "PROBLEM": "problem", "WHY": "why", "NAME": "name", "ROLE": "role", "TEXT": "text"}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        **{f"NOTIFY_{variable}": message[field] for variable, field in told.items()},
    }


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kill a child that still runs, and its group. One that cannot be killed, or hangs in the kernel, is left alone."""
    if child.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILLED_SECONDS):
                await child.wait()


def _code(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"


# ---- both ----------------------------------------------------------------------------------------------------------


def ways_of(settings: Notify, *, output: int | None = asyncio.subprocess.DEVNULL) -> list[Webhook | Command]:
    """The ways that the settings choose; a command's own output goes to `output`, None: to standard error."""
    ways: list[Webhook | Command] = [Webhook(settings)] if settings.url.get_secret_value() else []
    return [*ways, Command(settings, output)] if settings.command else ways


def who(settings: Settings, folder: Path, role: str) -> Who:
    """Who says what this process tells."""
    host, config = socket.gethostname(), str(settings.file or "")
    return Who(settings.notify.name or f"{host} {folder}", host, str(folder), role, __version__, config)


async def test(settings: Settings, say: Callable[[str], None], complain: Callable[[str], None]) -> int:
    """Send a test message by each way and say whether it arrived; gives the exit code. Raises `Usage` without a way."""
    if not settings.notify.chosen:
        raise Usage(NONE_SET)
    folder, now = expanded(settings.data_dir), now_us()
    notice = Notice("test", "test", "", now, now)
    told = message(notice, who(settings, folder, "notify"), secrets.token_hex(8))
    codes = [EXIT_DONE]
    for way in ways_of(settings.notify, output=None):
        try:
            await way.send(told)
            say(f"{way.name}: arrived")
        except (Transient, Refused) as error:
            complain(str(error))
            codes.append(error.exit_code)
        except BadInput as bad:
            complain(bad.reason)
            codes.append(EXIT_FAILED)
        finally:
            await way.close()
    return max(codes)
