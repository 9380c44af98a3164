"""What people type for several commands, read in one way. Pure."""

from civicsky.errors import Usage
from civicsky.model import parse_moment


def moment_of(flag: str, text: str | None) -> int | None:
    """A date or a time as microseconds since 1970 UTC; None when nothing was typed. Raises `Usage` with the flag."""
    moment = parse_moment(text) if text else None
    if text and moment is None:
        raise Usage(f"{flag} {text}: neither a date (2026-11-22, UTC) nor a time (2026-11-22T16:00:00Z)")
    return moment
