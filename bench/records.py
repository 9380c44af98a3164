"""Who writes when, and what: authors, times, and the records of made-up frames."""

from collections import deque
from datetime import UTC, datetime
from hashlib import sha256
from random import Random
from typing import Any, Final, NamedTuple

from libipld import encode_dag_cbor

from bench import dagcbor, texts
from bench.truth import PostTruth

STEP_US: Final = 2684
"""Between two frames."""
SPAN_US: Final = 2**28
"""100,000 of them take just under so much."""
BEGIN_US: Final = (1_795_000_000_000_000 // SPAN_US) * SPAN_US
"""2026-11-18, and a border between blocks."""
AUTHORS: Final = 20_000

POST: Final = "app.bsky.feed.post"
LIKE: Final = "app.bsky.feed.like"
REPOST: Final = "app.bsky.feed.repost"
FOLLOW: Final = "app.bsky.graph.follow"
PROFILE: Final = "app.bsky.actor.profile"

DIGITS: Final = "234567abcdefghijklmnopqrstuvwxyz"
"""Of TIDs, which sort as their numbers do."""


def tid(micros: int, clock: int) -> str:
    """The TID of a time and a clock's number of ten bits (https://atproto.com/specs/tid)."""
    number = micros << 10 | clock
    return "".join(DIGITS[number >> shift & 31] for shift in range(60, -1, -5))


def rfc3339(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + (
        f"{micros // 1000 % 1000:03d}Z"
    )


class Known(NamedTuple):
    """A post that exists: others may like it, its author may edit or delete it."""

    did: str
    rkey: str
    cid: bytes


class Op(NamedTuple):
    action: str
    path: str
    block: bytes = b""
    cid: bytes = b""
    """Empty: null."""
    prev: bool = False
    post: PostTruth | None = None


class Records:
    """Authors and posts so far; makes records, each at the time of the frame that is made now."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self._seed = seed
        self._authors: dict[int, str] = {}
        self.posts: deque[Known] = deque(maxlen=3000)
        self.now = self.made = BEGIN_US
        """Time of the frame, and of the revision: a relay needs some time."""
        for _ in range(200):
            self.posts.append(Known(self.author(), self.old_rkey(), self.noise_cid()))

    def at(self, place: int) -> None:
        """What follows belongs to the frame at this place."""
        self.now = BEGIN_US + place * STEP_US
        self.made = self.now - 40_000

    def author(self) -> str:
        """Few write most."""
        return self.author_at(int(AUTHORS * self.random.random() ** 2.5))

    def author_at(self, number: int) -> str:
        did = self._authors.get(number)
        if did is None:
            digest = sha256(f"{self._seed} {number}".encode()).digest()
            did = "did:plc:" + "".join(dagcbor.cid_text(b"\0" * 4 + digest)[-24:])
            if number % 200 == 199:
                did = f"did:web:author{number}.example"
            self._authors[number] = did
        return did

    def rkey(self, nth: int = 0) -> str:
        """Of a record that is made now, a little before its revision."""
        return tid(self.made - self.random.randrange(1000, 30_000) - 7 * nth, self.random.getrandbits(10))

    def old_rkey(self) -> str:
        days = self.random.expovariate(1 / 30) + 1
        return tid(BEGIN_US - int(days * 86_400_000_000), self.random.getrandbits(10))

    def noise_cid(self) -> bytes:
        return dagcbor.CID + self.random.randbytes(32)

    def _simple(self, what: str) -> tuple[str, dict[str, Any]]:
        """(collection, fields) of a record that is no post."""
        match what:
            case "like":
                return LIKE, self.subject()
            case "repost":
                return REPOST, self.subject()
            case "follow":
                return FOLLOW, {"subject": self.author()}
            case "block":
                return "app.bsky.graph.block", {"subject": self.author()}
            case "listitem":
                of = f"at://{self.author()}/app.bsky.graph.list/{self.old_rkey()}"
                return "app.bsky.graph.listitem", {"subject": self.author(), "list": of}
            case "threadgate":
                post = self.random.choice(self.posts)
                allow = [{"$type": "app.bsky.feed.threadgate#mentionRule"}]
                return "app.bsky.feed.threadgate", {"post": f"at://{post.did}/{POST}/{post.rkey}", "allow": allow}
        return "com.example.note", {"body": texts.draw(self.random).text, "of": [1, 2, {"three": None}]}

    def other(self, collection: str, fields: dict[str, Any]) -> Op:
        block = encode_dag_cbor({"$type": collection, "createdAt": self.time(), **fields})
        return Op("create", f"{collection}/{self.rkey()}", block, dagcbor.cid_of(block))

    def subject(self) -> dict[str, Any]:
        return {"subject": self.reference(self.random.choice(self.posts))}

    @staticmethod
    def reference(post: Known) -> dict[str, str]:
        return {"uri": f"at://{post.did}/{POST}/{post.rkey}", "cid": dagcbor.cid_text(post.cid)}

    def time(self) -> str:
        return rfc3339(self.made - 100_000)

    def new_post(self, did: str, nth: int = 0) -> Op:
        """A post that is created now."""
        op = self.post_op("create", self.rkey(nth), *self.post_record())
        self.posts.append(Known(did, op.path.partition("/")[2], op.cid))
        return op

    def post_op(self, action: str, rkey: str, record: Any, text: str, lang: str, fault: str = "") -> Op:
        """An operation that writes this record."""
        block = record if isinstance(record, bytes) else encode_dag_cbor(record)
        cid = dagcbor.cid_of(block)
        truth = PostTruth(action, rkey, cid.hex(), text, lang, fault)
        return Op(action, f"{POST}/{rkey}", block, cid, prev=action == "update", post=truth)

    def post_record(self) -> tuple[dict[str, Any], str, str]:
        """(record, text, language) of a post with what people add to it."""
        random, drawn = self.random, texts.draw(self.random)
        text = drawn.text
        record: dict[str, Any] = {"$type": POST, "createdAt": self.time()}
        if drawn.tags is not None:
            record["langs"] = drawn.tags
        if random.random() < 0.45:
            parent, root = random.choice(self.posts), random.choice(self.posts)
            record["reply"] = {"root": self.reference(root), "parent": self.reference(parent)}
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
        host = f"site{self.random.randrange(1000)}.example"
        added, feature = self.random.choice(
            [
                (f"{host}/news", {"$type": "app.bsky.richtext.facet#link", "uri": f"https://{host}/news/today.html"}),
                ("@" + host, {"$type": "app.bsky.richtext.facet#mention", "did": self.author()}),
                ("#news", {"$type": "app.bsky.richtext.facet#tag", "tag": "news"}),
            ]
        )
        begin = len(text.encode()) + 1
        index = {"byteStart": begin, "byteEnd": begin + len(added.encode())}
        facet = {"$type": "app.bsky.richtext.facet", "index": index, "features": [feature]}
        return f"{text} {added}", [facet]

    def _embed(self) -> dict[str, Any]:
        random = self.random
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
                return {"$type": "app.bsky.embed.record", "record": self.reference(random.choice(self.posts))}
        return {"$type": "app.bsky.embed.video", "video": self._blob("video/mp4"), "aspectRatio": _ratio(random)}

    def _image(self) -> dict[str, Any]:
        alt = texts.draw(self.random).text if self.random.random() < 0.4 else ""
        return {"alt": alt, "image": self._blob("image/jpeg"), "aspectRatio": _ratio(self.random)}

    def _blob(self, kind: str) -> dict[str, Any]:
        ref = dagcbor.RAW_CID + self.random.randbytes(32)
        return {"$type": "blob", "ref": ref, "mimeType": kind, "size": self.random.randrange(20_000, 1_000_000)}


def _ratio(random: Random) -> dict[str, int]:
    return {"width": random.randrange(400, 2000), "height": random.randrange(400, 2000)}
