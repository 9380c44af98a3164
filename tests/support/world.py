"""A seeded world of accounts and posts: events one after the other, each with its frame and its truth.

The parts of frames made by hand are in `support.frames`; tests may take them from here.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from support.frames import (
    DID,
    POSTS,
    TIME,
    block_and_cid,
    car,
    cid_of,
    cid_text,
    commit,
    commit_of,
    frame,
    link,
    operation,
    post,
    rfc3339,
    root_block,
    scripted_relay,
    tid,
    varint,
)
from support.hostile import AT, HOSTILE, MARKED, SEQ, Clay, Op, Parts, join, split
from support.words import english, foreign

__all__ = [
    "DID", "TIME", "Event", "World", "block_and_cid", "car", "commit", "frame", "link", "post", "scripted_relay", "tid",
    "varint",
]  # fmt: skip
START = 1_767_225_600_000_000
"""2026-01-01, in microseconds."""
HIDING = ("deactivated", "takendown", "suspended")
_OTHER = ("app.bsky.feed.like", "app.bsky.feed.repost", "app.bsky.graph.follow")
_MIX: dict[str, float] = {
    "other": 58, "post": 24, "posts": 1, "delete": 3.5, "update": 1.5, "again": 1, "delete_unseen": 1, "hide": 0.6,
    "show": 0.5, "end": 0.2, "identity": 1.5, "sync": 0.6, "empty": 1, "large": 0.2,
}  # fmt: skip
"""Events in a hundred; hostile ones come on top."""


@dataclass(slots=True)
class Event:
    """One event of the world, numbered `n` from 1 on without gaps."""

    n: int
    kind: str
    """What was meant: a key of the mix, or a hostile message's name."""
    at: int
    """Microseconds since 1970."""
    message: bytes | str | Parts | None
    """None once it was forgotten."""
    did: str = ""
    rev: str = ""
    ops: tuple[Op, ...] = ()
    """Operations on posts, in their order; `idx` holds their places in the commit."""
    idx: tuple[int, ...] = ()
    outcome: str = "commit"
    """What a perfect collector makes of the frame: commit, account, identity, sync, ignored or quarantined."""
    reason: str = ""
    status: str = ""

    @property
    def time(self) -> str:
        """As RFC 3339."""
        return rfc3339(self.at)

    @property
    def counts(self) -> bool:
        """Whether it carries a sequence number that a collector takes in."""
        return self.outcome not in {"ignored", "quarantined"}

    def data(self, seq: int | None = None) -> bytes | str:
        """The message as a host sends it under this number."""
        assert self.message is not None, "it was forgotten"
        return join(self.message, seq or self.n, self.time) if isinstance(self.message, tuple) else self.message


@dataclass
class Account:
    """An account of the world."""

    did: str
    handle: str
    status: str = "active"
    rev: str = ""
    kept: list[str] = field(default_factory=list)
    """Record keys of its posts that are there and that a collector keeps."""
    posts: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    """All its posts that are there: record and CID by record key."""


