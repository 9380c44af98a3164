"""A worker's own servers of its model: which of them can be used now, and the call that a job asks for."""

from http import HTTPStatus
from time import monotonic
from typing import Final

from civicsky import log, pace
from civicsky.endpoint import MAX_ANSWER_BYTES, Endpoint, Endpoints, Line, clock
from civicsky.errors import BadInput, Refused, Transient
from civicsky.lifecycle import Stop
from civicsky.settings import Label
from civicsky.workers import messages
from civicsky.workers.messages import Job, Result
from civicsky.workers.rests import Rests

PROBE_SECONDS: Final = 10.0
"""For so long a server may say nothing when it is asked whether it is there."""
SHORTEST_KEY: Final = 8
"""A shorter one (`none`, `x`) is a stopgap for servers that want none, and may well be part of an answer."""
NOT_READY: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""What a server says that is there, but loads its model, or has too much to do."""


class Servers:
    """At first all of them have to be seen to be there."""

    def __init__(self, label: Label, endpoints: Endpoints, stop: Stop) -> None:
        """`stop` is requested when one refuses us: then others shall have the jobs."""
        self._label, self._stop = label, stop
        self._named = {server.name: server for server in endpoints.servers}
        self._rests = Rests(self._named, label.pause_seconds, label.pause_max_seconds)
        self._key = label.api_key.get_secret_value().encode()
        self.refused = ""
        """Why one refuses us."""

    @property
    def names(self) -> str:
        """All of them, for people."""
        return ", ".join(self._named)

    @property
    def why(self) -> str:
        """Why none can be used now; empty while one can."""
        return self._rests.why

    async def look(self, line: Line) -> None:
        """See whether those can be used again whose rest is over."""
        for name, gone in self._rests.due(monotonic()):
            if not gone or await self._is_there(line, self._named[name]):
                self._rests.over(name)
                log.event("workers_working", stage="label", server=name)

    async def call(self, line: Line, job: Job, blank: Result) -> Result:
        """Make the call; `blank` is the worker's result as far as it is known."""
        free = self._rests.free()
        server = min(self._named.values(), key=lambda one: (one.name not in free, one.load))
        path = job.path if job.path != "/version" else server.base_url().removesuffix("/v1") + job.path
        result, began = blank._replace(by=server.name), monotonic()
        server.load += 1
        try:
            came = await line.exchange(server, job.method, path, job.body, job.seconds)
        except Transient as error:
            self._rest(server.name, str(error), began)
            return result._replace(kind="unreachable", why=str(error))
        except BadInput as bad:
            return result._replace(kind="unusable", why=bad.reason, body=self._without_key(bad.raw))
        except Refused as error:  # the proxy that our environment names
            self.refused = str(error)
            self._stop.request("the model cannot be asked")
            return result._replace(kind="unreachable", why=f"model at {server.name} cannot be reached by its worker")
        finally:
            server.load -= 1
        self._heed(server, came.status)
        if came.status == HTTPStatus.OK:
            self._rests.answered(server.name)
        told = messages.told_headers(came.headers)
        headers = {name: self._without_key(value).decode() for name, value in told.items()}
        return result._replace(status=came.status, headers=headers, body=self._without_key(came.text))

    def rest(self, result: Result, began: float) -> None:
        """The home node gives to another worker what came of a call that began then."""
        after = pace.retry_after(result.headers, clock()) or 0.0
        why = result.why or _says(result.by, result.status)
        self._rest(result.by, why, began, after=after, gone=result.kind != "reply")

    async def _is_there(self, line: Line, server: Endpoint) -> bool:
        """Whether it answers, whatever it says, unless that is that it does not want us, or is not ready."""
        began = monotonic()
        try:
            seconds = min(PROBE_SECONDS, self._label.request_seconds)
            came = await line.exchange(server, "GET", "/models", b"", seconds)
        except BadInput:
            return True
        except Transient as error:
            self._rests.failed(server.name, str(error), began, monotonic())
            return False
        self._heed(server, came.status)
        if came.status not in NOT_READY:
            return True
        after = pace.retry_after(came.headers, clock()) or 0.0
        self._rests.failed(server.name, _says(server.name, came.status), began, monotonic(), after=after)
        return False

    def _heed(self, server: Endpoint, status: int) -> None:
        if status == HTTPStatus.UNAUTHORIZED:
            self.refused = (
                f"label: the model's server at {server.name} refuses the key (HTTP 401); "
                "set CIVICSKY_LABEL__API_KEY and start again"
            )
            self._stop.request("the model refuses the key")

    def _rest(self, name: str, why: str, began: float, *, after: float = 0.0, gone: bool = True) -> None:
        if self._rests.failed(name, why, began, monotonic(), after=after, gone=gone):
            log.event("workers_resting", stage="label", server=name, why=why)

    def _without_key(self, text: str) -> bytes:
        body = text.encode(errors="replace")[: MAX_ANSWER_BYTES + 1]
        return body.replace(self._key, b"***") if len(self._key) >= SHORTEST_KEY else body


def _says(name: str, status: int) -> str:
    return f"model at {name} answers HTTP {status}"
