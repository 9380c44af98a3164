"""What happens to a record, away from the main process: check its hash, decode it, filter it.

`Pool` runs `judge_batch`, and `judge_told_batch` for what feeds showed, in spawned child processes (never forked: a
fork keeps locks and SQLite handles). A record that crashes or hangs a child is found by trying its batch again one by
one, and is quarantined alone.
"""

import gc
import hashlib
import json
import os
import signal
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio
import anyio.to_process
from libipld import decode_dag_cbor, decode_multibase, encode_cid, encode_dag_cbor

from civicsky import faults, filter as filters, log
from civicsky.errors import Failed
from civicsky.model import POSTS, PostOp, Verdict
from civicsky.pulse import Pulse
from civicsky.record import extract

if TYPE_CHECKING:  # a child does without
    from civicsky.settings import Filter, Worker

_packed: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
TOLD_AT_ONCE: Final = 100
"""Records of a feed in one job."""
NICE: Final = 5
"""Of the children: the process that holds the stream goes first."""
WARM_SECONDS: Final = 60.0
"""What a child may take to start."""
_SHA256_CID = b"\x01\x71\x12\x20"
"""CID v1, DAG-CBOR, SHA-256 of 32 bytes: the only kind the AT Protocol allows for records."""


def judge_batch(records: Sequence[tuple[bytes, bytes]], keep: filters.Keep) -> list[Verdict]:
    """Judge records given as (CID, block), in their order. Runs in a child; never raises for a record's content."""
    _ignore_signals()
    return [judge_record(cid, block, keep) for cid, block in records]


def judge_record(cid: bytes, block: bytes, keep: filters.Keep = "english") -> Verdict:
    """Check, decode and filter one record."""
    faults.poison(block)
    if cid != _SHA256_CID + hashlib.sha256(block).digest():
        return Verdict("bad", "wrong_hash")
    try:
        record = decode_dag_cbor(block)
    except (ValueError, RecursionError, OverflowError):
        return Verdict("bad", "undecodable")
    if not isinstance(record, dict):
        return Verdict("bad", "not_a_record")
    if record.get("$type") != POSTS:
        return Verdict("bad", "wrong_type")
    if not isinstance(record.get("text"), str):
        return Verdict("bad", "bad_text")
    fields = extract(record)
    judgement = filters.judge(fields, keep)
    fields["filter"] = judgement.notes
    return Verdict("rejected" if judgement.reason else "kept", judgement.reason or "", _packed(fields), encode_cid(cid))


class Told(NamedTuple):
    """What a child says of a record that the public API gave as JSON."""

    verdict: Verdict
    block: bytes
    """The record as DAG-CBOR; empty when the verdict is `bad`."""


def judge_told_batch(records: Sequence[tuple[str, str]], keep: filters.Keep) -> list[Told]:
    """Judge records given as (CID, JSON), in their order. Runs in a child; never raises for a record's content."""
    _ignore_signals()
    return [judge_told(cid, text, keep) for cid, text in records]


def judge_told(cid: str, text: str, keep: filters.Keep = "english") -> Told:
    """As `judge_record`, of a record as JSON (https://atproto.com/specs/data-model#json-representation).

    It is written as DAG-CBOR again, whose hash shows that it is what its author wrote. A post whose hash is another is
    judged all the same, with the flag `unverified`: the API may have left something out.
    """
    try:
        block = encode_dag_cbor(_from_json(json.loads(text)))
        binary = decode_multibase(cid)[1] if cid.startswith("b") else b""
    except (ValueError, TypeError, RecursionError, OverflowError):
        return Told(Verdict("bad", "undecodable"), b"")
    actual = _SHA256_CID + hashlib.sha256(block).digest()
    verdict = judge_record(actual, block, keep)
    if verdict.kind == "bad":
        return Told(verdict, b"")
    if binary != actual:
        fields = json.loads(verdict.fields)
        fields["filter"]["flags"].append("unverified")
        verdict = verdict._replace(fields=_packed(fields))
    return Told(verdict, block)


