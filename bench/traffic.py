"""Made-up frames that are like the network's, with the truth about each: the same for the same seed, on any machine.

    frames(n)     -> frame, Truth; frame, Truth; ...          some 5,000 a second
    recording(n)  -> a file of them, made once, then kept     length (4 bytes, big-endian), frame, length, frame, ...
    read(file), truths(file)                                  its frames, its truths
    Block(file).renew(k)                                      its frames as the k-th repetition of them, in place

Like the network's: 9 % of the frames create posts, most others are likes, follows, reposts and deletions; commits carry
MST nodes and a commit block with a signature (made of noise: nobody reads them), in the order in which servers write
them; half of the commits are larger than some 3.7 kB, and a few have up to 200 operations. Frames come 2,684 us apart
(373 a second), seq by seq without a gap, and one in 500 is hostile: `Truth.hostile` says how. Revisions of an author
rise; posts that are edited or deleted were made earlier in the same frames, or long before.

**Repetition.** Millions of frames are a block of 100,000 again and again. But an operation whose revision is not newer
than the last one on the same post is *stale* and hardly any work, and a frame with a known seq is dropped. `renew`
therefore moves everything that rises: seq by `SPAN` a repetition (seq is always above 2**32 and so nine bytes long in
canonical form), times by 2**28 us, and in every TID (rkeys, rev, since) the first six digits by as much. So every
repetition creates new posts with newer keys of the same authors, and edits and deletes its own. What stays are the
record blocks, hence their CIDs: none of the moved fields is inside of one. What is not right any more in a repetition,
and nobody checks: rev inside the commit block, keys inside MST nodes, and `createdAt` of records.
"""

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import numpy as np
from bench import texts
from libipld import encode_dag_cbor

SPAN: Final = 100_000
"""Frames in a block that is repeated."""
FIRST_SEQ: Final = 26_650_000_001
"""About where the large relays were in 2026."""
STEP_US: Final = 2684
"""Between two frames. `SPAN` of them take just under `SPAN_US`."""
SPAN_US: Final = 2**28
BEGIN_US: Final = (1_795_000_000_000_000 // SPAN_US) * SPAN_US
"""2026-11-18, and a border between blocks."""
AUTHORS: Final = 20_000
HOSTILE_EVERY: Final = 500
CACHE: Final = Path(__file__).parent / ".cache"

POST: Final = "app.bsky.feed.post"
LIKE: Final = "app.bsky.feed.like"
REPOST: Final = "app.bsky.feed.repost"
FOLLOW: Final = "app.bsky.graph.follow"
PROFILE: Final = "app.bsky.actor.profile"

_MIX: Final = {
    "like": 50.0, "follow": 15.0, "post": 8.98, "repost": 8.5, "unlike": 5.0, "unfollow": 4.0, "delete": 1.2,
    "block": 2.5, "listitem": 1.0, "threadgate": 0.8, "profile": 1.0, "foreign": 0.5, "edit": 0.1, "many": 0.02,
    "empty": 0.1, "identity": 0.6, "account": 0.6, "sync": 0.1,
}  # fmt: skip
"""Percent of the frames, by what they do. `many`: 3 to 200 posts at once."""
_DIGITS: Final = "234567abcdefghijklmnopqrstuvwxyz"
_CID: Final = b"\x01\x71\x12\x20"
_RAW_CID: Final = b"\x01\x55\x12\x20"
_NULL, _FALSE = b"\xf6", b"\xf4"


class PostTruth(NamedTuple):
    """One operation on a post."""

    action: str
    rkey: str
    cid: str = ""
    """Hexadecimal digits; empty for a deletion, and where the frame has none."""
    text: str = ""
    lang: str = ""
    """The language that the text is in, whatever its client said."""
    fault: str = ""
    """Why the operation or its record cannot be used; empty for nearly all."""


@dataclass(slots=True)
class Truth:
    """What a frame says, and where in it stands what a repetition changes."""

    kind: str
    """`#commit` and so on; of a hostile frame what a reader should take it for: also `ignored` and `bad`."""
    seq: int
    """Of a frame that has none: the number that was left out for it."""
    did: str = ""
    time: int = 0
    """Microseconds since 1970, whole milliseconds."""
    rev: str = ""
    posts: list[PostTruth] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)
    """(collection, action) of the other operations."""
    hostile: str = ""
    seq_at: int = -1
    """Offset of seq's eight bytes; -1: the frame has none."""
    time_at: int = -1
    """Offset of the 24 characters of its time."""
    tids: list[int] = field(default_factory=list)
    """Offsets of the 13 characters of each TID that is moved."""

    @property
    def new_posts(self) -> int:
        return sum(post.action == "create" for post in self.posts)


