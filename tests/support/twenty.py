"""Twenty posts with unequal probabilities, and their weighted shares, reckoned by hand.

A post weighs 1 / (p_kept * p_sampled). Weights by day and what the label says:

    2026-11-20  civic         1 + 2 + 4 + 8       = 15
                not civic     4 + 5 + 10 + 1      = 20
                no label      2 (refusal) + 8 (empty) = 10     all: 45
    2026-11-21  civic         10 + 4 + 2 + 4      = 20
                not civic     1 + 2 + 8 + 5       = 16         all: 36

The 19th is known from a feed alone, the 20th was not drawn: neither counts. So of 81 in all civic is 35, not civic 36.
Of the 35 that are civic lean is left 1 + 2 + 10 + 4 = 17, moderate 8, right 4 + 2 = 6, unclear 4. Unweighted, 8 of 18
would be civic, and 4 of 8 of these left.
"""

from typing import Any

from civicsky.document import Document

# author, p_kept, p_sampled, what the label says (or why there is none)
ROWS: list[tuple[str, float, float, str]] = [
    ("a", 1.0, 1.0, "left-leaning"),  # weighs 1
    ("b", 1.0, 0.5, "left-leaning"),  # 2
    ("c", 0.5, 0.5, "right-leaning"),  # 4
    ("d", 0.5, 0.25, "moderate"),  # 8
    ("e", 1.0, 0.25, "not civic"),  # 4
    ("f", 1.0, 0.2, "not civic"),  # 5
    ("g", 0.5, 0.2, "not civic"),  # 10
    ("h", 1.0, 1.0, "not civic"),  # 1
    ("i", 1.0, 0.5, "? refusal"),  # 2
    ("j", 0.5, 0.25, "? empty"),  # 8
    ("k", 1.0, 0.1, "left-leaning"),  # 10
    ("l", 1.0, 0.25, "unclear"),  # 4
    ("m", 0.5, 1.0, "right-leaning"),  # 2
    ("n", 0.5, 0.5, "left-leaning"),  # 4
    ("o", 1.0, 1.0, "not civic"),  # 1
    ("p", 1.0, 0.5, "not civic"),  # 2
    ("q", 0.5, 0.25, "not civic"),  # 8
    ("r", 1.0, 0.2, "not civic"),  # 5
    ("s", 1.0, 1.0, "left-leaning"),  # a feed's alone
    ("t", 1.0, 1.0, ""),  # not drawn
]
DAYS = {"2026-11-20": 10, "2026-11-21": 9}
"""Live posts that the firehose brought."""
SHARES = {
    "civic": {
        "civic": 35 / 81, "not civic": 36 / 81, "unlabelled: empty": 8 / 81, "unlabelled: refusal": 2 / 81,
    },
    "lean": {"left-leaning": 17 / 35, "moderate": 8 / 35, "right-leaning": 6 / 35, "unclear": 4 / 35},
    "us_politics": {"yes": 1.0, "no": 0.0, "unclear": 0.0},
}  # fmt: skip
BY_DAY = {
    "2026-11-20": {
        "civic": 15 / 45, "not civic": 20 / 45, "unlabelled: empty": 8 / 45, "unlabelled: refusal": 2 / 45,
    },
    "2026-11-21": {"civic": 20 / 36, "not civic": 16 / 36},
}  # fmt: skip


def twenty() -> list[Document]:
    """As documents of the store: the first ten of one day, the rest of the next."""
    return [_post(n, *row) for n, row in enumerate(ROWS)]


def _post(n: int, author: str, p_kept: float, p: float, says: str) -> Document:
    uri = f"at://did:plc:{author}/app.bsky.feed.post/{n:013d}"
    day = "2026-11-20" if n < 10 else "2026-11-21"
    feed = {"kind": "feed", "name": "today", "rank": 1, "fetched_at": f"{day}T16:00:00.000Z"}
    return {
        "_id": uri, "uri": uri, "did": f"did:plc:{author}", "v": 1, "state": "live",
        "event_at": f"{day}T06:00:00.000Z", "text": f"post {n}", "p_kept": p_kept, "reply_root": None,
        "origins": [feed] if author == "s" else [{"kind": "firehose", "host": "wss://relay"}],
        "filter": {"flags": []}, "tags": ["vote"], "links": [], "link": None, **_said(p, says),
    }  # fmt: skip


def _said(p: float, says: str) -> dict[str, Any]:
    if says.startswith("? "):
        return {"labels": {}, "unlabelled": {"civic": {"reason": says[2:], "p_sampled": p}}}
    values = {"civic": says} if says == "not civic" else {"civic": "civic", "lean": says, "us_politics": "yes"}
    fields = {name: {"value": value, "probability": None} for name, value in values.items()}
    label = {"fields": fields, "p_sampled": p, "model": "m", "prompt": "f00d" * 16}
    return {"labels": {"civic": label} if says else {}, "unlabelled": {}}
