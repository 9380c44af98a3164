"""What a hostile relay can make the installed command write."""

import json
from collections import Counter
from pathlib import Path

import cbor2
import pytest

from support.command import Ended, cursor, end_when, query, start
from support.frames import frame
from support.led import balance_closes, counts, led_relay

BURST = 5
FLOOD = 3000


def lines(ended: Ended) -> Counter[str]:
    return Counter(json.loads(line)["event"] for line in ended.err.splitlines() if line.startswith("{"))


@pytest.mark.parametrize("kind", ["info", "error", "bad"])
def test_a_relay_that_floods_us_cannot_make_us_write_without_end(kind: str, tmp_path: Path) -> None:
    message = {
        "info": frame("#info", {"name": "Nonsense", "message": "x" * 200}),
        "error": cbor2.dumps({"op": -1}) + cbor2.dumps({"error": "Nonsense", "message": "x" * 200}),
        "bad": b"\xff",
    }[kind]
    flood = [message + bytes([at]) if kind == "bad" else message for at in range(9)] * (FLOOD // 9)
    outcome = "quarantined" if kind == "bad" else kind
    with led_relay() as relay:
        process = start(
            "collect", "--relay", relay.url, "--data-dir", tmp_path, log__burst=BURST, log__level="debug",
            log__minute_seconds=0.01, worker__batch_seconds=0.05, source__backoff_max_seconds=0.02,
        )  # fmt: skip
        relay.send(*flood)
        relay.post("3aaaaaaaaaaaa", "A post behind the flood, in plain English")
        if kind == "bad":  # ten in a row make it hang up, and what is on its way then is lost
            sql = "SELECT sum(n) FROM count WHERE outcome = 'quarantined' HAVING sum(n) > 40"

            def enough() -> bool:
                relay.send(*flood[:9])
                return bool(query(tmp_path / "journal.db", sql))

            ended = end_when(process, enough, "bad frames")
        else:
            ended = end_when(process, lambda: cursor(tmp_path) == 1, "the post behind the flood")
            assert counts(tmp_path, "frame")[outcome] == len(flood)
    assert ended.code == 0, ended.err
    assert balance_closes(tmp_path)
    found = lines(ended)
    assert max(found.values()) <= BURST
    assert sum(found.values()) <= BURST * len(found)
    assert found["quarantined" if kind == "bad" else "source_info"] == BURST
