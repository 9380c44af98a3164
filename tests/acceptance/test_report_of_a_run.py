"""A report of a real run: the sample, collected, labelled and reported by the installed command, read in a browser."""

import json
from pathlib import Path

import pytest

from support.browser import Browser
from support.command import LAST_SEQ, query, run
from support.world import DID


@pytest.fixture
def labelled(relay: str, model: tuple[str, Path], tmp_path: Path) -> Path:
    """A data directory with the sample, labelled by the deterministic model."""
    folder = tmp_path / "data"
    ended = run(
        "run", "--relay", relay, "--data-dir", folder, "--model-url", model[0], "--model", "mock",
        "--max-frames", LAST_SEQ, source__start="window",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return folder


def test_a_real_run_has_a_report_whose_figures_are_the_journals_and_the_stores(
    labelled: Path, tmp_path: Path, browser: Browser
) -> None:
    hours = [json.loads(doc) for (doc,) in query(labelled / "posts.db", "SELECT doc FROM hours")]
    counted = query(labelled / "journal.db", "SELECT unit, outcome, sum(n) FROM count GROUP BY unit, outcome")
    told = [
        (unit, outcome, sum(one["counts"].get(unit, {}).get(outcome, 0) for one in hours))
        for unit, outcome, _ in counted
    ]
    assert told == counted, "the store has the journal's counts"
    file = tmp_path / "page.html"
    ended = run("report", "--data-dir", labelled, "--out", file)
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(run("report", "--data-dir", labelled, "--json").out)
    assert found["missing"] == []
    assert found["received"]["post"] == {"received": 624, "kept": 416, "rejected": 185, "updated": 8, "deleted": 15}
    assert found["rejected"] == {"language": 176, "adult": 8, "no_text": 1}
    states = dict(query(labelled / "posts.db", "SELECT state, count(*) FROM posts GROUP BY state"))
    assert found["posts"]["states"] == states
    labels = query(
        labelled / "posts.db",
        "SELECT doc ->> '$.labels.civic.fields.civic.value', count(*) FROM posts WHERE state = 'live' GROUP BY 1",
    )
    (civic,) = [one for one in found["estimates"] if (one["field"], one["period"]) == ("civic", "all")]
    share = {row["value"]: row["share"]["value"] for row in civic["rows"]}
    assert share["civic"] == pytest.approx(dict(labels)["civic"] / sum(n for _, n in labels)), "all were drawn"
    assert found["coverage"]["share_held"] > 0.9
    spent = query(labelled / "ledger.db", "SELECT sum(calls), sum(tokens_in) FROM spend")
    assert [
        (sum(one["calls"] for one in found["cost"]["spend"]), sum(one["tokens_in"] for one in found["cost"]["spend"]))
    ] == spent
    texts = "".join(doc for (doc,) in query(labelled / "posts.db", "SELECT doc FROM posts"))
    assert all(one["word"] in texts.casefold() for one in found["posts"]["domains"])
    page = browser.open(file.as_uri(), width=375)
    assert (page.said, page.requests, page.size()[0]) == ([], [file.as_uri()], 375)
    shown = page.evaluate("document.body.innerText")
    assert "601" in shown, "416 kept and 185 rejected came in"
    assert f"{share['civic']:.3f}" in shown
    text = file.read_text(encoding="utf-8")
    assert DID not in text
    assert "at://" not in text
    assert "did:plc" not in text
