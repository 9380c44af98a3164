"""The values that pass between stages. Imports nothing of ours.

Times are integers: microseconds since 1970-01-01 UTC. A post's key is (rkey, did), in this order, because
rkeys rise with time. "rev" is the repository revision (a TID); "idx" is an operation's place in its commit.
"""

import re
from base64 import b32encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from typing import Any, Final, Literal, NamedTuple

POSTS = "app.bsky.feed.post"
_FEEDS = "app.bsky.feed.generator"
_OWNER, _RKEY = r"(did:[a-z]+:[A-Za-z0-9._:%-]{1,2000}|[A-Za-z0-9.-]{3,253})", r"([A-Za-z0-9._:~-]{1,512})"
_FEED = re.compile(rf"at://{_OWNER}/{re.escape(_FEEDS)}/{_RKEY}")
_FEED_PAGE = re.compile(rf"https://bsky\.app/profile/{_OWNER}/feed/{_RKEY}/?(?:[?#].*)?")

Key = tuple[str, str]
"""(rkey, did)."""

FrameOutcome = Literal[
    "commit",
    "account",
    "identity",
    "sync",
    "info",
    "error",
    "duplicate",
    "ignored",
    "quarantined",
]
"""What became of one websocket message; each has exactly one."""

PostOutcome = Literal["kept", "rejected", "shed", "updated", "deleted", "stale", "quarantined"]
"""What became of one operation on a post; each has exactly one. shed: left out by chance while the disk was full."""

RejectReason = Literal[
    "language",
    "no_text",
    "adult",
    "erased",
]
"""Why a well-formed post was not kept. language: not English; no_text: no text, alt text or link card;
adult: the author's own label says porn, sexual or nudity; erased: you had it or its author erased."""

BadReason = Literal[
    "undecodable",
    "bad_field",
    "bad_operation",
    "no_block",
    "wrong_hash",
    "not_a_record",
    "wrong_type",
    "bad_text",
    "worker_crashed",
    "worker_timeout",
]
"""Why a frame or a record was put in quarantine.

undecodable: not DAG-CBOR. bad_field: a frame's field is missing or of another type. bad_operation: an operation
without a path, action or CID that can be read. no_block: the commit's CAR lacks the record. wrong_hash: the block's
SHA-256 is not its CID's. not_a_record: the block is not a map. wrong_type: `$type` differs from the collection.
bad_text: `text` is not a string. worker_crashed, worker_timeout: decoding this record alone killed or hung a worker.
"""

FeedOutcome = Literal["new", "known", "rejected", "failed"]
"""What became of one item of a fetched feed; each has exactly one."""

FeedReason = Literal[RejectReason, BadReason, "deleted"]
"""Why an item of a feed was rejected, or failed. deleted: its author deleted it, as far as we know, and that wins."""

GapCause = Literal["renumbered", "outdated_cursor", "undecodable", "too_large", "not_replayed", "window"]
"""Why frames were missed. renumbered: the host's numbers are not those of our cursor. outdated_cursor: it said that
its window begins later. undecodable: the same ten frames twice. too_large: a message beyond every bound.
not_replayed: it began long after our cursor without a word, as the jump in the events' times shows. window:
`source.window` was closed in between, and what happened then was not wanted."""

Resume = Literal["first", "replayed", "in_time", "unverified", "gap"]
"""How a connection follows on what was held before. first: it had no cursor. replayed: the event at the cursor came
again. in_time: its first events follow the last ones closely in time. unverified: nobody can tell. gap: see its row."""

PostState = Literal["live", "hidden", "deleted"]

