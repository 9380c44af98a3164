"""A gate in the whole service: made by the command, at work in `label`, and told of wherever people look."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import LAST_SEQ, model_server, query, run

SETTINGS = {"gate__ask_anyway": 0.2}


@pytest.fixture
def collected(relay: str, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    ended = run("collect", "--relay", relay, "--data-dir", folder, "--max-frames", LAST_SEQ, source__start="window")
    assert ended.code == 0, ended.err
    return folder


def test_a_gate_is_made_keeps_posts_from_the_model_and_every_page_tells_what_it_saved(
    collected: Path, tmp_path: Path
) -> None:
    gold, file, log = tmp_path / "gold.jsonl", tmp_path / "gate.json", tmp_path / "log"
    assert run("dev", "sample-gold", gold).code == 0
    made = run("dev", "train-gate", "civic", gold, "-o", file)
    assert made.code == 0, made.err
    assert "recall " in made.out
    assert "calls saved " in made.out
    assert run("dev", "train-gate", "civic", gold, "-o", file).code == 2, "a gate at work does not change"
    with model_server(log) as model:
        ended = run(
            "label", "--data-dir", collected, "--model-url", model, "--model", "mock", "--drain",
            gate__file=file, **SETTINGS,
        )  # fmt: skip
    assert ended.code == 0, ended.err
    assert '"event": "label_gate"' in ended.err
    version = json.loads(run("dev", "train-gate", "civic", gold, "-o", tmp_path / "same.json", "--json").out)["version"]

    documents = [json.loads(doc) for (doc,) in query(collected / "posts.db", "SELECT doc FROM posts")]
    live = [doc for doc in documents if doc["state"] == "live"]
    gated = [doc for doc in live if "gated" in doc]
    labelled = [doc for doc in live if doc["labels"]]
    assert len(gated) > 20
    assert len(gated) + len(labelled) == len(live), "none is lost"
    assert {doc["gated"]["civic"]["gate"]["version"] for doc in gated} == {version}
    assert {doc["labels"]["civic"].get("p_asked") for doc in labelled} <= {1.0, 0.2, None}
    assert len(log.read_text().split()) < len(live) - 20, "these calls were saved"

    status = json.loads(run("status", "--json", "--data-dir", collected).out)
    assert status["gate"]["skipped"] >= len(gated)
    assert status["waiting"] == 0
    assert f"{status['gate']['skipped']:,} of " in run("status", "--data-dir", collected).out
    table = json.loads(run("estimate", "--data-dir", collected, "--field", "civic", "--json").out)["estimates"][0]
    assert table["gated"] == len(gated)
    assert all(row["passed"] for row in table["rows"] if row["share"]["value"])
    assert f"{len(gated)} calls saved by the gate" in run("estimate", "--data-dir", collected).out
    report = json.loads(run("report", "--data-dir", collected, "--json").out)
    assert next(one["gated"] for one in report["estimates"] if one["field"] == "civic") == len(gated)
    page = tmp_path / "report.html"
    assert run("report", "--data-dir", collected, "--out", page).code == 0
    assert f"{len(gated)} calls saved by the gate" in page.read_text()
    assert "<th>passed the gate</th>" in page.read_text()
    exported(collected, tmp_path, gated, labelled)


def exported(collected: Path, tmp_path: Path, gated: list[dict[str, Any]], labelled: list[dict[str, Any]]) -> None:
    """The export has what a weight is made of, and a weight for those alone that were asked about."""
    out = tmp_path / "export"
    ended = run("export", "--data-dir", collected, "--format", "jsonl", "--out", out)
    assert ended.code == 0, ended.err
    rows = {row["uri"]: row for row in map(json.loads, (out / "posts.jsonl").read_text().strip().split("\n"))}
    for doc in gated:
        row = rows[doc["uri"]]
        assert (row["civic_gated"], row["civic_p_asked"], row["civic_weight"]) == (True, 0.2, None)
    for doc in labelled:
        row, p = rows[doc["uri"]], doc["labels"]["civic"].get("p_asked", 1.0)
        assert row["civic_weight"] == pytest.approx(1 / p)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["tasks"]["civic"]["gated"] == len(gated)
    assert "A gate, a small model of its own, kept" in " ".join((out / "methods.md").read_text().split())


def test_a_gate_that_cannot_be_used_ends_the_start_and_hinders_no_erasure(collected: Path, tmp_path: Path) -> None:
    whole, gold = tmp_path / "whole.json", tmp_path / "gold.jsonl"
    assert run("dev", "sample-gold", gold).code == 0
    assert run("dev", "train-gate", "civic", gold, "-o", whole).code == 0
    good, file = json.loads(whole.read_text()), tmp_path / "gate.json"
    for text, told in (
        (None, "No such file"),
        ("{}", "is no gate's file"),
        (whole.read_text()[:-100], "is no gate's file"),
        (json.dumps({**good, "task": "lean"}), "is about the task 'lean'"),
        (json.dumps({**good, "task_sha256": "0" * 64}), "its file has changed since"),
        (json.dumps({**good, "model_sha256": "0" * 64}), "was made with the model"),
    ):
        if text is not None:
            file.write_text(text)
        ended = run(
            "label", "--data-dir", collected, "--model-url", "http://127.0.0.1:9/v1", "--model", "m", gate__file=file
        )
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert "gate.file" in ended.err
        assert told in ended.err
        assert not (collected / "ledger.db").exists(), "nothing was begun"
    ended = run("erase", "did:plc:5mdzmwsnhinpnrcudbu4m7rs", "--data-dir", collected, gate__file=file)
    assert ended.code == 0, ended.err