def frames(n: int, seed: int = 7, first_seq: int = FIRST_SEQ) -> Iterator[tuple[bytes, Truth]]:
    """`n` frames with consecutive numbers. The first frames of a longer run are the same.

    Raises `ValueError` for a `first_seq` below 2**32: its numbers would not all be nine bytes long.
    """
    if first_seq < 2**32:
        raise ValueError("first_seq must be at least 2**32")
    network = _Network(seed)
    for at in range(n):
        yield network.frame(at, first_seq + at)


def recording(n: int, seed: int = 7) -> Path:
    """A file of `frames(n, seed)`, from the cache if it was made before; `truths` and `Block` find what is beside."""
    made_by = Path(__file__).read_bytes() + Path(texts.__file__).read_bytes()
    path = CACHE / f"{n}-{seed}-{sha256(made_by).hexdigest()[:12]}.frames"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / path.name
            _write(made, n, seed)
            _truth_file(made).replace(_truth_file(path))
            made.replace(path)  # last: whoever sees it sees the truth, too
    return path


def read(path: Path) -> list[bytes]:
    """The frames of a recording."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : end])
        at = end
    return found


def truths(path: Path) -> list[Truth]:
    """The truth about each frame of a recording."""
    with _truth_file(path).open(encoding="utf-8") as lines:
        return [_truth(json.loads(line)) for line in lines]


def _truth(saved: dict[str, Any]) -> Truth:
    saved["posts"] = [PostTruth(*post) for post in saved["posts"]]
    saved["others"] = [(collection, action) for collection, action in saved["others"]]
    return Truth(**saved)


def _truth_file(path: Path) -> Path:
    return path.with_suffix(".truth.jsonl")


def _write(path: Path, n: int, seed: int) -> None:
    with path.open("wb") as stream, _truth_file(path).open("w", encoding="utf-8") as lines:
        for frame, truth in frames(n, seed):
            stream.write(len(frame).to_bytes(4, "big") + frame)
            lines.write(json.dumps(asdict(truth), separators=(",", ":")) + "\n")


class Block:
    """A recording in one piece of memory that can be sent, and made into its own repetition in place.

    `head` gives the bytes before a frame of so many bytes: the file's own length, or a websocket's header. `data` is
    head, frame, head, frame, ...; `starts[i]` and `ends[i]` say where frame i is, without its head.
    """

    def __init__(self, path: Path, head: Callable[[int], bytes] = lambda size: size.to_bytes(4, "big")) -> None:
        known, every = truths(path), read(path)
        heads = [head(len(frame)) for frame in every]
        self.data = bytearray(b"".join(part for pair in zip(heads, every, strict=True) for part in pair))
        sizes = np.array([len(frame) for frame in every], dtype=np.int64)
        whole = sizes + np.array([len(one) for one in heads], dtype=np.int64)
        self.ends = np.cumsum(whole)
        self.starts = self.ends - sizes
        self._bytes = np.frombuffer(self.data, dtype=np.uint8)
        numbered = [(i, truth) for i, truth in enumerate(known) if truth.seq_at >= 0]
        self._seq_at = np.array([self.starts[i] + truth.seq_at for i, truth in numbered])
        self._seqs = np.array([truth.seq for _, truth in numbered], dtype=">u8")
        self._time_at = np.array([self.starts[i] + truth.time_at for i, truth in numbered])
        self._times = np.array([truth.time // 1000 for _, truth in numbered], dtype="datetime64[ms]")
        self._tid_at = np.array([self.starts[i] + at for i, truth in enumerate(known) for at in truth.tids])
        self._tids = self._numbers(self._bytes[self._tid_at[:, None] + np.arange(6)])
        self._per = -(-len(every) // SPAN)
        self.span = self._per * SPAN
        """How far a repetition moves seq."""

    def __len__(self) -> int:
        return len(self.starts)

    def frame(self, i: int) -> bytes:
        """Frame `i` as it is now."""
        return bytes(self.data[self.starts[i] : self.ends[i]])

    def renew(self, k: int) -> None:
        """Make it the k-th repetition: 0 is the recording itself. 100,000 frames take some 0.2 s."""
        k *= self._per
        seqs = (self._seqs + k * SPAN).astype(">u8").view(np.uint8).reshape(-1, 8)
        self._bytes[self._seq_at[:, None] + np.arange(8)] = seqs
        # Whole milliseconds: the rest of a block's length is left away, and times still rise.
        moved = np.datetime_as_string(self._times + np.timedelta64(k * SPAN_US // 1000, "ms"), unit="ms")
        self._bytes[self._time_at[:, None] + np.arange(23)] = moved.astype("S23").view(np.uint8).reshape(-1, 23)
        digits = np.frombuffer(_DIGITS.encode(), dtype=np.uint8)
        places = 32 ** np.arange(6)[::-1]
        tids = self._tids + k * (SPAN_US // 2**25)  # the sixth digit counts 2**25 us
        self._bytes[self._tid_at[:, None] + np.arange(6)] = digits[tids[:, None] // places % 32]

    @staticmethod
    def _numbers(digits: Any) -> Any:
        value_of = np.zeros(256, dtype=np.int64)
        value_of[np.frombuffer(_DIGITS.encode(), dtype=np.uint8)] = np.arange(32)
        return value_of[digits] @ (32 ** np.arange(6)[::-1])


def tid(micros: int, clock: int) -> str:
    """The TID of a time and a clock's number of ten bits (https://atproto.com/specs/tid)."""
    number = micros << 10 | clock
    return "".join(_DIGITS[number >> shift & 31] for shift in range(60, -1, -5))


