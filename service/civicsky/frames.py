"""The format of recorded streams: for each frame a 4-byte big-endian length, then its bytes; gzip."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from civicsky.errors import Usage


def sample_file() -> Path:
    """The packaged recording."""
    return Path(str(files("civicsky") / "data" / "sample" / "frames.bin.gz"))


def read_frames(file: Path) -> Iterator[bytes]:
    """The frames of a file, in order. Raises `Usage` when it is none or is cut short."""
    try:
        with gzip.open(file) as stream:
            while header := stream.read(4):
                (size,) = struct.unpack(">I", header)
                frame = stream.read(size)
                if len(frame) < size:
                    raise EOFError
                yield frame
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise Usage(f"{file} is not a whole file of frames ({error or 'cut short'})") from None


class FrameWriter:
    """Writes frames to a file; the file is whole once `close` was called."""

    def __init__(self, file: Path) -> None:
        try:
            self._stream = gzip.open(file, "wb")  # noqa: SIM115  (closed by `close`)
        except OSError as error:
            raise Usage(f"{file} cannot be written: {error.strerror}") from None

    def write(self, frame: bytes) -> None:
        """Append one frame."""
        self._stream.write(struct.pack(">I", len(frame)) + frame)

    def close(self) -> None:
        """Finish the file."""
        self._stream.close()
