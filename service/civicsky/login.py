"""The account that the public API is asked with where it wants one: its credentials, and its session on disk.

Nothing here knows the network. Credentials are read when a login is needed and not before. Passwords and tokens are
`SecretStr`: what shows them by mistake shows stars.
"""

import json
import os
import re
import stat
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import SecretStr

from civicsky.errors import BadInput, Usage
from civicsky.settings import AppView as AppViewSettings, expanded

SESSION: Final = "session.json"
"""The session's file in the data directory."""
_MAX_FILE_BYTES: Final = 100_000
_TOKEN: Final = re.compile(r"[!-~]{1,10000}")
"""What may stand in a header; tokens have some hundred characters."""
_SET = "set appview.handle and CIVICSKY_APPVIEW__APP_PASSWORD, or appview.credentials_file, and start again"
NONE_SET: Final = f"make an app password (bsky.app, Settings, App passwords), {_SET}"


class Credentials(NamedTuple):
    """Who logs in."""

    handle: str
    password: SecretStr


class Session(NamedTuple):
    """What a login gives."""

    server: str
    """The server's address."""
    handle: str
    """As the credentials have it."""
    access: SecretStr
    """Goes with each request; good for some hours."""
    refresh: SecretStr
    """Buys a new pair; good for some weeks."""


def are_set(settings: AppViewSettings) -> bool:
    """Whether the settings name an account. Nothing is read."""
    return bool(settings.credentials_file or settings.handle or settings.app_password.get_secret_value())


def credentials(settings: AppViewSettings) -> Credentials:
    """Handle and app password, from the settings, and what they lack from the file that they name. Raises `Usage`."""
    handle, password = settings.handle, settings.app_password.get_secret_value()
    if settings.credentials_file and not (handle and password):
        told = _from_file(expanded(settings.credentials_file))
        handle, password = handle or told["handle"], password or told["app_password"]
    if not handle or not password:
        raise Usage(f"appview: a login needs a handle and an app password: {_SET}")
    return Credentials(handle.strip().removeprefix("@"), SecretStr(password))


def session(answer: dict[str, Any], settings: AppViewSettings, who: Credentials) -> Session:
    """The session in the answer of createSession or refreshSession. Raises `BadInput("appview_answer")`."""
    tokens = [answer.get(name) for name in ("accessJwt", "refreshJwt")]
    if not all(isinstance(token, str) and _TOKEN.fullmatch(token) for token in tokens):
        raise BadInput("appview_answer")
    return Session(settings.login_url, who.handle, *(SecretStr(str(token)) for token in tokens))


def kept(folder: Path, settings: AppViewSettings, who: Credentials) -> Session | None:
    """The session of a former run; None when there is none of this account at this server that is fit for use."""
    with suppress(OSError, ValueError, BadInput):
        value = json.loads(_own_file(folder / SESSION))
        if isinstance(value, dict) and (value.get("server"), value.get("handle")) == (settings.login_url, who.handle):
            return session(value, settings, who)
    return None


def keep(folder: Path, made: Session) -> None:
    """Write the session for later runs, whole or not at all, for its owner's eyes only. Raises `Usage`."""
    file = folder / SESSION
    half = file.with_name(f".{SESSION}.{os.getpid()}")
    tokens = {"accessJwt": made.access.get_secret_value(), "refreshJwt": made.refresh.get_secret_value()}
    try:
        half.unlink(missing_ok=True)
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            json.dump({"server": made.server, "handle": made.handle, **tokens}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        half.replace(file)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise Usage(f"{file} cannot be written: {error.strerror}; make room, or mend the folder's rights") from None


def _from_file(file: Path) -> dict[str, str]:
    where = f"credentials file {file}"  # what stands in it is in no message
    try:
        found = tomllib.loads(_own_file(file))
    except PermissionError as error:
        why = error.strerror or "it can be read by others"
        raise Usage(f"{where}: {why}; make it yours alone: chmod 600 {file}") from None
    except OSError as error:
        raise Usage(f"{where}: {error.strerror}; mend appview.credentials_file") from None
    except ValueError:
        raise Usage(f'{where}: not TOML; write handle = "..." and app_password = "..."') from None
    if set(found) != {"handle", "app_password"} or not all(isinstance(one, str) and one for one in found.values()):
        raise Usage(f'{where}: it must hold two texts and nothing else: handle = "..." and app_password = "..."')
    return found


def _own_file(file: Path) -> str:
    """A file's text. Raises `PermissionError` without a word when group or others can read or write it."""
    with file.open("rb") as stream:
        if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
            raise PermissionError
        return stream.read(_MAX_FILE_BYTES).decode()