def _rfc3339(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + (
        f"{micros // 1000 % 1000:03d}Z"
    )


def _head(major: int, n: int) -> bytes:
    """CBOR's initial byte with its argument, in canonical form."""
    if n < 24:
        return bytes([major << 5 | n])
    for more, size in ((24, 1), (25, 2), (26, 4)):
        if n < 1 << 8 * size:
            return bytes([major << 5 | more]) + n.to_bytes(size, "big")
    return bytes([major << 5 | 27]) + n.to_bytes(8, "big")


def _text(value: str) -> bytes:
    coded = value.encode()
    return _head(3, len(coded)) + coded


def _bytes(value: bytes) -> bytes:
    return _head(2, len(value)) + value


def _link(cid: bytes) -> bytes:
    return b"\xd8\x2a\x58\x25\x00" + cid


def _cid_text(cid: bytes) -> str:
    number = int.from_bytes(cid, "big") << 2  # 288 bits are 58 digits of five, two bits of which are empty
    return "b" + "".join("abcdefghijklmnopqrstuvwxyz234567"[number >> shift & 31] for shift in range(285, -1, -5))


def _varint(n: int) -> bytes:
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def _cid_of(block: bytes) -> bytes:
    return _CID + sha256(block).digest()


class _Known(NamedTuple):
    """A post that exists: others may like it, its author may edit or delete it."""

    did: str
    rkey: str
    cid: bytes


class _Op(NamedTuple):
    action: str
    path: str
    block: bytes = b""
    cid: bytes = b""
    """Empty: null."""
    prev: bool = False
    post: PostTruth | None = None


@dataclass(slots=True)
class _Odd:
    """How a hostile commit differs from what it should be."""

    rev: bytes = b""
    """Its CBOR, in place of the right one."""
    cut: int = 0
    """So many bytes are missing at the end of the CAR."""
    left_out: bool = False
    """The record's block is missing."""
    more: bytes = b""
    """A whole block of the CAR, put first."""
    extra: bool = False
    """Fields that nobody knows yet."""
    path: bytes = b""
    """CBOR in place of the operation's path."""


class _Network:
    """Authors and posts so far; makes one frame after the other."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._seed = seed
        self._authors: dict[int, str] = {}
        self._posts: deque[_Known] = deque(maxlen=3000)
        self._off: list[str] = []
        """Deactivated accounts."""
        self._mix = list(_MIX)
        self._weights = [sum(list(_MIX.values())[: i + 1]) for i in range(len(_MIX))]
        self._hostile = 0
        for _ in range(200):
            self._posts.append(_Known(self._author(), self._old_rkey(), self._noise_cid()))

    def frame(self, at: int, seq: int) -> tuple[bytes, Truth]:
        """The frame at this place."""
        self._now, self._seq = BEGIN_US + at * STEP_US, seq
        self._made = self._now - 40_000  # the time that a relay needs
        if at % HOSTILE_EVERY == HOSTILE_EVERY - 350:
            names = list(_HOSTILE)
            name = names[self._hostile % len(names)]
            self._hostile += 1
            frame, truth = _HOSTILE[name](self)
            truth.hostile = name
            return frame, truth
        what = self._random.choices(self._mix, cum_weights=self._weights)[0]
        if what in ("identity", "account", "sync"):
            made: tuple[bytes, Truth] = getattr(self, "_" + what)()
            return made
        if what in ("edit", "delete"):
            return self._changed(what)
        did = self._author()
        return self.commit(did, self._ops(what, did))

    # -- who and when

    def _author(self) -> str:
        """Few write most."""
        return self._author_at(int(AUTHORS * self._random.random() ** 2.5))

    def _author_at(self, number: int) -> str:
        did = self._authors.get(number)
        if did is None:
            digest = sha256(f"{self._seed} {number}".encode()).digest()
            did = "did:plc:" + "".join(_cid_text(b"\0" * 4 + digest)[-24:])
            if number % 200 == 199:
                did = f"did:web:author{number}.example"
            self._authors[number] = did
        return did

    def _rkey(self, nth: int = 0) -> str:
        """Of a record that is made now, a little before its revision."""
        return tid(self._made - self._random.randrange(1000, 30_000) - 7 * nth, self._random.getrandbits(10))

    def _old_rkey(self) -> str:
        days = self._random.expovariate(1 / 30) + 1
        return tid(BEGIN_US - int(days * 86_400_000_000), self._random.getrandbits(10))

    def _noise_cid(self) -> bytes:
        return _CID + self._random.randbytes(32)

    # -- records

    def _ops(self, what: str, did: str) -> list[_Op]:
        chance = self._random.random()
        match what:
            case "post":
                ops = [self.new_post(did)]
                if chance < 0.03:  # its own thread, at once
                    ops += [self.new_post(did, nth + 1) for nth in range(self._random.randrange(1, 5))]
                return ops
            case "many":
                return [
                    self.new_post(did, nth) for nth in range(self._random.choices([3, 10, 50, 200], [12, 6, 3, 1])[0])
                ]
            case "unlike":
                gone = _Op("delete", f"{LIKE}/{self._old_rkey()}", prev=True)
                return [gone, self._other(LIKE, self._subject())] if chance < 0.05 else [gone]
            case "unfollow":
                return [_Op("delete", f"{FOLLOW}/{self._old_rkey()}", prev=True)]
            case "empty":
                return []
            case "profile":
                record = {
                    "$type": PROFILE,
                    "displayName": texts.draw(self._random).text[:40],
                    "createdAt": self._time(),
                }
                block = encode_dag_cbor(record)
                return [_Op("update", f"{PROFILE}/self", block, _cid_of(block), prev=True)]
        return [self._other(*self._simple(what))]

    def _simple(self, what: str) -> tuple[str, dict[str, Any]]:
        """(collection, fields) of a record that is no post."""
        match what:
            case "like":
                return LIKE, self._subject()
            case "repost":
                return REPOST, self._subject()
            case "follow":
                return FOLLOW, {"subject": self._author()}
            case "block":
                return "app.bsky.graph.block", {"subject": self._author()}
            case "listitem":
                of = f"at://{self._author()}/app.bsky.graph.list/{self._old_rkey()}"
                return "app.bsky.graph.listitem", {"subject": self._author(), "list": of}
            case "threadgate":
                post = self._random.choice(self._posts)
                allow = [{"$type": "app.bsky.feed.threadgate#mentionRule"}]
                return "app.bsky.feed.threadgate", {"post": f"at://{post.did}/{POST}/{post.rkey}", "allow": allow}
        return "com.example.note", {"body": texts.draw(self._random).text, "of": [1, 2, {"three": None}]}

    def _other(self, collection: str, fields: dict[str, Any]) -> _Op:
        block = encode_dag_cbor({"$type": collection, "createdAt": self._time(), **fields})
        return _Op("create", f"{collection}/{self._rkey()}", block, _cid_of(block))

    def _subject(self) -> dict[str, Any]:
        return {"subject": self._reference(self._random.choice(self._posts))}

    @staticmethod
    def _reference(post: _Known) -> dict[str, str]:
        return {"uri": f"at://{post.did}/{POST}/{post.rkey}", "cid": _cid_text(post.cid)}

    def _time(self) -> str:
        return _rfc3339(self._made - 100_000)

    def new_post(self, did: str, nth: int = 0) -> _Op:
        """A post that is created now."""
        op = self.post_op("create", self._rkey(nth), *self.post_record())
        self._posts.append(_Known(did, op.path.partition("/")[2], op.cid))
        return op

    def post_op(self, action: str, rkey: str, record: Any, text: str, lang: str, fault: str = "") -> _Op:
        """An operation that writes this record."""
        block = record if isinstance(record, bytes) else encode_dag_cbor(record)
        cid = _cid_of(block)
        truth = PostTruth(action, rkey, cid.hex(), text, lang, fault)
        return _Op(action, f"{POST}/{rkey}", block, cid, prev=action == "update", post=truth)

    def post_record(self) -> tuple[dict[str, Any], str, str]:
        """(record, text, language) of a post with what people add to it."""
        random, drawn = self._random, texts.draw(self._random)
        text, record = drawn.text, {"$type": POST, "createdAt": self._time()}
        if drawn.tags is not None:
            record["langs"] = drawn.tags
        if random.random() < 0.45:
            parent, root = random.choice(self._posts), random.choice(self._posts)
            record["reply"] = {"root": self._reference(root), "parent": self._reference(parent)}
        if random.random() < 0.2:
            text, record["facets"] = self._faceted(text)
        if random.random() < 0.45:
            record["embed"] = self._embed()
        if random.random() < 0.015:
            record["labels"] = {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "porn"}]}
        record["text"] = text
        return record, text, drawn.lang

    def _faceted(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """The text with a link, a mention or a tag at its end, and the facet that says so."""
        host = f"site{self._random.randrange(1000)}.example"
        added, feature = self._random.choice(
            [
                (f"{host}/news", {"$type": "app.bsky.richtext.facet#link", "uri": f"https://{host}/news/today.html"}),
                ("@" + host, {"$type": "app.bsky.richtext.facet#mention", "did": self._author()}),
                ("#news", {"$type": "app.bsky.richtext.facet#tag", "tag": "news"}),
            ]
        )
        begin = len(text.encode()) + 1
        index = {"byteStart": begin, "byteEnd": begin + len(added.encode())}
        facet = {"$type": "app.bsky.richtext.facet", "index": index, "features": [feature]}
        return f"{text} {added}", [facet]

    def _embed(self) -> dict[str, Any]:
        random = self._random
        kind = random.choices(["images", "external", "record", "video"], [50, 25, 18, 7])[0]
        match kind:
            case "images":
                images = [self._image() for _ in range(random.choice([1, 1, 1, 2, 4]))]
                return {"$type": "app.bsky.embed.images", "images": images}
            case "external":
                about = {"uri": f"https://site{random.randrange(1000)}.example/article/{random.randrange(10**6)}"}
                about |= {"title": texts.draw(random).text[:100], "description": texts.draw(random).text}
                thumb = {"thumb": self._blob("image/jpeg")} if random.random() < 0.8 else {}
                return {"$type": "app.bsky.embed.external", "external": about | thumb}
            case "record":
                return {"$type": "app.bsky.embed.record", "record": self._reference(random.choice(self._posts))}
        return {"$type": "app.bsky.embed.video", "video": self._blob("video/mp4"), "aspectRatio": _ratio(random)}

    def _image(self) -> dict[str, Any]:
        alt = texts.draw(self._random).text if self._random.random() < 0.4 else ""
        return {"alt": alt, "image": self._blob("image/jpeg"), "aspectRatio": _ratio(self._random)}

    def _blob(self, kind: str) -> dict[str, Any]:
        ref = _RAW_CID + self._random.randbytes(32)
        return {"$type": "blob", "ref": ref, "mimeType": kind, "size": self._random.randrange(20_000, 1_000_000)}

    # -- frames

    def _changed(self, what: str) -> tuple[bytes, Truth]:
        """A post is edited, or deleted: one of those that were made lately, or one that is long gone."""
        if what == "delete" and self._random.random() < 0.6:
            rkey = self._old_rkey()
            gone = _Op("delete", f"{POST}/{rkey}", prev=True, post=PostTruth("delete", rkey))
            return self.commit(self._author(), [gone])
        known = self._random.choice(self._posts)
        if what == "delete":
            self._posts.remove(known)
            gone = _Op("delete", f"{POST}/{known.rkey}", prev=True, post=PostTruth("delete", known.rkey))
            return self.commit(known.did, [gone])
        return self.commit(known.did, [self.post_op("update", known.rkey, *self.post_record())])

    def _identity(self) -> tuple[bytes, Truth]:
        did = self._author()
        return self._plain("#identity", did, [("handle", _text(did[8:20] + ".bsky.example"))])

    def _account(self) -> tuple[bytes, Truth]:
        """Mostly new ones. Those that end are among the authors who write least."""
        chance = self._random.random()
        if chance < 0.6:
            return self._plain("#account", self._author(), [("active", b"\xf5")])
        if self._off and chance < 0.7:
            return self._plain("#account", self._off.pop(), [("active", b"\xf5")])
        did = self._author_at(self._random.randrange(AUTHORS * 9 // 10, AUTHORS))
        status = self._random.choices(["deactivated", "takendown", "deleted"], [50, 30, 20])[0]
        if status == "deactivated":
            self._off.append(did)
        return self._plain("#account", did, [("active", _FALSE), ("status", _text(status))])

    def _sync(self) -> tuple[bytes, Truth]:
        did, rev = self._author(), tid(self._made, self._random.getrandbits(10))
        block = self._commit_block(did, rev, self._noise_cid())
        car = _car(_cid_of(block), [(_cid_of(block), block)])
        return self._plain("#sync", did, [("rev", _text(rev)), ("blocks", _bytes(car))], rev)

    def _plain(self, kind: str, did: str, more: list[tuple[str, bytes]], rev: str = "") -> tuple[bytes, Truth]:
        """A frame that is no commit."""
        fields = [("did", _text(did)), *self._numbered(), *more]
        return _frame(kind, fields, Truth(kind, self._seq, did, self._now // 1000 * 1000, rev))

    def _numbered(self) -> list[tuple[str, bytes]]:
        return [("seq", _head(0, self._seq)), ("time", _text(_rfc3339(self._now)))]

    def commit(self, did: str, ops: Sequence[_Op], odd: _Odd | None = None) -> tuple[bytes, Truth]:
        """A commit of these operations."""
        odd, rev = odd or _Odd(), tid(self._made, self._random.getrandbits(10))
        nodes = self._nodes(ops)
        signed = self._commit_block(did, rev, nodes[0][0])
        blocks = nodes + [(op.cid or self._noise_cid(), op.block) for op in ops if op.block and not odd.left_out]
        car = odd.more + b"".join(_whole(cid, block) for cid, block in [*blocks, (_cid_of(signed), signed)])
        car = _car_head(_cid_of(signed)) + car
        fields = [
            ("repo", _text(did)), *self._numbered(), ("rev", odd.rev or _text(rev)),
            ("since", _text(self._old_rkey())), ("ops", _head(4, len(ops)) + b"".join(self._op(op, odd) for op in ops)),
            ("blobs", b"\x80"), ("blocks", _bytes(car[: len(car) - odd.cut])), ("commit", _link(_cid_of(signed))),
            ("rebase", _FALSE), ("tooBig", _FALSE), ("prevData", _link(self._noise_cid())),
        ]  # fmt: skip
        if odd.extra:
            fields += [("later", b"\xa1\x61a\x01"), ("alsoLater", _NULL)]
        truth = Truth("#commit", self._seq, did, self._now // 1000 * 1000, rev)
        for op in ops:
            if op.post:
                truth.posts.append(op.post)
            else:
                truth.others.append((op.path.partition("/")[0], op.action))
        return _frame("#commit", fields, truth, [] if odd.path else [op.path for op in ops])

    def _op(self, op: _Op, odd: _Odd) -> bytes:
        fields = [("cid", _link(op.cid) if op.cid else _NULL), ("path", odd.path or _text(op.path))]
        fields.append(("action", _text(op.action)))
        if op.prev:
            fields.append(("prev", _link(self._noise_cid())))
        if odd.extra:
            fields.append(("later", b"\x01"))
        return _map(fields)

    def _nodes(self, ops: Sequence[_Op]) -> list[tuple[bytes, bytes]]:
        """(CID, node) of the MST, from its root down to where the records are."""
        random = self._random
        depth = min(9, max(1, round(random.gauss(6.2, 1.3)) + len(ops) // 3))
        nodes: list[tuple[bytes, bytes]] = []
        below = b""
        for _ in range(depth):
            node = self._node(max(1, min(30, int(random.lognormvariate(1.15, 0.85)))), below)
            below = _cid_of(node)
            nodes.append((below, node))
        return nodes[::-1]

    def _node(self, entries: int, below: bytes) -> bytes:
        random, leaf = self._random, not below
        follows = random.randrange(entries) if below else -1
        parts = [b"\xa2\x61e", _head(4, entries)]
        for nth in range(entries):
            key = random.randbytes(32 if nth == 0 else random.choice([7, 8, 9, 18]))
            tree = below if nth == follows else b"" if leaf or random.random() < 0.3 else self._noise_cid()
            parts += [b"\xa4\x61k", _bytes(key), b"\x61p", _head(0, 0 if nth == 0 else 24), b"\x61t"]
            parts += [_link(tree) if tree else _NULL, b"\x61v", _link(self._noise_cid())]
        parts += [b"\x61l", _NULL if leaf else _link(self._noise_cid())]
        return b"".join(parts)

    def _commit_block(self, did: str, rev: str, data: bytes) -> bytes:
        signature = self._random.randbytes(64)
        fields = [("did", _text(did)), ("rev", _text(rev)), ("sig", _bytes(signature)), ("data", _link(data))]
        return _map([*fields, ("prev", _NULL), ("version", b"\x03")])

    # -- hostile ones

    def as_unknown_kind(self) -> tuple[bytes, Truth]:
        frame, truth = self._plain("#later", self._author(), [("what", _text("nobody knows"))])
        truth.kind = "ignored"
        return frame, truth

    def as_unknown_op(self) -> tuple[bytes, Truth]:
        frame, truth = self._identity()
        truth.kind = "ignored"
        at = frame.index(b"\x62op\x01") + 3
        return frame[:at] + b"\x02" + frame[at + 1 :], truth

    def as_noise(self) -> tuple[bytes, Truth]:
        return b"\xff" + self._random.randbytes(400), Truth("bad", self._seq)

    def as_header_alone(self) -> tuple[bytes, Truth]:
        return b"\xa2\x61t\x67#commit\x62op\x01", Truth("bad", self._seq)

    def as_bad_rev(self) -> tuple[bytes, Truth]:
        frame, truth = self.commit(self._author(), [self._stray_post()], _Odd(rev=b"\x18\x2a"))
        truth.kind, truth.posts, truth.rev = "bad", [], ""
        return frame, truth

    def as_null_cid(self) -> tuple[bytes, Truth]:
        return self._faulty("bad_operation", cid=b"")

    def as_no_block(self) -> tuple[bytes, Truth]:
        return self._faulty("no_block", _Odd(left_out=True))

    def as_cut_car(self) -> tuple[bytes, Truth]:
        return self._faulty("no_block", _Odd(cut=300))

    def as_wrong_hash(self) -> tuple[bytes, Truth]:
        return self._faulty("wrong_hash", block=self._stray_post().block)

    def as_bad_path(self) -> tuple[bytes, Truth]:
        frame, truth = self._faulty("bad_operation", _Odd(path=b"\x18\x2a"))
        truth.posts = [PostTruth("create", "", fault="bad_operation")]
        return frame, truth

    def as_odd_block(self) -> tuple[bytes, Truth]:
        """A block that is no CBOR stands before all others; the post is a good one."""
        return self.commit(self._author(), [self._stray_post()], _Odd(more=_whole(self._noise_cid(), b"\xff\xff\xff")))

    def as_more_fields(self) -> tuple[bytes, Truth]:
        return self.commit(self._author(), [self._stray_post()], _Odd(extra=True))

    def as_list(self) -> tuple[bytes, Truth]:
        return self._with_record(encode_dag_cbor(["a", "list"]), "not_a_record")

    def as_wrong_type(self) -> tuple[bytes, Truth]:
        record = {"$type": LIKE, "createdAt": self._time(), **self._subject()}
        return self._with_record(encode_dag_cbor(record), "wrong_type")

    def as_bad_text(self) -> tuple[bytes, Truth]:
        return self._with_record(encode_dag_cbor(self.post_record()[0] | {"text": 42}), "bad_text")

    def as_deep(self) -> tuple[bytes, Truth]:
        return self._with_record(b"\x81" * 5000 + b"\x80", "undecodable")

    def _stray_post(self) -> _Op:
        """A post that nobody comes back to."""
        return self.post_op("create", self._rkey(), *self.post_record())

    def _with_record(self, block: bytes, fault: str) -> tuple[bytes, Truth]:
        return self.commit(self._author(), [self.post_op("create", self._rkey(), block, "", "", fault)])

    def _faulty(self, fault: str, odd: _Odd | None = None, **changed: Any) -> tuple[bytes, Truth]:
        op = self._stray_post()
        assert op.post is not None
        cid = "" if "cid" in changed else op.post.cid
        truth = PostTruth("create", op.post.rkey, cid, "", "", fault)
        return self.commit(self._author(), [op._replace(post=truth, **changed)], odd)


_HOSTILE: Final[dict[str, Callable[[_Network], tuple[bytes, Truth]]]] = {
    name.removeprefix("as_"): method for name, method in vars(_Network).items() if name.startswith("as_")
}
HOSTILE: Final = tuple(_HOSTILE)
"""In this order, one every `HOSTILE_EVERY` frames."""


def _map(fields: Sequence[tuple[str, bytes]]) -> bytes:
    """A map of keys and their values' CBOR, in canonical order: shorter keys first."""
    ordered = sorted(fields, key=lambda pair: (len(pair[0]), pair[0]))
    return _head(5, len(ordered)) + b"".join(_text(key) + value for key, value in ordered)


def _whole(cid: bytes, block: bytes) -> bytes:
    return _varint(len(cid) + len(block)) + cid + block


def _car_head(root: bytes) -> bytes:
    head = _map([("roots", b"\x81" + _link(root)), ("version", b"\x01")])
    return _varint(len(head)) + head


def _car(root: bytes, blocks: Sequence[tuple[bytes, bytes]]) -> bytes:
    return _car_head(root) + b"".join(_whole(cid, block) for cid, block in blocks)


def _ratio(random: Random) -> dict[str, int]:
    return {"width": random.randrange(400, 2000), "height": random.randrange(400, 2000)}


def _frame(
    kind: str, fields: Sequence[tuple[str, bytes]], truth: Truth, paths: Sequence[str] = ()
) -> tuple[bytes, Truth]:
    """A frame of these fields; its truth then says where the moving ones stand."""
    frame = b"\xa2\x61t" + _text(kind) + b"\x62op\x01" + _map(fields)
    # Each value is looked for behind its key, and keys stand before the blocks or are followed by their value's head.
    truth.seq_at = frame.index(b"\x63seq\x1b") + 5
    truth.time_at = frame.index(b"\x64time\x78\x18") + 7
    if kind in ("#commit", "#sync") and (at := frame.find(b"\x63rev\x6d")) >= 0:
        truth.tids.append(at + 5)
    if kind == "#commit":
        truth.tids.append(frame.index(b"\x65since\x6d") + 7)
    at = 0
    for path in paths:
        at = frame.index(b"\x64path" + _text(path), at) + 5
        if not path.endswith("/self"):
            truth.tids.append(at + len(_text(path)) - 13)
    return frame, truth
