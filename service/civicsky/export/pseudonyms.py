"""Keyed pseudonyms for the level `public` of exports, and the file of their key."""

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from civicsky.errors import Usage

KEY: Final = "pseudonyms.key"
"""The key's file in the data directory, unless another is named."""
_PSEUDONYM_BYTES: Final = 16
_KEY_BYTES: Final = 32
_READABLE: Final = 0o077


class Pseudonyms(NamedTuple):
    """Names that stand for authors and posts: HMAC-SHA-256 with a secret key, 128 bits as hexadecimal digits."""

    key: bytes

    def author(self, did: str) -> str:
        """The same account has the same name wherever the key is the same."""
        return self._name(f"author {did}")

    def post(self, uri: str) -> str:
        """Likewise for a post."""
        return self._name(f"post {uri}")

    def check(self) -> str:
        """Tells whether two exports have the same key, and nothing of the key."""
        return self._name("civicsky pseudonyms")[:16]

    def _name(self, what: str) -> str:
        whole = hmac.digest(self.key, what.encode(errors="surrogatepass"), hashlib.sha256)
        return whole[:_PSEUDONYM_BYTES].hex()


def pseudonyms(file: Path) -> Pseudonyms:
    """Those of a key file, which is made when there is none yet. Raises `Usage` when others may read it."""
    try:
        if not file.exists():
            _make_key(file)
        if file.stat().st_mode & _READABLE:
            raise Usage(f"{file}: others may read this key, and with it find the authors; chmod 600 {file}")
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no key"
        raise Usage(f"{file}: {why}; name another file with --key-file") from None
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise Usage(f"{file} is no key: 64 hexadecimal digits; name another file with --key-file, and it is made")
    return Pseudonyms(bytes.fromhex(text))


def _make_key(file: Path) -> None:
    """Whole or not at all; one that somebody made meanwhile stays."""
    part = file.with_name(f"{file.name}.{os.getpid()}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(_KEY_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink()