HIDING = frozenset({"takendown", "suspended", "deactivated", "desynchronized", "throttled"})
"""Statuses of an inactive account whose posts are hidden, not removed."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_read_time = datetime.fromisoformat
_YEAR_10000 = 253_402_300_800_000_000


def now_us() -> int:
    """The present, in microseconds since 1970 UTC."""
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def parse_time(text: str) -> int | None:
    """An RFC 3339 time as microseconds since 1970 UTC; None when it is none, has no zone, or is not of 1970-9999."""
    try:
        since = _read_time(text) - _EPOCH
    except (ValueError, TypeError, OverflowError):  # TypeError: it has no zone
        return None
    # As `since // microsecond`, and faster: every frame has a time.
    micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return micros if 0 <= micros < _YEAR_10000 else None


def parse_moment(text: str) -> int | None:
    """A date (its beginning, UTC) or an RFC 3339 time that a person typed, as microseconds; None when it is neither."""
    return parse_time(f"{text}T00:00:00Z" if len(text) == len("2026-11-22") else text)


def format_time(micros: int) -> str:
    """Microseconds since 1970 UTC as RFC 3339 with milliseconds: 2026-11-22T13:12:25.063Z."""
    moment = datetime.fromtimestamp(micros // 1000 / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{micros // 1000 % 1000:03d}Z"


def post_uri(did: str, rkey: str) -> str:
    """The AT-URI of a post."""
    return f"at://{did}/{POSTS}/{rkey}"


def did_of(uri: str) -> str:
    """Whose an AT-URI is; a DID is its own."""
    return uri.removeprefix("at://").partition("/")[0]


def post_key(uri: str) -> Key:
    """The key of a post, by its AT-URI: what `post_uri` was made of."""
    did, _, rkey = uri.removeprefix("at://").partition(f"/{POSTS}/")
    return rkey, did


def feed_place(address: str) -> tuple[str, str] | None:
    """(DID or handle of its author, record key) of a feed, from its AT-URI or web address; None when it is neither."""
    found = _FEED.fullmatch(address) or _FEED_PAGE.fullmatch(address)
    return (found[1], found[2]) if found else None


def feed_uri(did: str, rkey: str) -> str:
    """The AT-URI of a feed."""
    return f"at://{did}/{_FEEDS}/{rkey}"


def cid_text(cid: bytes) -> str:
    """A binary CID v1 as the string the protocol uses (multibase base32, lower case)."""
    return "b" + b32encode(cid).decode().rstrip("=").lower()


made: Final = tuple.__new__
"""Makes a value of all its fields, in their order, in half the time: for what is made for each frame."""


class Opening(NamedTuple):
    """One opening of `source.window`. Its limits are those of the settings; None: no such limit."""

    opened: int
    closes: int
    resume: Literal["live", "cursor"]
    max_posts: int | None = None
    max_kept: int | None = None

    def reached(self, posts: int, kept: int) -> str:
        """Which of its limits so many posts reach, in words; empty when none."""
        if self.max_posts is not None and posts >= self.max_posts:
            return f"limit of {self.max_posts} posts in an opening"
        if self.max_kept is not None and kept >= self.max_kept:
            return f"limit of {self.max_kept} posts kept in an opening"
        return ""


class Opened(NamedTuple):
    """What the journal knows of an opening."""

    opened: int
    closes: int
    resume: Literal["live", "cursor"]
    posts: int
    """New posts seen, of all languages."""
    kept: int
    why: str
    """The limit that ended it; empty when its hours did, or go on."""
    ended_at: int | None
    """Time of the last event before that limit."""


class Arrival(NamedTuple):
    """One websocket message as it came in."""

    n: int
    """The source's own count of arrivals in this process, from 1: the independent side of the balance."""
    host: str
    epoch: int
    link: int
    """Which connection of this process brought it, from 1."""
    resumed_after: int | None
    """The cursor that this connection was opened with."""
    data: bytes | str
    received_at: int
    opening: Opening | None = None
    """The opening in which it came; None without a window."""


class Handful(NamedTuple):
    """Messages of one connection that came together, in their order, to be taken in one by one or all at once."""

    link: int
    """As in `Arrival`."""
    at: int
    """When they were taken off the socket."""
    messages: Sequence[bytes | str]
    one_by_one: Iterator[Arrival]
    """Each must be settled before the next one is taken; those behind the end of the connection are left out."""