class World:
    """The same seed, clock and knobs give the same events.

    `crash_mark` and `hang_mark` are texts on which the collector was told to crash or hang; None: no such post.
    `hostile` is the share of hostile messages.
    """

    def __init__(
        self,
        seed: int = 1,
        start: int = START,
        *,
        step: int = 3000,
        accounts: int = 200,
        hostile: float = 0.03,
        crash_mark: str | None = None,
        hang_mark: str | None = None,
    ) -> None:
        self._randomness = Random(seed)
        self._clock, self._step, self._hostile = start, step, hostile
        self._marks = {name: mark for name, mark in (("crash", crash_mark), ("hang", hang_mark)) if mark}
        self._tick = 0
        self._handles = 0
        self._wanted: deque[tuple[str, int]] = deque()
        self.events: list[Event] = []
        self.accounts: dict[str, Account] = {}
        self._active: list[Account] = []
        self._hidden: list[Account] = []
        for _ in range(accounts):
            self._join()
        self._makers: dict[str, Callable[[], Event]] = {name: getattr(self, "_" + name) for name in _MIX}
        self._kinds, self._weights = list(_MIX), list(_MIX.values())

    @property
    def head(self) -> int:
        """The number of the newest event; 0 before the first."""
        return len(self.events)

    def event(self, n: int) -> Event:
        """An event that was made already."""
        return self.events[n - 1]

    def make(self) -> Event:
        """Make the next event."""
        self._clock += self._step
        if self._wanted:
            event = self._big(*self._wanted.popleft())
        elif self._randomness.random() < self._hostile:
            event = self._bad()
        else:
            (kind,) = self._randomness.choices(self._kinds, self._weights)
            event = self._makers[kind]()
            event.kind = kind
        self.events.append(event)
        return event

    def take(self, number: int) -> list[Event]:
        """Make so many."""
        return [self.make() for _ in range(number)]

    def want_big(self, size: int, *, too_large: bool = False) -> None:
        """Let the next event be a commit of about so many bytes; `too_large`: more than a collector takes."""
        self._wanted.append(("too_large" if too_large else "big", size))

    def shift(self, n: int, micros: int) -> None:
        """Let all from event `n` on, made already or not, happen later."""
        for event in self.events[n - 1 :]:
            event.at += micros
        self._clock += micros

    def forget(self, n: int) -> None:
        """Drop the message of an event that no host will send again; its truth stays."""
        self.event(n).message = None

    def state(self, did: str, rkey: str) -> str:
        """What has become of a post by now: live, hidden, or deleted (also: never there)."""
        account = self.accounts.get(did)
        if account is None or rkey not in account.posts:
            return "deleted"
        return "live" if account.status == "active" else "hidden"

    # ---- events of one account ---------------------------------------------------------------------------------------

    def _other(self) -> Event:
        return self._commit(self._author(), [self._like()])

    def _post(self) -> Event:
        author = self._author()
        return self._commit(author, [self._new_post(author)])

    def _posts(self) -> Event:
        """A thread, made in one commit."""
        author = self._author()
        return self._commit(author, [self._new_post(author) for _ in range(self._randomness.randint(2, 4))])

    def _large(self) -> Event:
        """As large as a commit may be."""
        author = self._author()
        return self._commit(
            author, [self._new_post(author) if self._randomness.random() < 0.1 else self._like() for _ in range(200)]
        )

    def _empty(self) -> Event:
        return self._commit(self._author(), [])

    def _delete(self) -> Event:
        author = self._author(lambda account: account.posts)
        if not author.posts:
            return self._post()
        rkey = self._randomness.choice(list(author.posts))
        return self._commit(author, [("delete", rkey, None, "")])

    def _delete_unseen(self) -> Event:
        return self._commit(self._author(), [("delete", self._name(), None, "")])

    def _update(self) -> Event:
        author = self._author(lambda account: account.kept)
        if not author.kept:
            return self._post()
        rkey = self._randomness.choice(author.kept)
        return self._commit(author, [("update", rkey, self._english(), "kept")])

    def _again(self) -> Event:
        """A post deleted and made again in one commit."""
        author = self._author(lambda account: account.kept)
        if not author.kept:
            return self._post()
        rkey = self._randomness.choice(author.kept)
        return self._commit(author, [("delete", rkey, None, ""), ("create", rkey, self._english(), "kept")])

    def _hide(self) -> Event:
        author = self._author(lambda account: account.status == "active")
        if author.status != "active":
            return self._identity()
        self._active.remove(author)
        self._hidden.append(author)
        return self._status(author, self._randomness.choice(HIDING))

    def _show(self) -> Event:
        if not self._hidden:
            return self._identity()
        author = self._hidden.pop(self._randomness.randrange(len(self._hidden)))
        self._active.append(author)
        return self._status(author, "active")

    def _end(self) -> Event:
        """An account is deleted, with all its posts; another joins, so that the world stays as large."""
        group = self._hidden if self._hidden and self._randomness.random() < 0.3 else self._active
        author = group.pop(self._randomness.randrange(len(group)))
        author.posts.clear()
        author.kept.clear()
        self._join()
        return self._status(author, "deleted")

    def _identity(self) -> Event:
        author = self._author()
        self._handles += 1
        author.handle = f"user{self._handles}.example.com"
        return self._account_event("identity", author, handle=author.handle)

    def _sync(self) -> Event:
        """A repository was reset: a post may be gone without a word."""
        author = self._author()
        if author.kept and self._randomness.random() < 0.5:
            author.posts.pop(author.kept.pop(self._randomness.randrange(len(author.kept))))
        author.rev = self._name()
        root, cid = root_block(author.did, author.rev)
        return self._account_event("sync", author, rev=author.rev, blocks=car(cid, [(root, cid)]))

    # ---- parts of events ---------------------------------------------------------------------------------------------

    def _author(self, fit: Callable[[Account], Any] | None = None) -> Account:
        """Somebody who acts, now and then even while hidden; who fits, if one is soon found."""
        for _ in range(20):
            group = self._hidden if self._hidden and self._randomness.random() < 0.02 else self._active
            author = self._randomness.choice(group)
            if fit is None or fit(author):
                break
        return author

    def _new_post(self, author: Account) -> tuple[str, str, dict[str, Any], str]:
        drawn = self._randomness.random()
        if drawn < 0.83:
            return "create", self._name(), self._english(author), "kept"
        if drawn < 0.92:
            tag, text = foreign(self._randomness, self._tick)
            langs = self._randomness.choice([[tag], [tag], ["en"], []])
            return "create", self._name(), self._record(text, langs=langs), "language"
        if drawn < 0.97:
            adult = {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "porn"}]}
            text = english(self._randomness, self._tick)
            return "create", self._name(), self._record(text, labels=adult), "adult"
        blob = {"$type": "blob", "ref": link(cid_of(b"image")), "mimeType": "image/jpeg", "size": 5}
        images = {"$type": "app.bsky.embed.images", "images": [{"alt": "", "image": blob}]}
        return "create", self._name(), self._record("", embed=images, langs=["en"]), "no_text"

    def _english(self, author: Account | None = None) -> dict[str, Any]:
        record = self._record(english(self._randomness, self._tick), langs=["en"])
        if author is not None and author.kept and self._randomness.random() < 0.2:
            rkey = author.kept[-1]
            told = {"uri": f"at://{author.did}/{POSTS}/{rkey}", "cid": author.posts[rkey][1]}
            record["reply"] = {"root": told, "parent": told}
        return record

    def _record(self, text: str, **fields: Any) -> dict[str, Any]:
        self._tick += 1
        return post(text, **{"createdAt": rfc3339(self._clock), **fields})

    def _like(self) -> tuple[str, str, dict[str, Any] | None, str]:
        path = f"{self._randomness.choice(_OTHER)}/{self._name()}"
        if self._randomness.random() < 0.15:
            return "delete", path, None, ""
        return "create", path, {"$type": path.partition("/")[0], "subject": DID, "createdAt": rfc3339(self._clock)}, ""

    def _commit(self, author: Account, ops: list[tuple[str, str, Any, str]]) -> Event:
        """A commit of (action, record key of a post or whole path, record, verdict), taken over into the truth."""
        author.rev = self._name()
        listed, blocks, told, idx = [], [], [], []
        for at, (action, rkey, record, verdict) in enumerate(ops):
            cid = b""
            if record is not None:
                block, cid = block_and_cid(record)
                blocks.append((block, cid))
            listed.append(operation(action, rkey, cid or None))
            if "/" not in rkey:
                text = record["text"] if record else ""
                told.append(Op(action, rkey, cid_text(cid) if cid else "", text, verdict))
                idx.append(at)
                self._take_over(author, told[-1], record)
        message = split(commit_of(SEQ, listed, blocks, rev=author.rev, did=author.did, time=AT))
        return self._event("", message, author, ops=tuple(told), idx=tuple(idx))

    def _take_over(self, author: Account, op: Op, record: dict[str, Any] | None) -> None:
        if op.rkey in author.kept:
            author.kept.remove(op.rkey)
        author.posts.pop(op.rkey, None)
        if record is not None:
            author.posts[op.rkey] = (record, op.cid)
            if op.verdict == "kept":
                author.kept.append(op.rkey)

    def _status(self, author: Account, status: str) -> Event:
        author.status = status
        told = {"active": True} if status == "active" else {"active": False, "status": status}
        event = self._account_event("account", author, **told)
        event.status = status
        return event

    def _account_event(self, kind: str, author: Account, **fields: Any) -> Event:
        message = split(frame("#" + kind, {"seq": SEQ, "did": author.did, "time": AT, **fields}))
        return self._event(kind, message, author, outcome=kind)

    def _bad(self) -> Event:
        """A hostile message; its post is never one that is there already."""
        name = self._randomness.choice([*HOSTILE, *self._marks])
        author = self._author()
        author.rev = self._name()
        clay = Clay(author.did, author.rev, self._name(), english(self._randomness, self._tick), self._randomness)
        bad = HOSTILE[name](clay) if name in HOSTILE else MARKED[name](clay, self._marks[name])
        event = self._event(name, bad.message, author, outcome=bad.outcome, ops=bad.ops, idx=tuple(range(len(bad.ops))))
        event.reason = bad.reason
        for op in bad.ops:
            if op.verdict == "kept":
                self._take_over(author, op, post(op.text))
        return event

    def _big(self, name: str, size: int) -> Event:
        """A commit with a kept post and much else in its CAR."""
        author = self._author()
        author.rev, rkey = self._name(), self._name()
        record = self._english()
        block, cid = block_and_cid(record)
        filler = [block_and_cid(b"%08d" % n + b"." * 900_000) for n in range(size // 900_000)]
        filler.append(block_and_cid(b"." * (size % 900_000)))
        listed = [operation("create", rkey, cid)]
        message = commit_of(SEQ, listed, [(block, cid), *filler], rev=author.rev, did=author.did, time=AT)
        op = Op("create", rkey, cid_text(cid), record["text"], "kept")
        self._take_over(author, op, record)
        event = self._event(name, split(message), author, ops=(op,), idx=(0,))
        if name == "too_large":
            event.outcome, event.reason = "ignored", "too_large"
        return event

    def _event(self, kind: str, message: bytes | str | Parts, author: Account, **told: Any) -> Event:
        return Event(self.head + 1, kind, self._clock, message, author.did, author.rev, **told)

    def _name(self) -> str:
        """A record key or revision above all before."""
        self._tick += 1
        return tid(self._tick)

    def _join(self) -> None:
        letters = "".join(self._randomness.choices("abcdefghijklmnopqrstuvwxyz234567", k=24))
        self._handles += 1
        account = Account(f"did:plc:{letters}", f"user{self._handles}.example.com")
        self.accounts[account.did] = account
        self._active.append(account)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)
