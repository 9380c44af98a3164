"""The installed service with a model's server that does all that servers do, and with posts that give it orders."""

import json
import subprocess
from collections import Counter
from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from support.command import LAST_SEQ, cursor, end_when, query, run, sample_relay, start, until
from support.frames import tid
from support.injections import BYSTANDERS, INJECTIONS
from support.led import all_told, did_of, led_relay
from support.model_knobs import ITEMS
from support.model_says import FIELDS, Obey
from support.told_model import ToldModel, everything, honest, text_of, told_model

HURRIED: dict[str, Any] = {
    "source__start": "window", "sample__posts_per_day": 0, "label__anchors": 0, "label__slots": 8,
    "label__request_seconds": 1, "label__pause_seconds": 0.02, "label__pause_max_seconds": 0.1,
    "ledger__poll_seconds": 0.05, "worker__batch_seconds": 0.05, "log__minute_seconds": 1,
    "appview__recheck": "false",
}  # fmt: skip


def service(folder: Path, relay: str, model: ToldModel, **settings: Any) -> "subprocess.Popen[str]":
    asks = ("--model-url", model.url, "--model", "mock")
    return start("run", "--relay", relay, "--data-dir", folder, *asks, **HURRIED | settings)


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """The live posts of the store."""
    found = [json.loads(doc) for (doc,) in query(folder / "posts.db", "SELECT doc FROM posts")]
    return {doc["uri"]: doc for doc in found if doc["state"] == "live"}


def labels(folder: Path) -> int:
    rows = query(folder / "ledger.db", "SELECT count(*) FROM label")
    return int(rows[0][0]) if rows else 0


def said(doc: dict[str, Any]) -> dict[str, str] | None:
    """A post's label; None when it has none."""
    label = doc["labels"].get("civic")
    return None if label is None else {name: field["value"] for name, field in label["fields"].items()}


# ---- all that servers do ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("n", [1, 10])
def test_every_post_is_labelled_or_failed_with_a_reason_whatever_the_model_does(tmp_path: Path, n: int) -> None:
    folder = tmp_path / "data"
    limits = "--limit", "3000/60", "--limit", "150/1"
    hangs = "--knob", '{"name": "hang"}'
    with sample_relay() as relay, told_model(tmp_path / "model", *limits, *hangs) as model:
        process = service(folder, relay, model, label__posts_per_request=n, label__requests_per_minute=3000)
        until(lambda: cursor(folder) >= LAST_SEQ, "all to be collected")
        until(lambda: model.state()["fired"].get("hang", 0) > 3, "the model to hang again and again")
        assert labels(folder) == 0
        model.tell(delay=0.5)  # slow, so that most posts are left for what comes then
        until(lambda: labels(folder), "the first labels")
        model.tell(*everything(0.004), *everything(0.01, many=True), delay=0.0)
        ended = end_when(process, lambda: all_told(folder), "all to be labelled or failed")
        happened, entries = model.state(), model.entries()
    assert ended.code == 0, ended.err
    posts = stored(folder)
    assert len(posts) == 373
    by_reason = Counter(doc["unlabelled"]["civic"]["reason"] for doc in posts.values() if said(doc) is None)
    listed = [json.loads(line) for line in run("failed", "list", "--json", "--data-dir", folder).out.splitlines()]
    assert Counter(one["reason"] for one in listed if one["kind"] == "label") == by_reason
    assert json.loads(run("status", "--json", "--data-dir", folder).out)["waiting"] == 0
    wrong = [(text_of(doc), said(doc)) for doc in posts.values() if said(doc) not in (None, honest(text_of(doc)))]
    assert wrong == []
    assert len(posts) - by_reason.total() > 300
    assert happened["excess"] == 0
    assert not [entry for entry in entries if entry["excess"]]
    assert len(happened["fired"]) > 30, "the server was hostile"
    if n > 1:
        often = Counter(sha256(text_of(doc).encode()).hexdigest() for doc in posts.values())
        assert asked_in_vain(entries, {post for post, times in often.items() if times == 1}) == []


def asked_in_vain(entries: Sequence[dict[str, Any]], once: Collection[str]) -> list[dict[str, Any]]:
    """Requests of several posts after which more of them were asked again than had no good answer.

    `once`: hashes of the texts that one post alone has.
    """
    wrong = []
    for at, entry in enumerate(entries):
        spoilt = set(entry["did"]) - {"slow"}
        if not entry["ids"] or spoilt - ITEMS.keys() or entry["status"] != 200 or {"nan", "places_for_ids"} & spoilt:
            continue
        later = {post for other in entries[at + 1 :] for post in other["posts"]}
        again = sum(post in later for post in entry["posts"] if post in once)
        if again > 3 * len(spoilt):
            wrong.append({"did": entry["did"], "asked": len(entry["ids"]), "again": again})
    return wrong


