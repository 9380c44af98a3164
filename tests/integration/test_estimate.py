"""Estimates from a real SQLite store that was filled the way labelling fills it, with posts whose truth is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from civicsky.document import Document
from civicsky.errors import Usage
from civicsky.loading import load
from civicsky.research.estimate import Table, Wanted, as_json, as_text, estimate
from civicsky.research.measure import Figure
from civicsky.store import SqliteStore
from support import command

DAY = "2026-11-20"


def _post(n: int, author: str, *, at: str = f"{DAY}T12:00:00.000Z", state: str = "live", **more: Any) -> Document:
    uri = f"at://did:plc:{author}/app.bsky.feed.post/{n:013d}"
    return {
        "_id": uri, "uri": uri, "did": f"did:plc:{author}", "v": 1, "state": state, "event_at": at, "text": f"post {n}",
        "p_kept": 1.0, "reply_root": None, "labels": {}, "unlabelled": {},
        "origins": [{"kind": "firehose", "host": "wss://relay"}], **more,
    }  # fmt: skip


def _label(p: float = 1.0, model: str = "m", **fields: str) -> dict[str, Any]:
    said = {name: {"value": value, "probability": None} for name, value in fields.items()}
    return {"labels": {"civic": {"fields": said, "p_sampled": p, "model": model, "prompt": "x"}}}


def _unlabelled(reason: str, p: float = 1.0) -> dict[str, Any]:
    return {"unlabelled": {"civic": {"reason": reason, "p_sampled": p}}}


async def _fill(folder: Path, documents: list[Document]) -> None:
    store = await SqliteStore.open(folder / "posts.db")
    put = await store.put("posts", documents)
    assert put.written == len(documents)
    await store.close()


async def _estimate(folder: Path, **wanted: Any) -> dict[tuple[str, str], Table]:
    tables = await estimate(load(None, {"data_dir": str(folder)}), Wanted(**wanted))
    return {(table.field, table.period): table for table in tables}


def _value(figure: Figure) -> float:
    assert figure.value is not None
    return figure.value


def _shares(table: Table) -> dict[str, float]:
    return {row.value: round(_value(row.share.population), 6) for row in table.rows}


FEW = [
    _post(1, "a", **_label(0.5, civic="civic", lean="left-leaning", us_politics="yes")),  # weighs 2
    _post(2, "b", **{**_label(0.5, civic="civic", lean="right-leaning", us_politics="yes"), "p_kept": 0.5}),  # 4
    _post(3, "c", **_label(0.25, civic="not civic")),  # 4
    _post(4, "d", at="2026-11-21T00:00:00.000Z", **_label(1.0, civic="not civic")),  # 1
    _post(5, "e", **_unlabelled("refused", 1.0)),  # 1
    _post(6, "e", **_unlabelled("length", 0.5)),  # 2
    _post(7, "f"),  # was not drawn
    _post(8, "f", state="hidden", **_label(civic="civic", lean="left-leaning", us_politics="yes")),
]


async def test_posts_count_by_their_probabilities_and_those_without_a_label_count_too(tmp_path: Path) -> None:
    await _fill(tmp_path, FEW)
    found = await _estimate(tmp_path)
    civic = found["civic", "all"]
    assert (civic.collected, civic.drawn, civic.authors) == (7, 6, 5)
    assert civic.unlabelled == {"refused": 1, "length": 1}
    assert _shares(civic) == {
        "civic": round(6 / 14, 6),
        "not civic": round(5 / 14, 6),
        "unlabelled: length": round(2 / 14, 6),
        "unlabelled: refused": round(1 / 14, 6),
    }
    assert civic.rows[0].of_labelled is not None
    assert _value(civic.rows[0].of_labelled.population) == pytest.approx(6 / 11)
    lean = found["lean", "all"]
    assert lean.among == {"civic": "civic"}
    assert (lean.drawn, lean.unlabelled) == (2, {})
    assert _shares(lean)["left-leaning"] == pytest.approx(2 / 6, abs=1e-6)
    assert _shares(lean)["right-leaning"] == pytest.approx(4 / 6, abs=1e-6)
    assert civic.warnings
    assert "only 5 authors" in civic.warnings[0]


async def test_a_period_begins_and_ends_where_it_is_told_and_days_stand_apart(tmp_path: Path) -> None:
    await _fill(tmp_path, FEW)
    first = (await _estimate(tmp_path, fields=["civic"], until="2026-11-21"))["civic", "all"]
    assert (first.collected, first.drawn) == (6, 5)
    second = (await _estimate(tmp_path, fields=["civic"], since="2026-11-21T00:00:00Z"))["civic", "all"]
    assert (second.collected, second.drawn) == (1, 1)
    by_day = await _estimate(tmp_path, fields=["civic"], by="day")
    assert {period: table.drawn for (_, period), table in by_day.items()} == {DAY: 5, "2026-11-21": 1}


def _from(*ways: str) -> dict[str, Any]:
    feeds = [{"kind": "feed", "name": name, "rank": 1, "fetched_at": f"{DAY}T13:00:00.000Z"} for name in ways if name]
    return {"origins": [{"kind": "firehose", "host": "wss://relay"}, *feeds] if "" in ways else feeds}


async def test_only_what_the_firehose_brought_counts_unless_a_feed_or_all_is_asked_for(tmp_path: Path) -> None:
    civic = _label(civic="civic", lean="unclear", us_politics="no")
    await _fill(
        tmp_path,
        [
            _post(1, "a", **_label(0.5, civic="not civic")),  # weighs 2
            _post(2, "b", **{**_label(0.5, civic="not civic"), "p_kept": 0.5}),  # 4
            # Shown by a feed, so labelled for certain. What was left out by chance is in a feed all the same.
            _post(3, "c", **{**civic, "p_kept": 0.5}, **_from("", "today")),  # 2; of a feed 1
            _post(4, "d", **civic, **_from("today")),  # 1
            _post(5, "e", **_label(civic="not civic"), **_from("today", "week")),  # 1
        ],
    )
    shares = {}
    for origin in ("firehose", "feed:today", "feed:week", "feed:none", "any"):
        table = (await _estimate(tmp_path, fields=["civic"], origin=origin))["civic", "all"]
        share = table.rows[0].share.population.value
        shares[origin] = (table.origin, table.collected, table.drawn, share)
    assert shares == {
        "firehose": ("firehose", 3, 3, pytest.approx(2 / 8)),
        "feed:today": ("feed:today", 3, 3, pytest.approx(2 / 3)),
        "feed:week": ("feed:week", 1, 1, 0.0),
        "feed:none": ("feed:none", 0, 0, None),
        "any": ("any", 5, 5, pytest.approx(2 / 9)),
    }
    shown = command.run("estimate", "--data-dir", tmp_path, "--field", "civic", "--origin", "feed:today").out
    assert "0.667" in shown
    assert "nothing of the network" in " ".join(shown.split())
    assert "0.250" in command.run("estimate", "--data-dir", tmp_path, "--field", "civic").out
    wrong = command.run("estimate", "--data-dir", tmp_path, "--origin", "feed")
    assert (wrong.code, "--origin feed: give" in wrong.err) == (2, True)


async def test_labels_of_several_models_are_not_mixed_silently(tmp_path: Path) -> None:
    await _fill(
        tmp_path, [*FEW, _post(9, "g", **_label(model="other", civic="civic", lean="left-leaning", us_politics="yes"))]
    )
    assert any("2 models or prompts" in one for one in (await _estimate(tmp_path))["civic", "all"].warnings)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"since": "yesterday"}, "--since yesterday: neither a date"),
        ({"since": "2026-11-22", "until": "2026-11-22"}, "not before --until"),
        ({"fields": ["civic", "colour"]}, "--field colour: no task asked for has it"),
        ({"tasks": ["nothing"]}, "no such task ships"),
        ({"gold": Path("/nowhere.csv")}, "/nowhere.csv"),
        ({"origin": "feed:"}, "--origin feed:: give firehose, any, or feed:NAME"),
        ({"origin": "Firehose"}, "--origin Firehose: give firehose"),
    ],
)
async def test_what_is_asked_wrongly_is_told(tmp_path: Path, wanted: dict[str, Any], told: str) -> None:
    await _fill(tmp_path, FEW)
    with pytest.raises(Usage, match=told):
        await _estimate(tmp_path, **wanted)


async def test_an_empty_period_has_no_value_rather_than_zero(tmp_path: Path) -> None:
    await _fill(tmp_path, FEW)
    table = (await _estimate(tmp_path, fields=["civic"], since="2030-01-01"))["civic", "all"]
    assert all(row.share.population.value is None for row in table.rows)
    assert "no post of the period is live and of the origin firehose" in as_text([table])
    table = (await _estimate(tmp_path, fields=["civic"], origin="feed:toady"))["civic", "all"]
    assert "live and of the origin feed:toady: look at both; `civicsky status` names the feeds" in as_text([table])
    assert "no post of the period has a label" in as_text([table._replace(collected=1)])


# ---- a larger store --------------------------------------------------------------------------------------------------

CIVIC, LEFT = 0.35, 0.6


def _simulated() -> tuple[list[Document], list[dict[str, str]], dict[str, float]]:
    """Documents, gold rows, and the truth about the collected posts. The model finds 80 % of the civic posts and takes
    25 % of the others for civic, so what it says is too much; it takes 20 % of the left for right."""
    rng = np.random.default_rng(7)
    documents, labelled, civic, left = [], [], 0, 0
    authors = np.minimum(rng.zipf(2.2, 2500), 30)
    for n, author in enumerate(np.repeat(np.arange(len(authors)), authors)):
        true, is_left = rng.random() < CIVIC, rng.random() < LEFT
        civic, left = civic + true, left + (true and is_left)
        p = 0.2 if n % 2 else 0.6
        found = rng.random() < (0.8 if true else 0.25)
        said_left = is_left and rng.random() < 0.8
        fields = (
            {"civic": "civic", "lean": "left-leaning" if said_left else "right-leaning", "us_politics": "yes"}
            if found
            else {"civic": "not civic"}
        )
        document = _post(n, f"a{author}")
        if rng.random() < p:
            lost = rng.random() < 0.05
            document |= _unlabelled("refused", p) if lost else _label(p, **fields)
            if not lost:
                gold = {"uri": document["uri"], "civic": "civic" if true else "not civic"}
                labelled.append(gold | ({"lean": "left-leaning" if is_left else "right-leaning"} if true else {}))
        documents.append(document)
    gold_rows = [labelled[i] for i in rng.choice(len(labelled), 500, replace=False)]
    return documents, gold_rows, {"civic": civic / len(documents), "left-leaning": left / civic}


async def test_gold_corrects_what_the_model_gets_wrong(tmp_path: Path) -> None:
    documents, gold_rows, truth = _simulated()
    await _fill(tmp_path, documents)
    gold = tmp_path / "gold.jsonl"
    gold.write_text("".join(json.dumps(row) + "\n" for row in gold_rows))
    found = await _estimate(tmp_path, gold=gold)
    civic, lean = found["civic", "all"], found["lean", "all"]
    rows = {row.value: row for table in (civic, lean) for row in table.rows}
    assert civic.gold == 500
    for value, name in (("civic", "civic"), ("left-leaning", "left-leaning")):
        corrected = rows[value].corrected
        assert corrected is not None
        assert corrected.share.low <= truth[name] <= corrected.share.high
        assert corrected.share.high - corrected.share.low < 0.2
        raw = rows[value].of_labelled or rows[value].share
        assert not raw.population.low <= truth[name] <= raw.population.high
    lost = rows["unlabelled: refused"].share.collected
    assert lost.low <= 0.05 <= lost.high
    whole = as_json(found.values())
    assert json.loads(json.dumps(whole))["estimates"][0]["rows"][0]["corrected"]["n"] == 500
    assert "corrected by gold" in as_text(list(found.values()))


async def test_a_second_sample_of_the_same_kind_leaves_gold_of_other_posts_alone(tmp_path: Path) -> None:
    await _fill(tmp_path, FEW)
    gold = tmp_path / "gold.csv"
    gold.write_text("uri,civic\nat://did:plc:zzz/app.bsky.feed.post/1,civic\n")
    table = (await _estimate(tmp_path, gold=gold, fields=["civic"]))["civic", "all"]
    assert table.gold == 0
    assert any("nothing could be corrected" in one for one in table.warnings)
    assert table.rows[0].corrected is not None
    assert table.rows[0].corrected.share.value is None


async def test_the_command_prints_text_and_json(tmp_path: Path) -> None:
    await _fill(tmp_path, FEW)
    shown = command.run("estimate", "--data-dir", tmp_path, "--field", "civic")
    assert shown.code == 0, shown.err
    assert "0.429" in shown.out
    assert "deleted and hidden ones are gone" in shown.out
    told = json.loads(command.run("estimate", "--data-dir", tmp_path, "--json", "--by", "day").out)
    assert {one["period"] for one in told["estimates"]} == {DAY, "2026-11-21"}
    missing = command.run("estimate", "--data-dir", tmp_path / "none")
    assert missing.code == 2
    assert "there is no store" in missing.err
