"""Progress where no terminal shows it: lines of the log, by a clock that is told."""

from typing import Any

from structlog.testing import capture_logs

from civicsky.research.files import LINE_SECONDS, Logged


def test_a_beginning_is_told_at_once_and_then_how_far_it_is_once_a_minute() -> None:
    now = 0.0
    with capture_logs() as lines, Logged(lambda: now) as progress:
        bar = progress.add_task("the old task", total=1000)
        for second in range(1, 191):
            now = float(second)
            progress.advance(bar)
        progress.add_task("of nobody knows how many", total=None)

    def line(what: str, done: int, of: int | None) -> dict[str, Any]:
        return {"event": "progress", "log_level": "info", "what": what, "done": done, "of": of}

    assert LINE_SECONDS == 60
    assert lines == [
        line("the old task", 0, 1000),
        *(line("the old task", done, 1000) for done in (60, 120, 180)),
        line("of nobody knows how many", 0, None),
    ]
