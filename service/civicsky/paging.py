"""How the pages of a feed become one list, and where it ends. Pure.

Feeds are servers of anybody: their pages may be short or empty though more follows, repeat posts, or go round.
"""

import json
from typing import Final

from civicsky import inbox
from civicsky.appview import MAX_PAGE
from civicsky.inbox import Item
from civicsky.views import UNREADABLE, Page

MAX_PAGES: Final = 200
"""Pages of one feed at most, which are 20,000 posts: a feed that has more has no end."""
MAX_BYTES: Final = inbox.MAX_BYTES * 3 // 4
"""Bytes of one feed's posts at most, so that its file can be read again."""
IN_VAIN: Final = 3
"""Pages in a row without a post, or without a new one, after which a feed counts as ended."""

ENDS: Final = {
    "end": "complete",
    "limit": "the first ones only: --limit",
    "loop": "ended where its cursors go round",
    "empty": f"ended by {IN_VAIN} empty pages",
    "repeating": f"ended by {IN_VAIN} pages without a new post",
    "bound": f"the first ones only: more than {MAX_PAGES} pages, or too many bytes",
}
"""How a feed may end, none of which is a failure."""
WHOLE: Final = frozenset(ENDS) - {"limit", "bound"}
"""The ends at which a feed has shown all that it shows."""


class Gathering:
    """What the pages of one feed come to. Pure."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.items: list[Item] = []
        self.pages = 0
        self._seen: set[str] = set()
        self._cursors: set[str] = set()
        self._empty = self._idle = self._bytes = 0

    @property
    def wanted(self) -> int:
        """How many posts to ask for."""
        return MAX_PAGE if self._limit is None else min(MAX_PAGE, self._limit - len(self.items))

    def take(self, page: Page) -> str:
        """Take a page in; how the feed ends with it (see `ENDS`), or nothing."""
        self.pages += 1
        new = [item for item in page.items if self._is_new(item)]
        room = len(new) if self._limit is None else self._limit - len(self.items)
        for item in new[:room]:
            self._bytes += len(json.dumps(item))
            if self._bytes > MAX_BYTES:
                return "bound"
            self.items.append(item._replace(rank=len(self.items) + 1))
        if page.cursor is None:
            return "end" if len(new) <= room else "limit"
        if len(new) >= room and self._limit is not None:
            return "limit"
        return self._goes_on(page, page.cursor, idle=all(item == UNREADABLE for item in new))

    def _goes_on(self, page: Page, cursor: str, *, idle: bool) -> str:
        self._empty = 0 if page.items else self._empty + 1
        self._idle = self._idle + 1 if idle else 0
        if cursor in self._cursors:
            return "loop"
        self._cursors.add(cursor)
        if self._empty == IN_VAIN:
            return "empty"
        if self._idle == IN_VAIN:
            return "repeating"
        return "bound" if self.pages == MAX_PAGES else ""

    def _is_new(self, item: Item) -> bool:
        """Whether it is the first time that a post is shown; what cannot be read counts each time."""
        if item == UNREADABLE:
            return True
        known = item.uri in self._seen
        self._seen.add(item.uri)
        return not known
