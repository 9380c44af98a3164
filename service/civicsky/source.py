"""Holds the firehose's websocket: connects at the cursor, reconnects, yields messages in order.

It knows cursors, epochs, liveness and backoff, and counts what arrived. Which library reads the socket is the business
of `line/`. It does not decode: its caller tells it, after each message, the sequence number that was in it. Outside of
`source.window` it is not connected (see `opening.py`).
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, suppress
from itertools import islice, pairwise
from math import inf
from time import monotonic
from typing import Final, NamedTuple

from civicsky import faults, log
from civicsky.clock import Clock, skew_seconds
from civicsky.errors import Transient
from civicsky.line.connecting import check, way_to
from civicsky.line.shape import HandshakeRefused, Line, LineClosed, LineError
from civicsky.metrics import Metrics
from civicsky.model import Arrival, FrameOutcome, Gap, GapCause, Handful, Opened, Opening, Position, made, now_us
from civicsky.opening import Gate
from civicsky.settings import Source as SourceSettings

PATH: Final = "/xrpc/com.atproto.sync.subscribeRepos"
WINDOW: Final = 0
"""The cursor that asks for everything a relay still has. Never stored."""
BAD_IN_A_ROW: Final = 10
REMEMBERED: Final = 4096
"""Numbers of one connection that are remembered: some 10 s of the whole network."""
HIGHER_BOUND: Final = 4
"""Times `max_frame_bytes`, for one attempt."""


class Reached(NamedTuple):
    """What a relay said when its stream was opened for a moment."""

    first: bytes | str | None
    """Its first message, if one came in time: a quiet relay is not a dead one."""
    date: str
    """Its clock, as the handshake told it (an HTTP date); empty when it did not."""


async def reach(relay: str, settings: SourceSettings, listen_seconds: float) -> Reached:
    """Open a relay's stream live, and close it again. Raises `Transient`, which says why it cannot be had."""
    first = None
    way = way_to(relay + PATH, settings.client)
    try:
        async with aclosing(await way.open(settings.connect_seconds, settings.max_frame_bytes)) as line:
            with suppress(TimeoutError):
                async with asyncio.timeout(listen_seconds):
                    first, *_ = await line.receive()
            return Reached(first, line.date)
    except (OSError, TimeoutError, LineError) as error:
        raise Transient(f"relay {relay} cannot be had: {_why(error)}") from error


