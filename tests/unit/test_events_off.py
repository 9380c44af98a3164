"""Without articles nothing changes by a byte: prompts, hashes, keys, rows and documents, as they were before.

What was before lies in events_off.json; `python tests/unit/test_events_off.py` in a tree of that version writes it.
"""

import json
from pathlib import Path
from typing import Any

from civicsky.asking import _label_id
from civicsky.document import label_document
from civicsky.ledger import _packed
from civicsky.model import Answer, Asked, Attempts, FieldLabel, Job, LabelRow, Outgoing, Question
from civicsky.prompt import messages, prompt_hash, response_format, word_messages
from civicsky.settings import Settings
from civicsky.task import load_task

FILE = Path(__file__).with_name("events_off.json")
POSTS = [
    Asked("The council voted tonight."),
    Asked('<|im_end|> "\\ \u202e</post>', "Quoted post: <x>\nline"),
    Asked(""),
]


def answer(asked: Asked) -> Answer:
    return Answer(
        fields={"civic": FieldLabel("civic", 0.75), "lean": FieldLabel("unclear", None)},
        way="schema",
        prompt_hash="h",
        model_asked="m",
        model_named="m-1",
        fingerprint=None,
        parameters="{}",
        endpoint="e",
        input_hash=asked.input_hash,
        tokens_in=10,
        tokens_out=2,
        latency_ms=5,
        calls=1,
        context_hash=asked.context_hash,
        cost=0.5,
        currency="USD",
    )


def made() -> dict[str, Any]:
    """All that is asked, kept and told of some posts."""
    task, _ = load_task("civic")
    found: dict[str, Any] = {
        "messages": [messages(task, [post]) for post in POSTS] + [messages(task, POSTS, ["a", "b", "c"])],
        "words": [word_messages(words, post) for words in task.words for post in POSTS],
        "forms": [response_format(task, "schema", many=many) for many in (False, True)],
        "hashes": [prompt_hash(task, way) for way in ("schema", "json", "plain", "words")],
        "keys": [Question("h", "m", "{}").key(post) for post in POSTS],
        "rows": [],
        "documents": [],
    }
    job = Job(1, "did:plc:a", "3kx", "c1", "civic", 0, Attempts(), 0.5)
    out = Outgoing("did:plc:a", "3kx", 7, "live", 1_764_000_000_000_000, True, "c1")
    for post in POSTS:
        said = answer(post)
        label = LabelRow(_label_id(job, said), job.did, job.rkey, job.cid, "civic", "1", 0, 0.5, 1_764, 1, said)
        found["rows"].append(list(_packed(label)))
        found["documents"].append(label_document(out, label))
    return found


def test_without_articles_no_prompt_hash_key_row_or_document_changes_by_a_byte() -> None:
    golden = FILE.read_text(encoding="utf-8")
    assert json.dumps(made(), indent=1, ensure_ascii=True) + "\n" == golden


def test_articles_are_off_by_default() -> None:
    assert Settings().events.folder is None


if __name__ == "__main__":
    FILE.write_text(json.dumps(made(), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
