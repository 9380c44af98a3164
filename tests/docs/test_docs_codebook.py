"""docs/codebook.md tells every stored field, value and reason as the code has them."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest

from civicsky import filter as filters, publishing
from civicsky.document import author_document, hour_document, label_document, post_document, snapshot_document
from civicsky.export.columns import Level, Table, columns_of
from civicsky.export.pseudonyms import Pseudonyms
from civicsky.journal import Journal, JournalReader
from civicsky.model import (
    STREAM,
    Answer,
    Asked,
    AuthorRow,
    BadReason,
    FeedOutcome,
    FieldLabel,
    FrameOutcome,
    GapCause,
    LabelRow,
    Outgoing,
    PostOutcome,
    PostRow,
    PostState,
    RejectReason,
    Resume,
    Seen,
    Shown,
    Snapshot,
)
from civicsky.prompt import messages
from civicsky.record import extract
from civicsky.settings import Journal as JournalSettings
from civicsky.store import SqliteStore
from civicsky.task import Boundary, codebook, load_task
from civicsky.views import MARKS
from docs.pages import ROOT, named, page, quoted, rows, section

CODEBOOK = "docs/codebook.md"
OUT = Outgoing("did:plc:a", "r", 1, "live", 2, known=True)


def fields_of_a_post() -> dict[str, Any]:
    fields = extract(
        {
            "text": "https://a.example/b",
            "embed": {"$type": "app.bsky.embed.external", "external": {"uri": "u", "title": "t", "description": "d"}},
            "facets": [
                {"features": [{"$type": "app.bsky.richtext.facet#link", "uri": "https://a.example/b"}]},
                *(
                    {"features": [{"$type": "app.bsky.richtext.facet#mention", "did": f"did:plc:{n}"}]}
                    for n in range(filters.MANY_MENTIONS)
                ),
            ],
            "tags": [f"tag{n}" for n in range(filters.MANY_TAGS)],
            "labels": {"values": [{"val": next(iter(filters.GRAPHIC))}]},
        }
    )
    return {**fields, "filter": filters.judge(fields).notes}


def a_label() -> LabelRow:
    fields = {"civic": FieldLabel("civic", 0.5)}
    answer = Answer(fields, "words", "hash", "m", "m", None, "{}", "local", "0", 1, 1, 1, 1)
    return LabelRow("id", OUT.did, OUT.rkey, "cid", "civic", "2", STREAM, 1.0, 3, 1, answer)


def a_post() -> dict[str, Any]:
    row = PostRow(OUT.rkey, OUT.did, "rev", "cid", "live", "wss://relay", 2, 2, 1.0, fields_of_a_post())
    document = post_document(OUT, row, [a_label()])
    assert document is not None
    return document


@pytest.mark.parametrize(
    ("heading", "values"),
    [
        ("Reject reasons", RejectReason),
        ("Quarantine reasons", BadReason),
        ("Frame outcomes", FrameOutcome),
        ("Post outcomes", PostOutcome),
        ("Feed outcomes", FeedOutcome),
        ("Causes of gaps", GapCause),
        ("States", PostState),
    ],
)
def test_every_value_of_a_kind_has_a_row_and_no_other_has(heading: str, values: Any) -> None:
    assert set(named(section(CODEBOOK, heading))) == set(get_args(values))


def test_every_field_of_a_posts_document_is_told() -> None:
    assert set(named(section(CODEBOOK, "Posts"))) == set(a_post())


def test_every_part_of_a_posts_fields_is_told() -> None:
    document, told = a_post(), named(section(CODEBOOK, "Posts"))
    for name in ("link", "filter"):
        assert set(document[name]) <= set(quoted(" ".join(told[name]))), name
    assert set(document["origins"][0]) <= set(quoted(" ".join(told["origins"])))
    assert {name.removeprefix("filter.") for name in told_of_the_filter()} == set(document["filter"])


def told_of_the_filter() -> set[str]:
    return {name for name in named(section(CODEBOOK, "The filter")) if name.startswith("filter.")}


def test_every_flag_and_voter_of_the_filter_is_told() -> None:
    flags = set(a_post()["filter"]["flags"])
    assert len(flags) == 4, "the sample post should have every flag"
    told = named(section(CODEBOOK, "The filter"))
    of_feeds = {"unverified"}  # the worker's, which alone knows the hash
    assert flags | of_feeds == {name for name in told if not name.startswith("filter.")}
    _, english_by, scores = filters.is_english("This is a plain English sentence about the weather.", ["en"])
    assert set(english_by) <= set(quoted(" ".join(told["filter.english_by"])))
    assert set(scores) <= set(quoted(" ".join(told["filter.scores"])))
    assert filters.VERSION in section(CODEBOOK, "The filter")


def test_every_field_of_the_current_label_is_told() -> None:
    assert set(named(section(CODEBOOK, "The current label, `labels.civic`"))) == set(a_post()["labels"]["civic"])


def test_every_field_of_a_labels_document_is_told() -> None:
    assert set(named(section(CODEBOOK, "Labels"))) == set(label_document(OUT, a_label()))


def test_every_field_of_a_snapshots_document_is_told() -> None:
    one = Snapshot(1, "did:plc:a", "r", 3, "today", 1, 4, 3, 2, 1)
    assert set(named(section(CODEBOOK, "Snapshots"))) == set(snapshot_document(one))


def test_every_field_and_mark_of_an_authors_document_is_told() -> None:
    label = {"source": "did:plc:mod", "value": "spam", "at": ""}
    profile = {"created_at": 1, "followers": 2, "follows": 3, "posts": 4, "marks": [], "lists": [], "looked_up_at": 5}
    row = AuthorRow("did:plc:a", 1, "live", "a.test", {**profile, "moderation": [label]})
    document, told = author_document(row), named(section(CODEBOOK, "Authors"))
    assert set(told) == set(document)
    assert set(MARKS.values()) | set(MARKS) <= set(quoted(" ".join(told["marks"])))
    assert set(label) <= set(quoted(" ".join(told["moderation"])))
    left = quoted(told["state"][0].partition("then only")[2].partition("are left")[0])
    assert set(left) == set(author_document(row._replace(state="deleted", handle=None, profile=None)))


def test_every_field_of_an_origin_is_told() -> None:
    row = PostRow(OUT.rkey, OUT.did, None, "cid", "live", "", 2, 2, 1.0, fields_of_a_post())
    label = {"source": "s", "value": "v", "at": None}
    document = post_document(OUT, row, [], [], Shown((Seen("today", 1, 2),), (label,)))
    assert document
    told = named(section(CODEBOOK, "Posts"))
    (origin,) = document["origins"]
    assert set(origin) <= set(quoted(" ".join(told["origins"])))
    assert set(label) <= set(quoted(" ".join(told["moderation"])))


def test_a_tombstone_holds_what_the_codebook_says() -> None:
    gone = OUT._replace(state="deleted")
    left = quoted(named(section(CODEBOOK, "States"))["deleted"][0])
    assert set(left) == set(post_document(gone, None, []) or {}) == set(label_document(gone, a_label()))


@pytest.mark.parametrize(
    ("heading", "table", "level"),
    [
        ("Exported posts", "posts", "internal"),
        ("Exported labels", "labels", "internal"),
        ("Exported snapshots", "snapshots", "internal"),
        ("Exported authors", "authors", "internal"),
        ("Exported at the level public", "posts", "public"),
        ("Exported labels at the level public", "labels", "public"),
    ],
)
def test_every_column_of_an_export_is_told_with_its_type_in_its_order(heading: str, table: Table, level: Level) -> None:
    types = {"text": "text", "json": "JSON", "time": "time", "bool": "bool", "int": "int", "float": "float"}
    columns = columns_of(table, level, {"TASK": ["FIELD"]}, Pseudonyms(b""))
    told = [(name, cells[0]) for name, cells in named(section(CODEBOOK, heading)).items()]
    assert told == [
        (column.name.replace("TASK", "<task>").replace("FIELD", "<field>"), types[column.kind]) for column in columns
    ]


async def test_every_field_of_runs_and_coverage_is_told(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.db", JournalSettings())
    await journal.begin_run("1", "1", "{}", "hash", {})
    await journal._db.execute(
        "INSERT INTO held (host, epoch, resumed_after, resume, first_seq, last_seq, first_at, last_at, frames) "
        "VALUES ('wss://relay', 1, 1, 'replayed', 2, 3, 4, 5, 6)"
    )
    await journal._db.execute(
        "INSERT INTO gap (host, epoch, cause, after_seq, at) VALUES ('wss://relay', 1, 'renumbered', 1, 7)"
    )
    await journal.close()
    reader = await JournalReader.open(tmp_path / "journal.db")
    (run,), (held,), (gap,) = await reader.runs(), await reader.held(), await reader.gaps()
    await reader.close()
    assert set(named(section(CODEBOOK, "Runs"))) == set(publishing.run_document(run)) | {"v"}
    told = set(named(section(CODEBOOK, "Coverage")))
    documents = [{"kind": "held", **held._asdict()}, {"kind": "gap", **gap._asdict()}]
    assert told == {"v"}.union(*map(publishing.coverage_document, documents))
    assert set(named(section(CODEBOOK, "How a connection follows on"))) == set(get_args(Resume))


def test_every_field_of_an_hour_is_told() -> None:
    told = named(section(CODEBOOK, "Hours"))
    document = hour_document(0, {})
    assert set(told) == {"v", *document}
    assert set(document["counts"]) <= set(quoted(" ".join(told["counts"])))


async def test_every_column_of_the_view_for_quick_questions_is_told(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "posts.db")
    await store.close()
    with closing(sqlite3.connect(tmp_path / "posts.db")) as db:
        columns = [column for column, *_ in db.execute("SELECT * FROM civic").description]
    (told,) = re.findall(r"The view `civic` has a row.*?: (.*?)\.\n", page(CODEBOOK), re.DOTALL)
    assert quoted(told.replace("(of `civic`)", "")) == columns


def test_the_task_is_told_in_the_words_that_the_model_is_given() -> None:
    task, _ = load_task("civic")
    assert codebook(task) in section(CODEBOOK, "The task `civic`"), (
        "`civicsky dev codebook civic` prints what belongs there"
    )
    for ways in (messages(task, [Asked("")]), messages(task, [Asked("")], ["a"])):
        given = " ".join(ways[0]["content"].split())
        told = section(CODEBOOK, "The task `civic`").replace("\\", "").replace("\n> ", " ")
        for text in (
            task.definition.strip(),
            *(" ".join(field.description.split()) for field in task.fields),
            *(text for case in task.boundaries for text in (case.post, case.why)),
            *(example.post for example in task.examples),
        ):
            assert text in told
            assert text in given.replace('\\"', '"')


def test_every_field_and_value_of_the_task_is_told_in_its_order() -> None:
    task, _ = load_task("civic")
    told = named(section(CODEBOOK, "The task `civic`"))
    assert list(told) == [field.name for field in task.fields]
    for field in task.fields:
        values, question, exists = told[field.name]
        assert quoted(values) == list(field.values)
        assert question == " ".join(field.description.split())
        assert quoted(exists) == [word for pair in field.only_if.items() for word in pair]
    assert f"Version {task.version}." in section(CODEBOOK, "The task `civic`")


def test_a_task_of_ones_own_can_be_printed_for_a_codebook() -> None:
    task, _ = load_task(str(ROOT / "tests/tasks/toxicity.toml"))
    odd = Boundary(post="a | b\n*c* <d>", answer={"toxic": "no"}, why="[e](f) `g`")
    text = codebook(task.model_copy(update={"boundaries": (odd,)}))
    assert [row[0] for row in rows(text)] == [
        *("field", "`toxic`"),
        *("post", r"a \| b \*c\* \<d\>"),
        *("post", "You are too stupid to be let near a keyboard.", "Thank you, that was kind of you."),
    ]
    assert r"\[e\](f) \`g\`" in text
    assert "It insults the person who is spoken to." in text


def test_every_reason_for_a_missing_label_is_told() -> None:
    sources = "".join(
        file.read_text(encoding="utf-8")
        for name in ("endpoint", "label", "prompt")
        for file in (ROOT / "service/civicsky").glob(f"{name}.py")
    )
    raised = re.findall(r"(?:BadInput|_unusable)\(([^)]*)", re.sub(r"'[^'\n]*'", "", sources))
    reasons = set(re.findall(r'"([a-z_]+)"', " ".join(raised)))
    assert len(reasons) > 5
    assert set(named(section(CODEBOOK, "Why a post has no label"))) == reasons | {"unreachable", "text_gone"}