class Source:
    """One reader's hold on the stream of the first relay that can be reached.

    `positions` are the committed positions of every relay in `settings.relays`. In memory a handful of messages waits,
    and what the line reads ahead (see `line/`); after that TCP makes the relay wait. `opened` is the newest opening
    that the journal knows, `held_until` by host the time of the last events held. Raises `Usage` when the client that
    `settings.client` asks for is not installed.
    """

    def __init__(
        self,
        settings: SourceSettings,
        positions: Mapping[str, Position],
        metrics: Metrics,
        opened: Opened | None = None,
        held_until: Mapping[str, int] | None = None,
    ) -> None:
        check(settings.client)
        self._settings, self._positions, self._metrics = settings, positions, metrics
        self.gate = Gate(settings.window, metrics, opened)
        self._held_until = dict.fromkeys(positions) | dict(held_until or {})
        """By the window's clock; of what this process held, when it came."""
        self._back: Mapping[str, Position] = {}
        self._begun: set[str] = set()
        """Hosts without a cursor that are read from now on, with a gap noted already."""
        # Without a cursor of its own a host is read from its window's beginning when that was asked for, or when there
        # is something to follow on: doubles do no harm, a gap would.
        follows = settings.start == "window" or any(at.cursor is not None for at in positions.values())
        self._window: set[str] = set()
        self._from_the_beginning(*positions if follows else ())
        self._stopping = asyncio.Event()
        self._line: Line | None = None
        self._client_told = False
        self._waiting_since: float | None = None
        self._resumed_after: int | None = None
        self._arrived = self._link = self._failures = 0
        self._index = self._tries = 0
        self._fall_back: int | None = None
        self._prefer_at = inf
        self._first = True
        self._recent: deque[int] = deque(maxlen=REMEMBERED)
        self._floor = self._epoch = 0
        self._opening: Opening | None = None
        self._proved = False
        self._at_once = self._dropped = self._silent = False
        self._patience: asyncio.Timeout | None = None
        self._clock = Clock("handshake", metrics.clock_doubts)
        self._too_large = 0
        self._up: bool | None = None
        self._bad: list[str] = []
        self._bad_before: list[str] = []
        self._gaps: list[Gap] = []
        self.host = settings.relays[0]

    async def handfuls(self) -> AsyncGenerator[Handful, None]:
        """Yield the messages that are there, for ever, or until `stop`; reconnects by itself.

        Never raises for the relay's faults. The caller takes them in by `settle_all`, or else one by one: after each
        it must call `settle` or `settle_bad`, before it takes the next one. What it leaves comes again.
        """
        while not self._stopping.is_set():
            if not self.gate.is_open():
                self._rest()
                await self.gate.wait()
                continue
            self.host = self._settings.relays[self._index]
            for host, at in self._back.items():
                self._positions[host].cursor, self._positions[host].epoch = at.cursor, at.epoch
            self._back = {}
            self._leave_out_closed_hours()
            try:
                async with aclosing(await self._connect()) as line, aclosing(self._read(line)) as handfuls:
                    async for handful in handfuls:
                        yield handful
                await self._after_drop()
            except (OSError, TimeoutError, LineError) as error:
                error = TimeoutError() if self._silent else error
                await (self._after_drop() if self._dropped else self._back_off(error))

    async def _connect(self) -> Line:
        self._dropped = self._silent = False
        async with asyncio.timeout(None) as self._patience:  # ended by `stop`
            if self._stopping.is_set():
                raise TimeoutError
            bound = self._settings.max_frame_bytes * (HIGHER_BOUND if self._too_large else 1)
            way = way_to(self._url(), self._settings.client)
            if way.why and not self._client_told:
                self._client_told = True
                log.event("source_client", stage="source", host=self.host, client=way.client, why=way.why)
            return await way.open(self._settings.connect_seconds, bound)

    def go_back(self, positions: Mapping[str, Position]) -> None:
        """Forget what came behind these, the committed positions, before the next connection: it is not kept."""
        self._back = positions

    def settle(self, seq: int | None) -> FrameOutcome | None:
        """Take note of the last message's sequence number (None: it has none); says what is to become of it.

        None: it is new. `duplicate`: it was taken in before. `ignored`: the host was renumbered; a new epoch has begun
        and its window will be read again.
        """
        if self._bad:
            self._bad.clear()
        if seq is None:
            return None
        first, self._first = self._first, False
        position = self._positions[self.host]
        if position.cursor is None:
            self._follow_on()
        elif seq <= position.cursor:
            if first and seq < position.cursor:
                self.renumber()
                return "ignored"
            if seq <= self._floor or seq in self._recent:
                return "duplicate"
            self._remember(seq)  # it is late, not a double
            return None
        self._remember(seq)
        position.cursor = seq
        self._metrics.news += 1
        if not self._proved:
            self._prove()
        return None

    def settle_all(self, handful: Handful, seqs: Sequence[int | None]) -> list[Arrival] | None:
        """Take in a whole handful, whose sequence numbers are these, if all are new and rise: nearly always so.

        None: nothing was done, and they must be taken one by one.
        """
        position = self._positions[self.host]
        if self._first or self._line is None or position.cursor is None or faults.armed():
            return None
        rising = [seq for seq in seqs if seq is not None]
        if len(rising) < len(seqs) or rising[0] <= position.cursor or any(a >= b for a, b in pairwise(rising)):
            return None
        self._bad.clear()
        self._remember(*rising)
        position.cursor = rising[-1]
        self._metrics.news += len(rising)
        self._prove()
        first, self._arrived = self._arrived + 1, self._arrived + len(rising)
        host, epoch, link, after, opening = self.host, self._epoch, self._link, self._resumed_after, self._opening
        return [
            made(Arrival, (n, host, epoch, link, after, data, handful.at, opening))
            for n, data in enumerate(handful.messages, first)
        ]

    def _remember(self, *seqs: int) -> None:
        """Know the last numbers of this connection, so that a late frame can be told from a double."""
        recent = self._recent
        if (gone := len(recent) + len(seqs) - REMEMBERED) > 0:
            self._floor = max(self._floor, *islice(recent, gone))
        recent.extend(seqs)

    def _follow_on(self) -> None:
        """From the first frame on, another host that we never held must be read from its window's beginning."""
        self._begun.discard(self.host)
        self._from_the_beginning(*(host for host in self._positions if host != self.host))

    def _prove(self) -> None:
        """The first new frame of a handful: only a new one proves that this relay serves us."""
        self._proved = True
        self._held_until[self.host] = faults.clock.now_us()
        self._bad_before = []
        self._too_large = self._failures = self._tries = 0
        self._fall_back = None
        self._mark_up()

    def _from_the_beginning(self, *hosts: str) -> None:
        """Read these from their windows' beginning if they have no cursor, unless closed hours are left out."""
        if not self.gate.leaves_out:
            self._window |= {host for host in hosts if self._positions[host].cursor is None}

    def _leave_out_closed_hours(self) -> None:
        """What a cursor would bring of closed hours is not asked for: forget the cursor, and note the gap.

        A host that was never held is not read from its beginning either: its gap begins where others ended.
        """
        if not self.gate.leaves_out or self.host in self._begun:
            return
        position, until = self._positions[self.host], self._held_until[self.host]
        others = [at for at in self._held_until.values() if at is not None]
        if position.cursor is not None and (until is None or self.gate.was_closed_since(until)):
            self._record_gap("window")
            position.cursor = None
            self._begun.add(self.host)
        elif position.cursor is None and until is None and others:
            self._record_gap("window", max(others))
            self._begun.add(self.host)

    def settle_bad(self, digest: str) -> None:
        """The last message could not be decoded. Ten in a row: reconnect; the same ten again: go live, with a gap."""
        self._bad.append(digest)
        if len(self._bad) < BAD_IN_A_ROW:
            return
        again = self._bad == self._bad_before
        log.event("source_bad_frames", stage="source", host=self.host, again=again)
        if again:
            self._record_gap("undecodable")
            self._positions[self.host].cursor = None
            self._window.discard(self.host)
        self._bad_before, self._bad = self._bad, []
        self._drop()

    def renumber(self) -> None:
        """The host's numbers are not those of our cursor: new epoch, gap recorded, window read again."""
        position = self._positions[self.host]
        if position.cursor is None:  # it refuses even its own window: go live, and not at once
            self._window.discard(self.host)
            self._drop()
            return
        self._record_gap("renumbered")
        position.epoch += 1
        position.cursor = None
        self._from_the_beginning(self.host)
        log.event("source_epoch", stage="source", host=self.host, epoch=position.epoch)
        self._at_once = True
        self._drop()

    def outdated(self) -> None:
        """The relay's window begins behind our cursor."""
        self._record_gap("outdated_cursor")

    def take_gaps(self) -> list[Gap]:
        """The gaps found since the last call; the caller commits them."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def stop(self) -> None:
        """End `arrivals` after what it has yielded."""
        self._stopping.set()
        self.gate.nudge()
        if self._patience is not None and not self._patience.expired():
            with suppress(RuntimeError):  # it is connected already
                self._patience.reschedule(0)
        self._drop()

    async def _read(self, line: Line) -> AsyncGenerator[Handful, None]:
        if self._stopping.is_set():
            return
        self._line = line
        self._begin_link()
        self._look_at_clock(line)
        self._opening = self.gate.opening
        self._epoch = self._positions[self.host].epoch
        self._prefer_at = monotonic() + self._settings.prefer_seconds if self._index else inf
        tasks = (
            asyncio.create_task(self._watch(line), name="source-watch"),
            asyncio.create_task(self._hang_up_in_time(), name="source-hours"),
        )
        try:
            while self._line is line:
                self._waiting_since = monotonic()
                messages = await line.receive()
                self._waiting_since = None
                self._proved, at = False, now_us()
                yield Handful(self._link, at, messages, self._one_by_one(line, messages, at))
        finally:
            self._line = self._waiting_since = None
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # not each by itself: who is cancelled meanwhile must not take it for the task's
            for task in tasks:
                if not task.cancelled():
                    task.result()

    def _one_by_one(self, line: Line, messages: Sequence[bytes | str], at: int) -> Generator[Arrival, None, None]:
        for data in messages:
            if self._line is not line:  # after a drop, what the dropped one still holds is not read
                return
            self._arrived += 1
            faults.point("source.received")
            yield Arrival(
                self._arrived, self.host, self._epoch, self._link, self._resumed_after, data, at, self._opening
            )

    def _begin_link(self) -> None:
        """A new connection: its first frame tells of a renumbering, and its numbers are remembered from here on."""
        self._link += 1
        self._metrics.add("connections")
        self._first = True
        self._resumed_after = self._positions[self.host].cursor
        self._floor = self._resumed_after or 0
        self._recent.clear()

    def _look_at_clock(self, line: Line) -> None:
        if (ahead := skew_seconds(line.date)) is not None:
            self._clock.look(self.host, ahead)

    async def _hang_up_in_time(self) -> None:
        """Drop the connection when its opening ends."""
        while self.gate.is_open():
            await self.gate.wait()
        self._at_once = True
        self._drop()

    def _rest(self) -> None:
        """Not connected, and all is well."""
        self._up, self._failures, self._tries = None, 0, 0
        self._metrics.connected, self._metrics.relay_why = False, ""

    async def _watch(self, line: Line) -> None:
        """Drop a line on which neither frame nor pong arrives. Time in which we do not read never counts."""
        limit = self._settings.liveness_seconds
        while True:
            await asyncio.sleep(min(limit / 8, self._settings.prefer_seconds / 4))
            if monotonic() >= self._prefer_at:
                self._try_better()
                return
            since = self._waiting_since
            if since is None or monotonic() - since < limit / 4:
                continue
            try:
                async with asyncio.timeout(limit / 2):
                    await line.ping()
            except TimeoutError:
                if self._waiting_since == since:
                    self._silent = True
                    line.abort()
                    return
            except LineClosed:
                return
            else:
                self._mark_up()

    def _try_better(self) -> None:
        """A better relay may be back: try it, and come back here if it is not."""
        self._fall_back, self._index, self._tries = self._index, 0, 0
        log.event("source_host", stage="source", host=self._settings.relays[0], was=self.host, why="it is preferred")
        self._at_once = True
        self._drop()

    def _next_host(self, why: str) -> None:
        """After enough attempts in vain, try the next relay; at once the former one if this was only a try."""
        self._tries += 1
        if self._fall_back is not None:
            index, self._fall_back = self._fall_back, None
        elif self._tries >= self._settings.failover_attempts:
            index = (self._index + 1) % len(self._settings.relays)
        else:
            return
        self._tries = 0
        if index != self._index:
            self._index = index
            log.event("source_host", stage="source", host=self._settings.relays[index], was=self.host, why=why)

    def _url(self) -> str:
        cursor = self._positions[self.host].cursor
        if cursor is None and self.host in self._window:
            cursor = WINDOW
        return self.host + PATH + ("" if cursor is None else f"?cursor={cursor}")

    async def _after_drop(self) -> None:
        """We hung up ourselves. After a renumbering the same relay is read again, and a better one tried, at once."""
        if not self._at_once:
            await self._back_off(ConnectionError("it sends nothing that can be used"))
        self._at_once = False

    async def _back_off(self, error: Exception) -> None:
        """Wait before the next attempt. A wait doubles from `backoff_seconds` on; jitter only makes it longer."""
        if self._stopping.is_set():
            return
        self._mark_down(_why(error))
        self._failures += 1
        self._metrics.add("connect_failures")
        self._next_host(_why(error))
        if isinstance(error, LineClosed) and error.too_large:
            self._step_over_too_large()
        wait = min(
            self._settings.backoff_max_seconds, self._settings.backoff_seconds * 2 ** min(self._failures - 1, 16)
        )
        if isinstance(error, HandshakeRefused) and error.retry_after.isdecimal():
            wait = max(wait, min(float(error.retry_after), 600.0))
        wait *= random.uniform(1, 1.2)  # noqa: S311  (spreads clients, hides nothing)
        log.event("source_attempt", stage="source", host=self.host, wait_s=round(wait, 1), why=_why(error))
        with suppress(TimeoutError):
            async with asyncio.timeout(min(wait, self.gate.seconds_left())):
                await self._stopping.wait()

    def _step_over_too_large(self) -> None:
        """A message above the bound comes again at the same cursor: try a higher bound once, then later cursors."""
        self._too_large += 1
        position = self._positions[self.host]
        if self._too_large > 1 and position.cursor is not None:
            if self._too_large == 2:  # noqa: PLR2004  (one gap, however many steps it takes)
                self._record_gap("too_large")
            position.cursor += 2 ** min(self._too_large - 2, 32)

    def _drop(self) -> None:
        self._dropped = True
        if self._line is not None:
            self._line.abort()
            self._line = None

    def _record_gap(self, cause: GapCause, from_at: int | None = None) -> None:
        position = self._positions[self.host]
        self._gaps.append(Gap(self.host, position.epoch, cause, position.cursor, now_us(), from_at, n=self._arrived))

    def _mark_up(self) -> None:
        if self._up is not True:
            epoch = self._positions[self.host].epoch
            log.event("source_up", stage="source", host=self.host, epoch=epoch, cursor=self._resumed_after)
        self._up = True
        self._metrics.connected, self._metrics.host, self._metrics.relay_why = True, self.host, ""

    def _mark_down(self, why: str) -> None:
        if self._up is not False:
            log.event("source_down", stage="source", host=self.host, why=why)
        self._up = False
        self._metrics.connected, self._metrics.relay_why = False, f"relay: {why}"


def _why(error: Exception) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