@pytest.mark.timeout(180)
def test_collecting_keeps_up_while_the_model_hangs_drips_and_resets(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with led_relay() as relay, told_model(tmp_path / "model") as model:
        process = service(folder, relay.url, model, label__request_seconds=0.3)
        sent = 0
        for knobs in ([{"name": "hang"}], [{"name": "drip"}], [{"name": "reset"}], everything(0.01)):
            model.tell(*knobs)
            asked = model.state()["questions"]
            for _ in range(50):
                sent += 1
                relay.post(tid(sent), f"The council's budget is a plain matter, number {sent}", did=did_of(sent))
            until(lambda: cursor(folder) >= relay.seq, "collecting to keep up")
            until(lambda: model.state()["questions"] > asked + 2, "the model to be asked meanwhile")  # noqa: B023
        model.tell()
        ended = end_when(process, lambda: all_told(folder), "all to be labelled or failed")
    assert ended.code == 0, ended.err
    posts = stored(folder)
    assert len(posts) == sent
    assert all(said(doc) == honest(text_of(doc)) or doc["unlabelled"]["civic"]["reason"] for doc in posts.values())


# ---- limits ----------------------------------------------------------------------------------------------------------

PER_MINUTE = 6000
TRIES = 3
"""A machine that had other things to do may have kept us from the rate; nothing may make us exceed it."""


def test_600_posts_at_6000_a_minute_never_exceed_it(tmp_path: Path) -> None:
    """Without a pace they would: 16 at once, of 50 ms each, are 300 in a second."""
    entries = labelled_at_the_limit(tmp_path / "0", 600)
    assert not [entry for entry in entries if entry["excess"]]
    assert len(entries) == 600


@pytest.mark.long  # in the process itself: tests/integration/test_slot.py
@pytest.mark.timeout(400)
def test_2000_posts_at_6000_a_minute_use_95_percent_of_the_rate_and_never_exceed_it(tmp_path: Path) -> None:
    """The server turns away what is above 6,000 in any minute, and above two seconds' worth in any one."""
    used = 0.0
    for attempt in range(TRIES):
        entries = labelled_at_the_limit(tmp_path / str(attempt), 2000)
        assert not [entry for entry in entries if entry["excess"]]
        assert len(entries) == 2000
        came = sorted(entry["time"] for entry in entries)
        used = (len(came) - 1) / (came[-1] - came[0]) / (PER_MINUTE / 60)
        print(f"{used:.1%} of the permitted rate")
        assert used <= 1
        if used >= 0.95:
            break
    assert used >= 0.95


def labelled_at_the_limit(folder: Path, posts: int) -> list[dict[str, Any]]:
    """The requests of so many posts that had been collected before."""
    folder.mkdir()
    limits = "--limit", f"{PER_MINUTE}/60", "--limit", f"{PER_MINUTE // 30}/1"
    slots: dict[str, Any] = {"label__slots": 16, "label__request_seconds": 30}
    with led_relay() as relay, told_model(folder / "model", *limits, "--delay", "0.05") as model:
        for n in range(posts):
            relay.post(tid(n), f"The council's budget is a plain matter, number {n}", did=did_of(n))
        place = "--data-dir", folder / "data"
        collecting = run("collect", "--relay", relay.url, *place, "--max-frames", posts, **HURRIED)
        assert collecting.code == 0, collecting.err
        asks = "--model-url", model.url, "--model", "mock"
        ended = run("label", "--drain", *place, *asks, label__requests_per_minute=PER_MINUTE, **HURRIED | slots)
        assert ended.code == 0, ended.err
        return model.entries()


# ---- posts that give orders ------------------------------------------------------------------------------------------


def labelled(folder: Path, texts: Sequence[str], obey: Obey, n: int) -> tuple[dict[str, Any], Path]:
    """Labels by text of posts that came in this order, and where they lie."""
    with led_relay() as relay, told_model(folder / "model", "--obey", obey) as model:
        for at, text in enumerate(texts):
            relay.post(tid(at), text, did=did_of(at))
        process = service(folder / "data", relay.url, model, label__posts_per_request=n, label__slots=1)
        until(lambda: cursor(folder / "data") >= relay.seq, "all to be collected")
        ended = end_when(process, lambda: all_told(folder / "data"), "all to be labelled or failed")
        requests = model.entries()
    assert ended.code == 0, ended.err
    assert n == 1 or max(len(entry["ids"]) for entry in requests) == n
    return {text_of(doc): said(doc) for doc in stored(folder / "data").values()}, folder / "data"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("n", "obey"), [(1, "adds"), (10, "adds"), (10, "replaces")])
def test_forty_posts_that_dictate_labels_change_no_other_posts_label(tmp_path: Path, n: int, obey: Obey) -> None:
    others = [post.text for post in BYSTANDERS[:40]]
    mixed = [text for pair in zip((post.text for post in INJECTIONS), others, strict=True) for text in pair]
    for name in ("without", "with"):
        (tmp_path / name).mkdir()
    without, _ = labelled(tmp_path / "without", others, "", n)
    together, folder = labelled(tmp_path / "with", mixed, obey, n)
    assert len(without) == 40
    assert {text: together[text] for text in others} == without
    orders = together.keys() - set(others)
    assert len(orders) >= 38, "nearly all of them are kept as English"
    followed = [text for text in orders if together[text] not in (None, honest(text))]
    assert len(followed) >= 10, "the model obeys"
    assert outside(folder) == []


def outside(folder: Path) -> list[Any]:
    """What is stored as a label and is not the task's."""
    answers = [json.loads(answer)["fields"] for (answer,) in query(folder / "ledger.db", "SELECT answer FROM label")]
    kept = [(name, value) for fields in answers for name, (value, _) in fields.items()]
    stories = [json.loads(doc)["fields"] for (doc,) in query(folder / "posts.db", "SELECT doc FROM labels")]
    posts = [doc["labels"]["civic"]["fields"] for doc in stored(folder).values() if said(doc)]
    assert len(answers) == len(stories) == len(posts)
    kept += [(name, told["value"]) for fields in stories + posts for name, told in fields.items()]
    return [one for one in kept if one[1] not in FIELDS.get(one[0], [])]
