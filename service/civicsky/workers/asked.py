"""A question that waits at home for its result, and what a worker's result means. No I/O; `now` is passed in."""

import asyncio
from typing import Final

from civicsky import log
from civicsky.endpoint import MAX_ANSWER_BYTES, Came, passes
from civicsky.errors import BadInput, Transient, Unsent
from civicsky.workers.messages import Claim, Job, Result
from civicsky.workers.wanted import Wanted

UNAUTHORIZED: Final = 401
TRIES: Final = 2
"""Calls for one question, each by another worker, before its failure is the question's: it may be what breaks them."""
SILENT: Final = "a label worker took a question and is silent, or cut off"


class Question:
    """One request that workers are to make."""

    def __init__(self, job: Job, wanted: Wanted | None, now: float) -> None:
        self.job, self.wanted = job, wanted
        self.number: int | None = None
        """In the queue; None: it is not known to be there."""
        self.putting = False
        """Whether it is just being put there."""
        self.why = ""
        """Why it could not be put there the last time."""
        self.since = now
        """When it was dispatched, or given to a worker: from then on it waits for a claim."""
        self.claims: set[tuple[str, int]] = set()
        """(worker, delivery) of each call that was let go and has not come to anything yet."""
        self.calls = 0
        """That were let go."""
        self.claimed_at = 0.0
        self.lost_at: float | None = None
        """When the queue was found to have lost it; None: it has not."""
        self.result: asyncio.Future[Came] = asyncio.get_running_loop().create_future()

    def again(self, now: float, ack_seconds: float, deliveries: int) -> None:
        """It is about to be dispatched, under its next attempt."""
        self.since, self.number, self.lost_at = now, None, None
        self.claims.clear()
        self.job = self.job._replace(attempt=self.job.attempt + 1, ack_seconds=ack_seconds, deliveries=deliveries)

    def let_go(self, claim: Claim, now: float) -> bool:
        """A worker may make the call; False: it was told so before, and did not hear it."""
        who = (claim.worker, claim.delivery)
        if who in self.claims:
            return False
        self.claims.add(who)
        self.calls += 1
        self.claimed_at = now
        return True

    def call_back(self, claim: Claim) -> None:
        """The worker did not hear that it may, and makes no call."""
        if (claim.worker, claim.delivery) in self.claims:
            self.claims.remove((claim.worker, claim.delivery))
            self.calls -= 1

    def is_elsewhere(self, result: Result) -> bool:
        """Whether somebody else still has it, so that a failure decides nothing."""
        if result.attempt != self.job.attempt:
            return True
        self.claims = {(worker, number) for worker, number in self.claims if worker != result.worker}
        return bool(self.claims)

    def end(self, result: Result) -> None:
        """That is what came of it."""
        self.result.set_result(_came_of(result, max(1, self.calls)))

    def fail(self, error: Exception) -> None:
        """Nothing comes of it."""
        if not self.result.done():
            self.result.set_exception(error)

    def give_back(self, why: str) -> None:
        """It waits no longer; what was called for counts."""
        if self.result.done():
            return
        if self.calls:
            self.result.set_result(Came(0, {}, "", calls=self.calls, failure=Transient(SILENT)))
        else:
            self.result.set_exception(Unsent(why))

    def has_come(self) -> bool:
        """Whether there is a result."""
        return self.result.done() and not self.result.cancelled() and self.result.exception() is None


def is_workers_own(result: Result) -> bool:
    """Whether the worker's server is the reason, so that another worker may fare better."""
    return result.kind == "unreachable" or (
        result.kind == "reply" and (result.status == UNAUTHORIZED or passes(result.status))
    )


def _came_of(result: Result, calls: int) -> Came:
    text = result.body[: MAX_ANSWER_BYTES + 1].decode(errors="replace")
    if result.kind == "reply":
        return Came(result.status, result.headers, text, result.by, calls)
    if result.kind == "unusable":
        bad = BadInput(result.why)
        bad.raw = text
        return Came(0, {}, "", result.by, calls, bad)
    why = (
        result.why if result.kind == "unreachable" else "label workers took a question again and again, and were silent"
    )
    return Came(0, {}, "", result.by, calls, Transient(log.harmless(why)))