class PostOp(NamedTuple):
    """One operation on a post, as its commit names it, with the record's block if it has one."""

    idx: int
    action: Literal["create", "update", "delete"]
    rkey: str
    cid: bytes
    """Empty for a delete."""
    block: bytes
    """The record's DAG-CBOR bytes; empty for a delete or when `fault` is set."""
    fault: BadReason | None = None

    @property
    def needs_verdict(self) -> bool:
        """Whether a worker must judge its record."""
        return self.fault is None and self.action != "delete"


class Event(NamedTuple):
    """One decoded frame."""

    outcome: FrameOutcome
    seq: int | None = None
    did: str = ""
    time: int = 0
    rev: str = ""
    posts: Sequence[PostOp] = ()
    others: Sequence[tuple[str, str]] = ()
    """(collection, action) of operations on other collections."""
    status: str = ""
    """For #account: `active`, or the status it gives (`deleted`, `takendown`, ...)."""
    name: str = ""
    """For #info and error frames: their name. For ignored frames: why."""

    @property
    def new_posts(self) -> int:
        """How many posts it creates."""
        return sum(op.action == "create" for op in self.posts)


class Verdict(NamedTuple):
    """What a worker says of one record."""

    kind: Literal["kept", "rejected", "bad"]
    reason: str = ""
    fields: str = ""
    """JSON object of the post's fields (see `record.extract`) with `filter`; set unless kind is `bad`."""
    cid: str = ""
    """The record's CID as the protocol writes it; set unless kind is `bad`."""


class Frame(NamedTuple):
    """One arrival with what it was decoded to and what became of it."""

    arrival: Arrival
    event: Event
    outcome: FrameOutcome
    reason: str


@dataclass(slots=True)
class Batch:
    """Consecutive arrivals of one host, decoded; the unit of a journal transaction."""

    frames: list[Frame] = field(default_factory=list)
    gaps: list["Gap"] = field(default_factory=list)
    size: int = 0
    """Bytes of the frames."""

    def records(self) -> list[PostOp]:
        """The operations whose records a worker must judge, in the order of the stream."""
        return [
            op
            for frame in self.frames
            if frame.event.posts and frame.outcome == "commit"
            for op in frame.event.posts
            if op.needs_verdict
        ]


class Committed(NamedTuple):
    """What one journal transaction did."""

    counts: Counter[tuple[str, str, str]]
    """By (unit, outcome, reason); unit is `frame`, `post` (post operations) or `record` (other collections)."""
    position: "Position"
    kept_limit_reached: bool
    resume: Resume | None = None
    """How the connection follows on what was held before; told once, with its first new event."""
    opening_why: str = ""
    """The limit of its opening that was reached; empty when none was."""
    gaps: Sequence[GapCause] = ()
    """The causes of the gaps that it recorded."""


class Gap(NamedTuple):
    """Frames that were missed for certain, between two known points of one host's stream."""

    host: str
    epoch: int
    cause: GapCause
    after_seq: int | None
    at: int
    from_at: int | None = None
    """Time of the last event before it; None: where what is held of the host's epoch ends."""
    until_seq: int | None = None
    until_at: int | None = None
    """Time of the first event after it; before `from_at` when the window was read again from further back. None: not
    known yet."""
    n: int = 0
    """The arrival (of this process) with which it was noted."""


class Held(NamedTuple):
    """What one connection held: contiguous frames of one host and epoch. Times are the events' own."""

    host: str
    epoch: int
    resume: Resume
    first_seq: int
    last_seq: int
    first_at: int
    last_at: int
    frames: int


@dataclass(slots=True)
class Position:
    """Where we are in one host's stream. `cursor` is the last sequence number taken in, or None."""

    host: str
    epoch: int = 1
    cursor: int | None = None
    event_at: int | None = None


class Seen(NamedTuple):
    """That a feed showed a post, for the first time."""

    name: str
    """The feed's name, as in the settings, or its AT-URI."""
    rank: int
    """From 1."""
    at: int
    """When the feed was fetched."""


