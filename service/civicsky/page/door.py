"""Who may see the page when there is a token: a cookie that a browser gets for it once. Pure but for the clock.

The cookie says until when it holds, and proves by a keyed hash that we said so: nothing is kept here, so it outlives a
restart, and ends with the token. The token itself is in no address, and in no cookie.

Browsers share cookies among all ports of a machine. So ours has a name by the token, or signing in to one service would
sign out of another; and it is found beside cookies of others, whatever these look like.
"""

import hmac
from hashlib import sha256
from time import monotonic, time
from typing import Final

COOKIE: Final = "civicsky-"
"""Begins its name."""
COOKIE_SECONDS: Final = 7 * 86_400
TRIES: Final = 10
"""Tokens that may be tried at once; after that one in `TRY_SECONDS`, whoever tries."""
TRY_SECONDS: Final = 6.0
_MAX_COOKIE: Final = 200


class Door:
    """Of a server with this token; without one nobody needs a cookie."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._name = COOKIE + self._keyed("civicsky page cookie")[:8]
        self._tries, self._tried_at = float(TRIES), monotonic()

    @property
    def is_open(self) -> bool:
        """Whether there is no token."""
        return not self._token

    def is_token(self, given: str) -> bool:
        """Whether this is the token, in a time that does not depend on where it differs."""
        return not self.is_open and hmac.compare_digest(given.encode(errors="replace"), self._token)

    def may_try(self) -> bool:
        """Whether a token may be tried now; it counts as tried."""
        now = monotonic()
        self._tries = min(float(TRIES), self._tries + (now - self._tried_at) / TRY_SECONDS)
        self._tried_at = now
        if self._tries < 1:
            return False
        self._tries -= 1
        return True

    def cookie(self) -> str:
        """What to set: no script can read it, and no other site's page can have it sent."""
        until = str(int(time()) + COOKIE_SECONDS)
        value = f"{until}.{self._proof(until)}"
        return f"{self._name}={value}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict"

    def no_cookie(self) -> str:
        """What to set to take it away."""
        return f"{self._name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"

    def knows(self, cookies: str) -> bool:
        """Whether a header `Cookie` holds one of ours that still holds."""
        pairs = (part.partition("=") for part in cookies.split(";"))
        return any(self._holds(value.strip()) for name, _, value in pairs if name.strip() == self._name)

    def _holds(self, value: str) -> bool:
        until, _, proof = value[:_MAX_COOKIE].partition(".")
        proved = hmac.compare_digest(proof.encode(errors="replace"), self._proof(until).encode())
        return proved and not self.is_open and until.isascii() and until.isdigit() and int(until) > time()

    def _proof(self, until: str) -> str:
        return self._keyed(f"civicsky page {until}")

    def _keyed(self, said: str) -> str:
        return hmac.new(self._token, said.encode(errors="replace"), sha256).hexdigest()
