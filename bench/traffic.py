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
from collections.abc import Callable, Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.hostile import WAYS, Hostile
from bench.records import DIGITS, SPAN_US
from bench.truth import PostTruth, Truth

SPAN: Final = 100_000
"""Frames in a block that is repeated."""
FIRST_SEQ: Final = 26_650_000_001
"""About where the large relays were in 2026."""
HOSTILE_EVERY: Final = 500
CACHE: Final = Path(__file__).parent / ".cache"


def frames(n: int, seed: int = 7, first_seq: int = FIRST_SEQ) -> Iterator[tuple[bytes, Truth]]:
    """`n` frames with consecutive numbers. The first frames of a longer run are the same.

    Raises `ValueError` for a `first_seq` below 2**32: its numbers would not all be nine bytes long.
    """
    if first_seq < 2**32:
        raise ValueError("first_seq must be at least 2**32")
    network, ways = Hostile(seed), list(WAYS)
    for at in range(n):
        network.at(at)
        network.seq = first_seq + at
        nth, place = divmod(at, HOSTILE_EVERY)
        if place != HOSTILE_EVERY * 3 // 10:
            yield network.usual()
            continue
        name = ways[nth % len(ways)]
        frame, truth = WAYS[name](network)
        truth.hostile = name
        yield frame, truth


def recording(n: int, seed: int = 7) -> Path:
    """A file of `frames(n, seed)`, from the cache if it was made before; `truths` and `Block` find what is beside."""
    path = CACHE / f"{n}-{seed}-{_made_by()}.frames"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / path.name
            _write(made, n, seed)
            _truth_file(made).replace(_truth_file(path))
            made.replace(path)  # last: whoever sees it sees the truth, too
    return path


def _made_by() -> str:
    """Changes whenever what is made might."""
    names = ("traffic", "truth", "hostile", "network", "records", "texts", "dagcbor")
    sources = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in names)
    return sha256(sources).hexdigest()[:12]


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
        self._millis = np.array([truth.time // 1000 for _, truth in numbered])
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
        millis = self._millis + k * SPAN_US // 1000
        moved = np.datetime_as_string(millis.astype("datetime64[ms]"), unit="ms")
        self._bytes[self._time_at[:, None] + np.arange(23)] = moved.astype("S23").view(np.uint8).reshape(-1, 23)
        digits = np.frombuffer(DIGITS.encode(), dtype=np.uint8)
        places = 32 ** np.arange(6)[::-1]
        tids = self._tids + k * (SPAN_US // 2**25)  # the sixth digit counts 2**25 us
        self._bytes[self._tid_at[:, None] + np.arange(6)] = digits[tids[:, None] // places % 32]

    @staticmethod
    def _numbers(digits: Any) -> Any:
        value_of = np.zeros(256, dtype=np.int64)
        value_of[np.frombuffer(DIGITS.encode(), dtype=np.uint8)] = np.arange(32)
        return value_of[digits] @ (32 ** np.arange(6)[::-1])
