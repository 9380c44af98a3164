import gzip
import zlib
from pathlib import Path

import pytest

from civicsky.errors import Usage
from civicsky.frames import FrameWriter, read_frames, sample_file
from unit.recorded import STREAMS, stream


@pytest.mark.parametrize("name", STREAMS)
def test_a_recording_is_read_frame_by_frame(name: str) -> None:
    assert tuple(read_frames(STREAMS[name])) == stream(name)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    frames = [b"one", b"", b"\0" * 70_000, *stream("live")[:20]]
    writer = FrameWriter(tmp_path / "frames")
    for frame in frames:
        writer.write(frame)
    writer.close()
    assert list(read_frames(tmp_path / "frames")) == frames


def test_the_format_is_a_length_of_four_bytes_and_the_frame(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "frames")
    writer.write(b"abc")
    writer.write(b"d" * 258)
    writer.close()
    assert gzip.decompress((tmp_path / "frames").read_bytes()) == b"\0\0\0\x03abc\0\0\x01\x02" + b"d" * 258


def test_a_file_without_frames_has_none(tmp_path: Path) -> None:
    FrameWriter(tmp_path / "frames").close()
    assert list(read_frames(tmp_path / "frames")) == []


def read_all(file: Path) -> tuple[list[bytes], str]:
    """The frames before the fault, and what the user is told."""
    found: list[bytes] = []
    with pytest.raises(Usage) as caught:
        found.extend(read_frames(file))
    return found, str(caught.value)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 8])
def test_a_file_whose_content_is_cut_short_gives_the_frames_before_the_cut_and_says_so(
    tmp_path: Path, cut: int
) -> None:
    file = tmp_path / "frames"
    whole = b"\0\0\0\x05first\0\0\0\x05later"
    file.write_bytes(gzip.compress(whole[:-cut]))
    frames, told = read_all(file)
    assert frames == [b"first"]
    assert told.startswith(f"{file} is not a whole file of frames (")


def test_a_file_whose_last_bytes_are_missing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "frames"
    whole = STREAMS["live"].read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 20):
        file.write_bytes(whole[:size])
        assert read_all(file)[1].startswith(f"{file} is not a whole file of frames (")


def test_a_file_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "frames"
    whole = gzip.compress(b"\0\0\0\x05first")
    damaged = whole[:10] + b"\xff" * (len(whole) - 10)  # the header stays
    file.write_bytes(damaged)
    with pytest.raises(zlib.error):
        gzip.decompress(damaged)
    assert read_all(file)[1].startswith(f"{file} is not a whole file of frames (")


@pytest.mark.parametrize("content", [b"hello", b"\0\0\0\x01a", b"\x1f\x8b"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "frames"
    file.write_bytes(content)
    assert read_all(file)[0] == []


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No such file" in read_all(tmp_path / "nowhere")[1]
    assert "nowhere" in read_all(tmp_path / "nowhere")[1]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Usage, match=f"{tmp_path} cannot be written: Is a directory"):
        FrameWriter(tmp_path)


def test_the_sample_is_the_packaged_recording() -> None:
    assert sample_file() == STREAMS["sample"]
