"""The truth about a made-up frame."""

from dataclasses import dataclass, field
from typing import NamedTuple


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
