"""docs/codebook.md tells what a gate adds to documents and exports."""

from civicsky.document import label_document, post_document
from civicsky.export.columns import columns_of
from civicsky.model import Gated, Judged, PostRow
from docs.pages import named, quoted, rows, section
from docs.test_docs_codebook import CODEBOOK, OUT, a_label, a_post

JUDGED = Judged("v", 0.5, False, 0.05)


def test_every_field_that_a_gate_adds_is_told() -> None:
    told = named(section(CODEBOOK, "What a gate adds"))
    label = a_label()
    plain, judged = label_document(OUT, label), label_document(OUT, label._replace(judged=JUDGED))
    assert set(told) == set(judged) - set(plain)
    assert set(judged["gate"]) <= set(quoted(" ".join(told["gate"])))


def test_a_document_of_a_post_that_was_kept_back_has_what_is_told() -> None:
    post = a_post()
    row = PostRow(OUT.rkey, OUT.did, "rev", "cid", "live", "wss://relay", 2, 2, 1.0, {**post, "created_at": None})
    gated = [Gated(OUT.did, OUT.rkey, "cid", "civic", 1.0, JUDGED)]
    document = post_document(OUT, row, [], gated=gated)
    assert document is not None
    assert set(document) - set(post) == {"gated"}
    assert set(document["gated"]["civic"]) == {"p_sampled", *named(section(CODEBOOK, "What a gate adds"))}


def test_every_column_that_a_gate_adds_is_told_with_its_type() -> None:
    tasks = {"civic": ["civic"]}
    plain = [column.name for column in columns_of("posts", "internal", tasks)]
    added = [column for column in columns_of("posts", "internal", tasks, gated={"civic"}) if column.name not in plain]
    told = rows(section(CODEBOOK, "Exported columns of a gate"))[1:]
    assert [(name.strip("`").replace("<task>", "civic"), kind, meaning) for name, kind, meaning in told] == [
        (column.name, column.kind, column.meaning) for column in added
    ]
    bare = {column.name for column in columns_of("labels", "internal", tasks)}
    labels = {column.name for column in columns_of("labels", "internal", tasks, gated={"civic"})} - bare
    assert labels <= set(quoted(section(CODEBOOK, "Exported columns of a gate")))
    assert len(labels) == 4
