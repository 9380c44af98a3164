"""The errors of civicsky, by what the caller does about them. Imports nothing of ours."""

import errno
from typing import Any, Final

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says of a disk without room, or a quota that is used up."""

UNREACHABLE = "unreachable"
"""Why a post has no answer when nobody could be reached, as opposed to an answer of no use."""

BAD_PROXY = (
    "the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY) cannot be used; mend that variable, "
    "or put the server into NO_PROXY"
)
"""Its address is never told: it may hold a password."""


class CivicskyError(Exception):
    """Anything that ends a command with one line for the user.

    The message says what is wrong, where, and what to do about it.
    """

    exit_code = EXIT_FAILED


class Usage(CivicskyError):
    """Wrong usage, settings, or place: trying again without a change cannot help. Exit code 2."""

    exit_code = EXIT_USAGE


class Held(Usage):
    """Another process has the lock that this one needs: perhaps it does the work itself."""

    def __init__(self, message: str, *, brief: bool = False) -> None:
        super().__init__(message)
        self.brief = brief
        """It said that it will soon let go."""


class Failed(CivicskyError):
    """The work could not be finished; starting again may help. Exit code 1."""


class Refused(CivicskyError):
    """The far side refuses us for good (key, password, rights, model's name): a person must act."""

    exit_code = EXIT_USAGE


class Transient(CivicskyError):
    """The far side cannot just now: wait and try again. `retry_after` is in seconds, if it said so."""

    def __init__(self, message: str, retry_after: float | None = None, *, busy: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.busy = busy
        """It has too much to do: surely not the fault of what was asked."""
        self.spend: Any = None
        """What was paid in vain, if anything (`model.Spend`)."""


class Unsent(Transient):
    """As `Transient`, and nothing was sent: it says nothing of the far side, nor of what was to be sent."""


class TooLate(Unsent):
    """As `Unsent`: when it could be sent, its turn at a limit's pace was over; it needs another."""


class Doubtful(Transient):
    """As `Transient`, but what was sent may have arrived all the same: it is not to be sent again and again."""


class BadInput(Exception):
    """One frame, record, or answer cannot be used: count it under `reason` and go on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.spend: Any = None
        """What was paid in vain, if anything (`model.Spend`)."""
        self.raw = ""
        """The answer as it came, bounded; it may quote the post, so it is for the ledger only."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of the exceptions with which the tasks ended the one to show: a defect first, then what is meant for the user."""
    flat: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop()
        if isinstance(error, BaseExceptionGroup):
            todo += error.exceptions
        else:
            flat.append(error)
    return next((error for error in flat if not isinstance(error, CivicskyError)), flat[0])
