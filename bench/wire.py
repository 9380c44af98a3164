"""A recording as the bytes that a websocket server sends, in turns without end."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.traffic import Block

_SHORT: Final = 126
_MIDDLE: Final = 1 << 16
"""From these sizes on a websocket message tells its length in two, and in eight bytes."""


class Wire:
    """A recording's frames as unmasked binary messages; each further turn is its next repetition.

    In memory it has the recording's size.
    """

    def __init__(self, recording: Path) -> None:
        self._block = Block(recording, head)
        self._view = memoryview(self._block.data)
        self._starts = [0, *self._block.ends.tolist()]
        self._turn = 0

    def __len__(self) -> int:
        """Frames in one turn."""
        return len(self._block)

    def pieces(self, first: int, until: int, chunk: int) -> Iterator[memoryview]:
        """The messages from number `first` on, up to `until`, counted over all turns; pieces of at most `chunk` bytes.

        A piece must be used before the next is asked for.
        """
        while first < until:
            turn, at = divmod(first, len(self))
            count = min(len(self) - at, until - first)
            if turn != self._turn:
                self._block.renew(turn)
                self._turn = turn
            end = self._starts[at + count]
            for begin in range(self._starts[at], end, chunk):
                yield self._view[begin : min(begin + chunk, end)]
            first += count


def head(size: int) -> bytes:
    """What stands before an unmasked, unfragmented binary message of this size."""
    if size < _SHORT:
        return bytes((0x82, size))
    if size < _MIDDLE:
        return struct.pack(">BBH", 0x82, 126, size)
    return struct.pack(">BBQ", 0x82, 127, size)
