"""What is shown of label workers: by `civicsky status`, `/metrics` and the page."""

import json
from pathlib import Path

from civicsky.metrics import Metrics, Workers, WorkerSeen
from civicsky.model import format_time, now_us
from civicsky.page import live
from civicsky.settings import Settings
from civicsky.watch import monitor
from civicsky.workers import told

SEEN = (
    WorkerSeen("gpu1-7-ab", "0.1.0", "http://127.0.0.1:8000", 4, 3, 1200, ""),
    WorkerSeen("gpu2-9-cd\x1b[2J", "0.1.0", "http://127.0.0.1:8000", 4, 0, 7, "model at x cannot be reached"),
)
WORKERS = Workers(
    used=True, there=SEEN, queued=5, in_flight=3, dispatched=1220, claimed=1215, results=1210, late=1, redelivered=2,
    dispatched_again=4,
)  # fmt: skip


def test_status_lists_workers_what_they_do_and_what_was_redelivered(tmp_path: Path) -> None:
    told.write(tmp_path, WORKERS, 19.5)
    text = "\n".join(told.as_text(told.read(tmp_path)))
    for part in ("2 there", "19.5 answers/s", "3 in flight", "5 wait for one", "2 redelivered", "4 lost by NATS",
                 "gpu1-7-ab", "3 of 4 at work, 1,200 done", "rests: model at x cannot be reached"):  # fmt: skip
        assert part in text
    assert "\x1b" not in text


def test_what_a_home_node_left_that_is_gone_is_not_shown(tmp_path: Path) -> None:
    assert told.as_text(told.read(tmp_path)) == []
    told.write(tmp_path, WORKERS, 0)
    found = json.loads((tmp_path / told.FILE).read_text())
    found["at"] = format_time(now_us() - 40_000_000)
    (tmp_path / told.FILE).write_text(json.dumps(found))
    assert told.read(tmp_path) is None
    for damaged in ("", "[]", "{}", '{"at": 7}', "\x00"):
        (tmp_path / told.FILE).write_text(damaged)
        assert told.read(tmp_path) is None
    told.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_metrics_and_page_show_workers_only_where_there_are_to_be_any() -> None:
    assert monitor._workers(Workers()) == {}
    shown = monitor._workers(WORKERS)
    assert shown["civicsky_workers"] == {(): 2.0}
    assert shown["civicsky_workers_redelivered_total"] == {(): 2.0}
    assert shown["civicsky_workers_lost_total"] == {(): 4.0}
    readiness = {"reasons": [], "pending": [], "quiet": False}
    rates = dict.fromkeys(live.RATED, 1.0)

    def figures(workers: Workers) -> dict[str, object]:
        found = live.stages(Metrics(workers=workers), Settings(), rates, readiness, "both")
        return {name: value for name, value, _ in next(one for one in found if one.name == "label").figures}

    assert "workers" not in figures(Workers())
    assert figures(WORKERS) | {"workers": "2, 1 resting", "in flight": 3, "redelivered": 2} == figures(WORKERS)