def _from_json(value: Any) -> Any:
    """JSON's forms of links and bytes as what they stand for."""
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$link": str(link), **rest} if not rest:
            return decode_multibase(link)[1]
        case {"$bytes": str(coded), **rest} if not rest:
            return b64decode(coded + "=" * (-len(coded) % 4))
    return {key: _from_json(item) for key, item in value.items()}


def warm() -> int:
    """Load what a child needs; gives its process id."""
    _ignore_signals()
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    filters.load()
    gc.freeze()  # what was loaded stays: to look through it for garbage again and again is in vain
    return os.getpid()


class Pool:
    """A fixed number of child processes that judge records.

    Memory: each child holds the language model (some 50 MB) and one batch. When all are busy, `judge` waits.
    """

    def __init__(self, settings: "Worker", filtering: "Filter", pulse: Pulse | None = None) -> None:
        self.processes = settings.processes or min(4, max(1, len(os.sched_getaffinity(0)) - 1))
        self._seconds = settings.job_seconds
        self._keep: filters.Keep = filtering.keep
        self._pulse = pulse or Pulse()
        self._free = anyio.Semaphore(self.processes)
        self._limiter = anyio.CapacityLimiter(self.processes)

    async def start(self) -> None:
        """Start every child. Raises `Failed` when one cannot start."""
        try:
            async with anyio.create_task_group() as group:
                for _ in range(self.processes):
                    group.start_soon(self._warm)
        except* (anyio.BrokenWorkerProcess, TimeoutError, OSError, ImportError) as errors:
            raise Failed(
                f"worker: a child process could not start ({errors.exceptions[0]!r}); look at memory and process limits"
            ) from errors

    async def judge(self, ops: Sequence[PostOp]) -> list[Verdict]:
        """Judge the records of these operations, in order; one verdict each, whatever the records contain.

        Raises `Failed` when the children cannot be started again.
        """
        return await self._judge_all(judge_batch, [(op.cid, op.block) for op in ops], _bad)

    async def judge_told(self, records: Sequence[tuple[str, str]]) -> list[Told]:
        """The same of records as (CID, JSON)."""
        found: list[Told] = []
        for at in range(0, len(records), TOLD_AT_ONCE):
            part = records[at : at + TOLD_AT_ONCE]
            found += await self._judge_all(judge_told_batch, part, lambda reason: Told(_bad(reason), b""))
        return found

    async def _judge_all(
        self, judge: Callable[..., Any], records: Sequence[Any], bad: Callable[[str], Any]
    ) -> list[Any]:
        """Judge a batch; when a child dies or hangs over it, each record alone: those at fault are `bad`."""
        try:
            return await self._judge(judge, records)
        except (anyio.BrokenWorkerProcess, TimeoutError) as error:
            log.event("worker_restarted", stage="worker", why=type(error).__name__, records=len(records))
            await self.start()
        found = [await self._judge_alone(judge, record, bad) for record in records]
        log.event("worker_up", stage="worker", records=len(records))
        return found

    async def _judge(self, judge: Callable[..., Any], records: Sequence[Any]) -> list[Any]:
        # A child that is busy longer than this is killed: its pipe would otherwise hold the stream for ever.
        # Waiting for a free child is not held against the records, so it comes first.
        async with self._free:
            with self._pulse.work("worker", self._seconds), anyio.fail_after(self._seconds):
                return await self._run(judge, records, self._keep)  # type: ignore[no-any-return]

    async def _judge_alone(self, judge: Callable[..., Any], record: Any, bad: Callable[[str], Any]) -> Any:
        try:
            return (await self._judge(judge, [record]))[0]
        except anyio.BrokenWorkerProcess:
            verdict = bad("worker_crashed")
        except TimeoutError:
            verdict = bad("worker_timeout")
        # Only a pool that still works may blame the record.
        await self.start()
        return verdict

    async def _warm(self) -> None:
        with self._pulse.work("worker", WARM_SECONDS), anyio.fail_after(WARM_SECONDS):
            await self._run(warm)

    async def _run(self, function: Any, *args: Any) -> Any:
        return await anyio.to_process.run_sync(function, *args, cancellable=True, limiter=self._limiter)


def _bad(reason: str) -> Verdict:
    return Verdict("bad", reason)


def _ignore_signals() -> None:
    # Ctrl-C goes to the whole process group: the parent decides, and a child ends when its pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
