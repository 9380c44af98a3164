"""What happens to a record, away from the main process: check its hash, decode it, filter it.

`Pool` runs `judge_batch` in spawned child processes (never forked: a fork keeps locks and SQLite handles). A record
that crashes or hangs a child is found by trying its batch again one by one, and is quarantined alone.
"""

import hashlib
import json
import os
import signal
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_process
from libipld import decode_dag_cbor

from civicsky import faults, filter as filters, log
from civicsky.errors import Failed
from civicsky.model import POSTS, PostOp, Verdict
from civicsky.record import extract
from civicsky.settings import Filter, Worker

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
    packed = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return Verdict("rejected" if judgement.reason else "kept", judgement.reason or "", packed)


def warm() -> int:
    """Load what a child needs; gives its process id."""
    _ignore_signals()
    filters.load()
    return os.getpid()


class Pool:
    """A fixed number of child processes that judge records.

    Memory: each child holds the language model (some 50 MB) and one batch. When all are busy, `judge` waits.
    """

    def __init__(self, settings: Worker, filtering: Filter) -> None:
        self.processes = settings.processes or min(4, max(1, len(os.sched_getaffinity(0)) - 1))
        self._seconds = settings.job_seconds
        self._keep: filters.Keep = filtering.keep
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
        records = [(op.cid, op.block) for op in ops]
        try:
            return await self._judge(records)
        except (anyio.BrokenWorkerProcess, TimeoutError) as error:
            log.event("worker_restarted", stage="worker", why=type(error).__name__, records=len(records))
            await self.start()
        return [await self._judge_alone(record) for record in records]

    async def _judge(self, records: Sequence[tuple[bytes, bytes]]) -> list[Verdict]:
        # A child that is busy longer than this is killed: its pipe would otherwise hold the stream for ever.
        # Waiting for a free child is not held against the records, so it comes first.
        async with self._free:
            with anyio.fail_after(self._seconds):
                return await self._run(judge_batch, records, self._keep)  # type: ignore[no-any-return]

    async def _judge_alone(self, record: tuple[bytes, bytes]) -> Verdict:
        try:
            return (await self._judge([record]))[0]
        except anyio.BrokenWorkerProcess:
            verdict = Verdict("bad", "worker_crashed")
        except TimeoutError:
            verdict = Verdict("bad", "worker_timeout")
        # Only a pool that still works may blame the record.
        await self.start()
        return verdict

    async def _warm(self) -> None:
        with anyio.fail_after(60):
            await self._run(warm)

    async def _run(self, function: Any, *args: Any) -> Any:
        return await anyio.to_process.run_sync(function, *args, cancellable=True, limiter=self._limiter)


def _ignore_signals() -> None:
    # Ctrl-C goes to the whole process group: the parent decides, and a child ends when its pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
