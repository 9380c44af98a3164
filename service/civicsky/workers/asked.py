"""A question that waits at home for its result, and what a worker's result means. No I/O; `now` is passed in."""

import asyncio
from hmac import compare_digest
from http import HTTPStatus
from typing import Final

from civicsky import log
from civicsky.endpoint import MAX_ANSWER_BYTES, Came, May, passes
from civicsky.errors import BadInput, Refused, TooLate, Transient, Unsent
from civicsky.workers.messages import Claim, Job, Result
from civicsky.workers.wanted import Wanted

TRIES: Final = 2
"""Calls for one question, each by another worker, before its failure is the question's: it may be what breaks them."""
SILENT: Final = "a label worker took a question and is silent, or cut off"


class Question:
    """One request that workers are to make."""

    def __init__(self, job: Job, wanted: Wanted | None, may: May, now: float) -> None:
        self.job, self.wanted, self._may = job, wanted, may
        self.number: int | None = None
        """In the queue; None: it is not known to be there."""
        self.putting = False
        """Whether it is just being put there."""
        self.why = ""
        """Why it could not be put there the last time."""
        self.since = now
        """When it was dispatched, or given to a worker: from then on it waits for a claim."""
        self.claims: dict[tuple[str, int], str] = {}
        """By (worker, delivery), each call that was let go and has not come to anything yet: its worker's proof."""
        self._proofs: set[bytes] = set()
        """Of all calls that were let go: whose result may come."""
        self.calls = 0
        """That were let go."""
        self.broke_at: set[str] = set()
        """Workers whose own server was the reason that a call came to nothing."""
        self.claimed_at = 0.0
        self.lost_at: float | None = None
        """When the queue was found to have lost it; None: it has not."""
        self.result: asyncio.Future[Came] = asyncio.get_running_loop().create_future()

    def again(self, now: float, ack_seconds: float, deliveries: int) -> None:
        """It is about to be dispatched, under its next attempt."""
        self.since, self.number, self.lost_at = now, None, None
        self.claims.clear()
        self.job = self.job._replace(attempt=self.job.attempt + 1, ack_seconds=ack_seconds, deliveries=deliveries)

    def bound(self, ack_seconds: float, wait_seconds: float, delivered: int, moved_at: float) -> float:
        """Until when it waits. `delivered` is the highest number handed out, `moved_at` when a worker last took one."""
        if self.claims:
            return self.claimed_at + self.job.seconds + 2 * ack_seconds + wait_seconds
        in_line = self.number is None or self.number > delivered
        # While others are taken, its turn comes.
        return (max(self.since, moved_at) if in_line else self.since) + wait_seconds

    def is_in_turn(self) -> bool:
        """Whether it may be sent now; else it fails, and takes another turn. What was sent once may be again."""
        if self.calls or self._may():
            return True
        self.fail(TooLate("its turn was over when a label worker took it"))
        return False

    def let_go(self, claim: Claim, now: float) -> bool:
        """A worker may make the call; False: it was told so before, and did not hear it."""
        who = (claim.worker, claim.delivery)
        if who in self.claims:
            return False
        self.claims[who] = claim.proof
        self._proofs.add(claim.proof.encode())
        self.calls += 1
        self.claimed_at = now
        return True

    def is_with_another(self, claim: Claim) -> bool:
        """Whether it lay with that worker for too long and another one has it, or that delivery is not the worker's.

        NATS makes each delivery once, and so many: that bounds what claims of one job come to.
        """
        mine = (claim.worker, claim.delivery)
        others = [number for worker, number in self.claims if (worker, number) != mine]
        known = self.claims.get(mine, claim.proof) == claim.proof
        return not 1 <= claim.delivery <= self.job.deliveries or any(n >= claim.delivery for n in others) or not known

    def call_back(self, claim: Claim) -> None:
        """The worker did not hear that it may, and makes no call."""
        if self.claims.get((claim.worker, claim.delivery)) == claim.proof:
            del self.claims[claim.worker, claim.delivery]
            self.calls -= 1

    def is_due(self, result: Result) -> bool:
        """Whether it is of a worker that was let make the call; who gives a job up made none."""
        if result.kind == "given_up":
            return result.attempt == self.job.attempt
        shown = result.proof.encode()
        return any(compare_digest(shown, proof) for proof in self._proofs)

    def is_elsewhere(self, result: Result) -> bool:
        """Whether somebody else still has it, so that a failure decides nothing."""
        if result.attempt != self.job.attempt:
            return True
        its = (result.worker, result.proof)
        self.claims = {who: proof for who, proof in self.claims.items() if (who[0], proof) != its}
        return bool(self.claims)

    def is_for_another(self, result: Result) -> bool:
        """Whether a worker's own failure is a reason to have another one try it: a refused key always is."""
        return result.status == HTTPStatus.UNAUTHORIZED or self.calls < TRIES

    def end(self, result: Result) -> None:
        """That is what came of it."""
        self.result.set_result(_came_of(result, max(1, self.calls)))

    def fail(self, error: Exception) -> None:
        """Nothing comes of it."""
        if not self.result.done():
            self.result.set_exception(error)

    def refuse(self, error: Refused) -> None:
        """NATS is of no use any more until a person acts; what was called for counts."""
        if self.calls:
            self.give_back(SILENT)
        else:
            self.fail(error)

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
        result.kind == "reply" and (result.status == HTTPStatus.UNAUTHORIZED or passes(result.status))
    )


def _came_of(result: Result, calls: int) -> Came:
    """What a worker says is the far side's word: it names no reason of its own, and nothing that a terminal obeys."""
    text, by = result.body[: MAX_ANSWER_BYTES + 1].decode(errors="replace"), log.harmless(result.by)
    if result.kind == "reply" and result.status in range(100, 600):
        return Came(result.status, result.headers, text, by, calls)
    if result.kind in {"reply", "unusable"}:
        bad = BadInput(result.why if result.why == "too_long" else "bad_response")
        bad.raw = text
        return Came(0, {}, "", by, calls, bad)
    why = (
        result.why if result.kind == "unreachable" else "label workers took a question again and again, and were silent"
    )
    return Came(0, {}, "", by, calls, Transient(log.harmless(why)))
