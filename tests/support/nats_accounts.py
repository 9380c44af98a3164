"""Operator, accounts and users of NATS as signed JWTs, and a server's lines for them; what `nsc` would make."""

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys

ANY = -1
LIMITS = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage",
                        "disk_storage", "streams", "consumer"), ANY) | {"wildcards": True}  # fmt: skip


class Key:
    """One of NATS's keys."""

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix).decode()
        self.public = nkeys.from_seed(bytearray(self.seed.encode())).public_key.decode()

    def sign(self, subject: str, kind: str, nats: dict[str, Any], **claims: Any) -> str:
        """A JWT about somebody."""
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = {
            "jti": os.urandom(8).hex(), "iat": int(time.time()) - 60, "iss": self.public, "sub": subject, "name": kind,
            "nats": {"type": kind, "version": 2, **nats}, **claims,
        }  # fmt: skip
        said = ".".join(_coded(json.dumps(part).encode()) for part in (head, body))
        return f"{said}.{_coded(nkeys.from_seed(bytearray(self.seed.encode())).sign(said.encode()))}"


class Operator:
    """One with an account for us and one for the system."""

    def __init__(self) -> None:
        key = Key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account, system = Key(nkeys.PREFIX_BYTE_ACCOUNT), Key(nkeys.PREFIX_BYTE_ACCOUNT)
        jwt = key.sign(key.public, "operator", {"system_account": system.public})
        ours = key.sign(self._account.public, "account", {"limits": LIMITS})
        its = key.sign(system.public, "account", {"limits": LIMITS | {"mem_storage": 0, "disk_storage": 0}})
        self.config = (
            f"operator: {jwt}\nsystem_account: {system.public}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {self._account.public}: {ours}\n {system.public}: {its} }}\n"
        )

    def credentials(self, file: Path, rights: dict[str, Any] | None = None, *, seconds: float = 0) -> Path:
        """A user's credentials file, which ends after so many seconds, if it does."""
        user = Key(nkeys.PREFIX_BYTE_USER)
        claims = {"exp": int(time.time() + seconds)} if seconds else {}
        nats = {"subs": ANY, "data": ANY, "payload": ANY, "pub": {}, "sub": {}} | (rights or {})
        jwt = self._account.sign(user.public, "user", nats, **claims)
        new = file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\nNKEY Seed printed below\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )
        return new.replace(file)


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