class Shown(NamedTuple):
    """What the public API showed of a post, besides the post itself."""

    seen: tuple[Seen, ...] = ()
    """The feeds that showed it, the first one first."""
    moderation: tuple[dict[str, str | None], ...] | None = None
    """Labels of moderation services, as the API last gave them: {source, value, at}; None: it was not asked."""


class PostRow(NamedTuple):
    """A post as the journal holds it."""

    rkey: str
    did: str
    rev: str | None
    cid: str
    state: PostState
    host: str
    """The relay that brought it; empty when only a feed showed it. Then `rev` is None."""
    event_at: int
    """Of a post that only a feed showed: when the public API indexed it."""
    received_at: int
    p_kept: float
    fields: dict[str, Any] | None
    """None for a tombstone."""


class Snapshot(NamedTuple):
    """What the public API counted of a post at one time."""

    n: int
    """Rising, in the journal."""
    did: str
    rkey: str
    at: int
    """When it was asked."""
    why: str
    """The feed's name, or the age at which labelled posts are counted (`24h`, `7d`)."""
    rank: int | None
    """In the feed, from 1."""
    likes: int
    reposts: int
    replies: int
    quotes: int


class Change(NamedTuple):
    """One entry of the journal's change feed."""

    n: int
    kind: Literal["put", "delete", "hide", "show", "remove"]
    """Of a post: put, delete. Of all posts of an account, whose rkey is then empty: hide, show, remove."""
    did: str
    rkey: str
    rev: str
    at: int


class FieldLabel(NamedTuple):
    """A field's value and, where the way of asking gives one, the model's own probability of it."""

    value: str
    probability: float | None


class Spend(NamedTuple):
    """What calls cost, whether their answers were of use or not."""

    model: str
    calls: int
    tokens_in: int
    tokens_out: int
    tokens_reasoning: int = 0
    """Of `tokens_out` those that the model thought with."""
    cost: float = 0.0
    """In `label.currency`, by the price table; 0 for a model that has no price there."""

    def plus(self, other: "Spend") -> "Spend":
        """Both together, of the same model."""
        return Spend(
            self.model,
            self.calls + other.calls,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.tokens_reasoning + other.tokens_reasoning,
            self.cost + other.cost,
        )


class Asked(NamedTuple):
    """One post as a model is to read it."""

    text: str
    """`record.readable`, cut at `label.max_chars`."""
    context: str = ""
    """What stands around it (see `context`), and reports on what it is about; empty when none is given."""
    events: str = ""
    """Which articles the context holds (see `events.giving.Given`); empty when it holds none."""

    @property
    def input_hash(self) -> str:
        """SHA-256 of the text, as hexadecimal digits."""
        return sha256(self.text.encode()).hexdigest()

    @property
    def context_hash(self) -> str | None:
        """SHA-256 of the context, as hexadecimal digits; None without one."""
        return sha256(self.context.encode()).hexdigest() if self.context else None


class Question(NamedTuple):
    """What is the same in all requests of a task at one time: which question, to whom."""

    prompt_hash: str
    """SHA-256 of everything that the model is given besides the post, as hexadecimal digits."""
    model: str
    """The model as it is asked for."""
    parameters: str
    """JSON object, keys sorted, of all that may change the answer besides prompt, model and post."""

    def key(self, asked: Asked) -> str:
        """The same question about the same text has the same key: 32 hexadecimal digits."""
        return _key(self, asked.input_hash, asked.context_hash)


