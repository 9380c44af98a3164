"""A file that lets us into NATS: a JWT and the key that signs for it (.creds), or a key alone (an NKey).

nats-py reads such files itself, but looks for ever for the JWT in one that has none. So they are read here, each time
anew: who puts a new one in its place need not start anything again.
"""

import base64
import json
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from civicsky.errors import Usage

MAX_BYTES: Final = 100_000
_JWT: Final = re.compile(r"^\s*([\w-]+\.[\w-]+\.[\w-]+)\s*$", re.ASCII | re.MULTILINE)
_SEED: Final = re.compile(r"^\s*(SU[A-Z2-7]{56})\s*$", re.ASCII | re.MULTILINE)


class Login(NamedTuple):
    """Who we are for NATS. Both are secrets: some JWTs let in whoever has them."""

    jwt: str
    """Empty: the key alone does."""
    seed: str

    def raw(self) -> str:
        """As in a file of NATS's own tools."""
        return (
            f"-----BEGIN NATS USER JWT-----\n{self.jwt}\n------END NATS USER JWT------\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.seed}\n------END USER NKEY SEED------\n"
        )


def read(file: Path) -> Login:
    """What is in it. Raises `Usage`, which tells nothing of it."""
    try:
        mode = file.stat().st_mode
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES)
    except OSError as error:
        raise Usage(f"workers.credentials: {file} cannot be read ({type(error).__name__})") from None
    if stat.S_IMODE(mode) & 0o077:
        raise Usage(f"workers.credentials: others can read {file}; chmod 600 it")
    login = parse(data.decode(errors="replace"))
    if login is None:
        raise Usage(f"workers.credentials: {file} has no user's key; it is a file .creds or .nk of NATS's own tools")
    return login


def parse(text: str) -> Login | None:
    """The first JWT, if there is one, and the first key of a user; None without a key."""
    jwt, seed = _JWT.search(text), _SEED.search(text)
    return Login(jwt[1] if jwt else "", seed[1]) if seed else None


def ends(login: Login) -> float | None:
    """When it lets nobody in any more, in Unix seconds; None: it does not say."""
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        claims = login.jwt.split(".")[1]
        told = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
        return float(told) if type(told) is int and told > 0 else None
    return None