class Answer(NamedTuple):
    """What a model said of one post, with everything needed to defend it later."""

    fields: dict[str, FieldLabel]
    way: str
    """How it was asked: `schema`, `json`, `plain` or `words` (see `prompt`)."""
    prompt_hash: str
    model_asked: str
    model_named: str
    fingerprint: str | None
    parameters: str
    """As in `Question`."""
    endpoint: str
    input_hash: str
    """SHA-256 of the text that the model read, as hexadecimal digits."""
    tokens_in: int
    tokens_out: int
    latency_ms: int
    calls: int
    context_hash: str | None = None
    tokens_reasoning: int = 0
    cost: float | None = None
    """In `currency`; None for a model without a price."""
    currency: str | None = None
    server: str | None = None
    """Program and version of the model's server, where it says so."""
    reason: str | None = None
    """The model's one sentence, if the task asks for it; it may quote the post."""
    cached_from: str | None = None
    """The label whose answer this is: the same question about the same text was paid for before. `erased`: it was
    deleted since; its name would tell whose text this also was."""
    events: str | None = None
    """JSON of which articles the context held (see `events.giving.Given`); None: none."""

    def plain(self) -> dict[str, Any]:
        """Its values by name, for JSON; without what only some have."""
        values = self._asdict()
        if self.events is None:
            del values["events"]
        return values

    @property
    def spend(self) -> Spend:
        """What it cost."""
        return Spend(
            self.model_asked, self.calls, self.tokens_in, self.tokens_out, self.tokens_reasoning, self.cost or 0.0
        )

    @property
    def key(self) -> str:
        """`Question.key` of what was asked."""
        question = Question(self.prompt_hash, self.model_asked, self.parameters)
        return _key(question, self.input_hash, self.context_hash)


def _key(question: Question, input_hash: str, context_hash: str | None) -> str:
    parts = (*question, input_hash, context_hash or "")
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


STREAM: Final = 0
"""The run of posts as they come."""


class Job(NamedTuple):
    """One post to be labelled under one task."""

    id: int
    did: str
    rkey: str
    cid: str
    task: str
    run: int
    """0: as posts come. Above: the round of `label --again`. Below: a drift probe of the day -run after 1970-01-01."""
    attempts: "Attempts"
    p_sampled: float

    @property
    def is_probe(self) -> bool:
        """Whether an anchor is asked again, to see whether the model still says the same."""
        return self.run < STREAM


class Attempts(NamedTuple):
    """Vain attempts so far, by what was at fault; each has a bound of its own."""

    answer: int = 0
    """Answers of no use."""
    transport: int = 0
    """Calls that broke while others succeeded."""
    overload: int = 0
    """Calls turned away while others succeeded."""


class Judged(NamedTuple):
    """What the gate said of one text under one task. It is kept: a replay or another gate changes nothing."""

    version: str
    """The gate's, see `gate.Gate.version`."""
    probability: float | None
    """The gate's own, that the text has the value it looks for; None: it was not looked at, since a feed showed it."""
    passed: bool | None
    """Whether that is not below the gate's threshold; None without a probability."""
    p_asked: float
    """Probability with which the model was asked: 1 for what passed, above 0 for the others."""


class LabelRow(NamedTuple):
    """A label as the ledger holds it; `answer` is None once it was erased."""

    label_id: str
    did: str
    rkey: str
    cid: str
    task: str
    task_version: str
    run: int
    p_sampled: float
    at: int
    attempts: int
    answer: Answer | None
    judged: Judged | None = None
    """By the gate; None: there was none, or the answer was there before it was asked."""


class Unlabelled(NamedTuple):
    """A post that was drawn and got no label: it counts in estimates, so users see it."""

    did: str
    rkey: str
    cid: str
    task: str
    reason: str
    p_sampled: float
    judged: Judged | None = None
    """As of a label."""


class Gated(NamedTuple):
    """A post that was drawn, and about which the gate let nobody be asked. It stands for no others in estimates."""

    did: str
    rkey: str
    cid: str
    task: str
    p_sampled: float
    judged: Judged


class Outgoing(NamedTuple):
    """What the store must still be told of one post."""

    did: str
    rkey: str
    v: int
    state: PostState
    event_at: int
    known: bool
    """Whether we ever kept it. If not, its tombstone only replaces a document that is there already."""
    cid: str = ""


class AuthorRow(NamedTuple):
    """What the store must still be told of an author of labelled posts."""

    did: str
    v: int
    state: PostState
    """`deleted`: the account is gone, or its last labelled post."""
    handle: str | None
    profile: dict[str, Any] | None
    """created_at (microseconds or None), followers, follows, posts, marks, moderation, lists, looked_up_at; None for
    one that is deleted."""
