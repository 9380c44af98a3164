"""Labelling by hand with the installed command, asked over real sockets: who is let in, what is drawn, what is kept."""

import asyncio
import json
import os
import re
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from civicsky import datadir
from civicsky.annotate import annotating
from civicsky.annotate.draw import Pick, order_for
from civicsky.annotate.votes import Draw, Votes
from civicsky.app import catch_up
from civicsky.errors import Usage
from civicsky.ledger import Ledger
from civicsky.metrics import Metrics
from civicsky.model import now_us
from civicsky.research.estimate import Table, Wanted as Estimate, estimate
from civicsky.research.gold import read_gold
from civicsky.research.measure import weighted_share
from civicsky.research.period import Wanted as Period, gather
from conftest import Mongod
from support import command, hand
from support.hand import Caller, Sitting, fill, labels_of, post, reject, uri_of

TOKEN = iter(range(10_000))


def said(at: int, answers: dict[str, str] | None, **more: Any) -> dict[str, Any]:
    return {
        "at": at, "kind": "vote", "token": f"token-number-{next(TOKEN):05d}", "english": answers is not None,
        "answers": answers, "note": "", "seconds": 1.5, **more,
    }  # fmt: skip


NO = {"civic": "not civic"}


def vote_on_all(folder: Path, who: str, answers: dict[str, Any], *args: str | int) -> list[str]:
    """One person answers everything by text; the texts in the order in which they came."""
    sitting = Sitting(folder, "--annotator", who, *args)
    caller = Caller(sitting.address).enter()
    view, texts = caller.json("/api/begin")["view"], []
    while not view["over"]:
        texts.append(view["post"]["text"])
        view = caller.vote(said(view["at"], answers[texts[-1]]))
    sitting.end()
    return texts


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return fill(tmp_path / "data", [post(n, f"text {n}") for n in (1, 2, 3)])


@pytest.fixture
def caller(three: Path) -> Iterator[Caller]:
    sitting = Sitting(three, "--annotator", "anna", "--seed", 5)
    yield Caller(sitting.address).enter()
    sitting.end()


# ---- who is let in ---------------------------------------------------------------------------------------------------


def test_without_the_cookie_or_the_tabs_secret_nothing_is_told(caller: Caller) -> None:
    assert caller.ask("/api/begin")[0] == 200
    for without in ({"cookie": ""}, {"x_civicsky_tab": ""}, {"cookie": caller.cookie + "x"},
                    {"x_civicsky_tab": caller.tab[:-1]}, {"cookie": "", "x_civicsky_tab": ""},
                    {"x_civicsky_tab": "\xff"}):  # fmt: skip
        for path in ("/api/begin", "/api/step", "/api/last", "/api/vote"):
            status, body, _ = caller.ask(path, said(0, NO), **without)
            assert (status, body) == (401, "open the address that the terminal shows\n"), without


def test_a_key_opens_once_and_the_terminal_shows_the_next_one(three: Path) -> None:
    sitting = Sitting(three, "--annotator", "anna")
    first = Caller(sitting.address).enter()
    assert Caller(sitting.address).ask("/api/key", {"key": first.key})[0] == 403
    for wrong in ("", "x", None, 1):
        assert first.ask("/api/key", {"key": wrong})[0] == 403
    second = Caller(sitting.invited()).enter()
    assert first.key != second.key
    assert first.ask("/api/begin")[0] == second.ask("/api/begin")[0] == 200, "the first tab goes on"
    sitting.end()


def test_the_cookie_is_for_no_script_and_no_other_site(three: Path) -> None:
    sitting = Sitting(three, "--annotator", "anna")
    caller = Caller(sitting.address)
    _, _, headers = caller.ask("/api/key", {"key": caller.key})
    name, _, rest = headers["set-cookie"].partition("=")
    assert name == f"civicsky-desk-{caller.port}"
    assert {part.strip().lower() for part in rest.split(";")[1:]} == {"httponly", "path=/api", "samesite=strict"}
    sitting.end()


HOSTS = ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "192.0.2.1:{port}", "[::2]:{port}"]
ORIGINS = ["http://evil.example", "null", "http://127.0.0.1:9", "https://127.0.0.1:{port}", ""]


def test_another_host_is_refused(caller: Caller) -> None:
    for host in HOSTS:
        name = host.format(port=caller.port)
        assert caller.ask("/api/begin", host=name, origin=f"http://{name}")[0] == 421, host
        assert caller.ask("/", method="GET", host=name, origin="")[0] == 421, host


def test_another_origin_or_none_is_refused(caller: Caller) -> None:
    for origin in ORIGINS:
        for path in ("/api/begin", "/api/vote", "/api/key"):
            assert caller.ask(path, origin=origin.format(port=caller.port))[0] == 403, origin
    assert caller.ask("/api/begin", sec_fetch_site="cross-site")[0] == 403
    assert caller.ask("/api/begin", sec_fetch_site="same-site")[0] == 403, "another port of this machine"


def test_it_is_reached_through_a_tunnel_on_another_port(caller: Caller) -> None:
    for host in ("localhost:9999", "127.0.0.1:9999", "[::1]:9999", "localhost"):
        assert caller.ask("/api/begin", host=host, origin=f"http://{host}")[0] == 200


def test_it_listens_on_loopback_alone_and_every_answer_tells_browsers_what_they_may(caller: Caller) -> None:
    addresses = {row.split()[1] for row in Path("/proc/net/tcp").read_text().splitlines()[1:]}
    assert [one for one in addresses if one.endswith(f":{caller.port:04X}") and one[:8] != "0100007F"] == []
    for path, method in (("/", "GET"), ("/annotate.js", "GET"), ("/api/begin", "POST"), ("/nothing", "GET")):
        _, _, headers = caller.ask(path, method=method)
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
    for method in ("GET", "PUT", "OPTIONS"):
        assert caller.ask("/api/begin", method=method)[0] == 405
    assert caller.ask("/../annotating.py", method="GET")[0] == 404


NO_VOTE: list[dict[str, Any]] = [
    {"at": 3}, {"at": -1}, {"at": True}, {"at": "0"}, {"kind": "adjudication"}, {"kind": []}, {"kind": None},
    {"token": "short"}, {"token": 1},
    {"seconds": -1}, {"seconds": "x"}, {"note": 1}, {"note": "x" * 2001}, {"english": None},
    {"answers": {"civic": "x"}}, {"answers": {}}, {"answers": None}, {"answers": {"civic": "civic"}},
]  # fmt: skip


def test_what_is_no_vote_is_refused_and_not_kept(caller: Caller, three: Path) -> None:
    for wrong in NO_VOTE:
        assert caller.ask("/api/vote", {**said(0, NO), "seen": caller.seen(0), **wrong})[0] == 400, wrong
    assert hand.votes(three) == []
    caller.vote(said(0, NO))
    assert len(hand.votes(three)) == 1


def test_a_request_that_is_too_large_or_no_object_is_refused(caller: Caller) -> None:
    for body in (b"x", b"[]", b"[" * 30_000, b"1", b"\xff", b'{"a":"' + b"x" * 40_000 + b'"}'):
        assert caller.ask("/api/vote", body)[0] == 400
    assert caller.ask("/api/begin", content_type="text/plain")[0] == 400
    assert caller.ask("/api/begin")[0] == 200


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_whatever_the_model_said_the_page_receives_the_same_to_the_byte(tmp_path: Path) -> None:
    received = []
    for civic, p in (("civic", 0.97), ("not civic", 0.51)):
        posts = [post(n, f"text {n}", civic, p) for n in range(1, 6)]
        folder = fill(tmp_path / civic, posts, labels_of(1, ("m", civic)))
        sitting = Sitting(folder, "--annotator", "anna", "--seed", 4)
        caller = Caller(sitting.address).enter()
        bodies = [caller.ask("/api/begin")[1]]
        view = json.loads(bodies[0])["view"]
        while not view["over"]:
            bodies.append(
                caller.ask(
                    "/api/vote",
                    {**said(view["at"], NO), "seen": view["seen"], "token": "the-same-token-" + str(len(bodies))},
                )[1]
            )
            view = json.loads(bodies[-1])
        bodies += [caller.ask("/api/last")[1], caller.ask("/api/step", {"at": 2, "back": True})[1]]
        sitting.end()
        received.append(bodies)
    assert received[0] == received[1]
    assert len(received[0]) == 8


def test_draws_by_uncertainty_and_disagreement_take_those_and_tell_nobody_who_labels(tmp_path: Path) -> None:
    posts = [post(n, f"text {n}", p=0.5 + n / 100) for n in range(1, 21)]
    several = [one for n in (3, 8) for one in labels_of(n, ("a", "civic"), ("b", "not civic"))]
    same = labels_of(5, ("a", "civic"), ("b", "civic"))
    folder = fill(tmp_path / "data", posts, [*several, *same])
    answers = {f"text {n}": NO for n in range(1, 21)}
    unsure = vote_on_all(folder, "anna", answers, "--by", "uncertainty", "--posts", 5, "--seed", 2)
    assert sorted(unsure) == [f"text {n}" for n in range(1, 6)]
    assert unsure == [f"text {int(uri[-3:])}" for uri in order_for(2, "anna", [uri_of(n) for n in range(1, 6)])]
    assert sorted(vote_on_all(folder, "anna", answers, "--by", "disagreement")) == ["text 3", "text 8"]
    for kind in ("uncertainty", "disagreement"):
        file = tmp_path / f"{kind}.jsonl"
        done, rows = hand.exported(folder, file, kind=kind)
        assert f"drawn by {kind}, not uniformly" in done.text
        assert {(row["draw_kind"], row["draw_p"]) for row in rows} == {(kind, None)}
        refused = f"posts drawn by {kind}, not uniformly, correct nothing"
        for ask in (
            estimate(hand.settings_of(folder), Estimate(gold=file)),
            gather(hand.settings_of(folder), Period(gold=file)),
        ):
            with pytest.raises(Usage, match=refused):
                asyncio.run(ask)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def test_only_live_posts_of_the_population_are_drawn(tmp_path: Path) -> None:
    feed: dict[str, Any] = {
        "origins": [{"kind": "feed", "name": "today", "rank": 1, "fetched_at": f"{hand.DAY}T13:00:00.000Z"}]
    }
    folder = fill(
        tmp_path / "data",
        [
            post(1, "counts"), post(2, "hidden", state="hidden"), post(3, "waits", labels={}), post(4, "feed", **feed),
            post(5, "early", event_at="2026-11-19T23:59:59.999Z"), post(6, "erased"), post(7, "\u200b \u2800"),
            post(8, "suspended"), post(9, "deleted in the journal alone"),
        ],
    )  # fmt: skip
    hand.journal(folder, "INSERT INTO erased VALUES (?, 1)", [("did:plc:author6",)])
    hand.journal(folder, "INSERT INTO account VALUES (?, 'suspended', 1)", [("did:plc:author8",)])
    hand.deleted(folder, 9)
    answers = dict.fromkeys(("counts", "waits", "feed", "early"), NO)
    assert vote_on_all(folder, "a", answers, "--since", hand.DAY) == ["counts"]
    assert sorted(vote_on_all(folder, "a", answers, "--new", "--among", "collected")) == ["counts", "early", "waits"]
    assert vote_on_all(folder, "a", answers, "--new", "--origin", "feed:today") == ["feed"]
    listed = json.loads(hand.run(folder, "list", "--json").out)
    assert [(one["kind"], one["among"], one["population"]) for one in listed] == [
        ("uniform", "labelled", 1), ("uniform", "collected", 3), ("uniform", "labelled", 1)
    ]  # fmt: skip
    assert (listed[0]["since"], listed[0]["until"]) == (f"{hand.DAY}T00:00:00.000Z", f"{hand.DAY}T12:00:01.001Z")


def test_a_uniform_draw_is_refused_for_posts_that_could_not_be_drawn(three: Path, tmp_path: Path) -> None:
    vote_on_all(three, "anna", {f"text {n}": NO for n in (1, 2, 3)}, "--posts", 3)
    gold = tmp_path / "gold.jsonl"
    hand.exported(three, gold)

    def estimated(**wanted: Any) -> Table:
        (table,) = asyncio.run(estimate(hand.settings_of(three), Estimate(gold=gold, fields=["civic"], **wanted)))
        return table

    found = estimated()
    assert found.gold == 3
    assert found.rows[0].corrected is not None
    assert found.rows[0].corrected.share.value == pytest.approx(0.0), "people say that none is civic"
    with pytest.raises(Usage, match="drawn from posts of the origin firehose"):
        estimated(origin="any")
    hand.change(three, post(4, "later", event_at="2026-11-21T00:00:00.000Z"))
    told = r"drawn from posts from 2026-11-20T12:00:01.000Z to 2026-11-20T12:00:03.001Z, and others"
    with pytest.raises(Usage, match=told):
        estimated()
    assert estimated(until="2026-11-21").gold == 3
    refused = command.run("estimate", "--data-dir", three, "--gold", gold)
    assert (refused.code, re.search(told, refused.err) is not None) == (2, True)


def test_a_draw_goes_on_as_it_was_made_and_what_contradicts_it_is_told(three: Path) -> None:
    Sitting(three, "--annotator", "anna", "--posts", 2, "--seed", 9).end()
    again = Sitting(three, "--annotator", "ben")
    assert again.said[0] == "draw 1: uniform, 2 of 3 labelled posts, seed 9"
    again.end()
    for flags, told in (
        (("--posts", 3), "--posts 3: draw 1 has 2"),
        (("--seed", 1), "--seed 1: draw 1 has 9"),
        (("--since", "2026-01-01"), "--since 2026-01-01: draw 1 has none"),
        (("--draw", 7), "--draw 7: task civic has no such draw"),
    ):
        ended = hand.run(three, "--annotator", "ben", *flags)
        assert ended.code == 2
        assert told in ended.err
    assert hand.run(three).code == 2
    assert hand.run(three, "--annotator", "a", "--adjudicate", "b").code == 2
    assert hand.run(three, "--annotator", "a", "--rejects", "--by", "uncertainty").code == 2
    assert "there is nothing to draw" in hand.run(three, "--annotator", "a", "--rejects").err
    assert "there is nothing to draw" in hand.run(three, "--annotator", "a", "--by", "disagreement").err


async def test_two_who_begin_at_the_same_time_get_the_same_posts(tmp_path: Path) -> None:
    first, second = await Votes.open(tmp_path), await Votes.open(tmp_path)
    asked = Draw(0, "civic", "2", "x", "[]", "uniform", "labelled", "firehose", "", "", 1, 1, 3, "{}", 1)
    made = await first.add(asked, [Pick(uri_of(1))], unless_after=0)
    assert await second.add(asked._replace(seed=2), [Pick(uri_of(2))], unless_after=0) == made
    assert (made.id, [item.uri for item in await second.items(made.id)]) == (1, [uri_of(1)])
    other = await second.add(asked._replace(seed=2), [Pick(uri_of(2))], unless_after=None)
    assert (other.id, other.seed, [item.uri for item in await first.items(2)]) == (2, 2, [uri_of(2)])
    assert (await first.add(asked._replace(kind="rejects"), [Pick(uri_of(3))], unless_after=0)).id == 3
    await first.close()
    await second.close()


def test_any_task_file_will_do_and_its_votes_tell_under_which_they_were_given(tmp_path: Path) -> None:
    task = tmp_path / "mood.toml"
    text = (
        'name = "mood"\nversion = "1"\ndefinition = "How it sounds."\n[[fields]]\nname = "mood"\n'
        'values = ["glad", "sad"]\ndescription = "Which?"\n'
    )
    task.write_text(text)
    folder = fill(tmp_path / "data", [post(1, "text 1", labels={})])
    args = ("--task", str(task), "--among", "collected")
    vote_on_all(folder, "anna", {"text 1": {"mood": "sad"}}, *args)
    task.write_text(text.replace("sounds.", "sounds, mostly."))
    noted = Sitting(folder, "--annotator", "ben", *args)
    assert any("the task file changed since draw 1" in line for line in noted.said)
    caller = Caller(noted.address).enter()
    at = caller.json("/api/begin")["view"]["at"]
    caller.vote(said(at, {"mood": "glad"}))
    noted.end()
    hashes = hand.votes(folder, "annotator, task_sha256")
    assert len({sha for _, sha in hashes}) == 2
    assert len(hand.exported(folder, tmp_path / "g.jsonl", task=str(task))[0].found["task_versions"]) == 2
    task.write_text(text.replace('"sad"', '"sad", "flat"'))
    refused = hand.run(folder, "--annotator", "ben", *args)
    assert refused.code == 2
    assert "its fields are not those of draw 1" in refused.err


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_the_same_vote_sent_twice_is_one_and_a_changed_mind_is_another(caller: Caller, three: Path) -> None:
    first = said(0, NO)
    assert caller.vote(first) == caller.vote(first)
    caller.vote(said(0, {"civic": "?"}, note="half a pair \ud800"))
    assert [(row[4], row[5]) for row in hand.votes(three)] == [
        ('{"civic": "not civic"}', ""),
        ('{"civic": "?"}', "half a pair \ufffd"),
    ]


def test_a_vote_is_never_changed_or_deleted_whoever_tries(caller: Caller, three: Path) -> None:
    caller.vote(said(0, NO))
    with closing(sqlite3.connect(three / datadir.ANNOTATIONS)) as db:
        for sql in ("DELETE FROM vote", "UPDATE vote SET answers = '{}'", "UPDATE vote SET annotator = 'x', note = ''",
                    "UPDATE vote SET answers = NULL, english = NULL, note = '', at = 1"):  # fmt: skip
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.execute(sql)
    assert (three / datadir.ANNOTATIONS).stat().st_mode & 0o777 == 0o600


def test_an_edited_post_is_shown_again_and_asked_about_again(caller: Caller, three: Path, tmp_path: Path) -> None:
    view = caller.json("/api/begin")["view"]
    n = int(view["post"]["text"][-1])
    hand.change(three, post(n, f"edited {n}", cid="another", v=2))
    told = caller.vote(said(view["at"], NO))
    assert (told["told"], told["at"], told["post"]["text"]) == ("edited", view["at"], f"edited {n}")
    assert hand.votes(three) == []
    caller.vote(said(view["at"], NO))
    hand.change(three, post(n, f"edited again {n}", cid="a third", v=3))
    assert caller.json("/api/step", {"at": view["at"], "back": False})["progress"]["done"] == 1
    again = caller.json("/api/step", {"at": view["at"] + 1, "back": True})
    assert (again["post"]["text"], again["said"], again["progress"]["done"]) == (f"edited again {n}", None, 0)
    with pytest.raises(Usage, match="nobody voted on a post that is still there"):
        hand.exported(three, tmp_path / "gold.jsonl")


def test_a_vote_is_on_the_text_that_its_tab_showed_whatever_another_tab_or_a_restart_has_looked_up(three: Path) -> None:
    sitting = Sitting(three, "--annotator", "anna", "--seed", 5)
    first = Caller(sitting.address).enter()
    view = first.json("/api/begin")["view"]
    n = int(view["post"]["text"][-1])
    late = {**said(view["at"], NO), "seen": view["seen"]}
    hand.change(three, post(n, f"edited {n}", cid="another", v=2))
    second = Caller(sitting.invited()).enter()
    assert second.json("/api/begin")["view"]["post"]["text"] == f"edited {n}"
    assert first.vote(late)["told"] == "edited"
    sitting.end()
    sitting = Sitting(three, "--annotator", "anna")
    after = Caller(sitting.address).enter()
    assert after.json("/api/begin")["view"]["post"]["text"] == f"edited {n}"
    assert after.vote(late)["told"] == "edited", "the page sends again what was not saved"
    assert hand.votes(three) == []
    sitting.end()


def test_a_gold_file_is_whole_or_not_there_and_for_its_owner_alone(three: Path, tmp_path: Path) -> None:
    vote_on_all(three, "anna", {f"text {n}": NO for n in (1, 2, 3)})
    out, umask = tmp_path / "gold.jsonl", os.umask(0o022)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))  # the disk is full in the midst of it
        with pytest.raises(Usage, match="name another"):
            annotating._write(out, [{"text": "x" * 300}] * 9)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.glob("gold*")) == []
        hand.exported(three, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.glob("gold*")] == ["gold.jsonl"]
    with pytest.raises(Usage, match="is there already"):
        hand.exported(three, out)


def test_gold_with_the_longest_texts_that_posts_may_have_is_read_back(tmp_path: Path) -> None:
    """What a model reads of a post has descriptions of many images, too, and is longer than any one text."""
    alts = ["a" * 9_999] * 5
    folder = fill(tmp_path / "data", [post(1, "x" * 9_999, alts=alts), post(2, "=cmd|'/c calc'!A0,\u202e\n\"")])
    vote_on_all(folder, "anna", {"x" * 9_999: NO, "=cmd|'/c calc'!A0,\u2039U+202E\u203a\n\"": NO})
    _, rows = hand.exported(folder, tmp_path / "gold.jsonl", with_text=True)
    gold = read_gold("gold.jsonl", (tmp_path / "gold.jsonl").read_bytes(), {"civic": ("civic", "not civic")})
    assert [item.text for item in gold.items] == [row["text"] for row in rows]
    assert max(len(item.text or "") for item in gold.items) > 50_000


def test_a_seed_or_a_draw_that_cannot_be_is_wrong_usage(three: Path) -> None:
    for args in (("--seed", 2**63), ("--seed", -1), ("--draw", 0)):
        assert hand.run(three, "--annotator", "anna", *args).code == 2
    assert not (three / datadir.ANNOTATIONS).exists()


def test_what_its_author_deletes_leaves_votes_gold_and_file_and_hidden_posts_wait(three: Path, tmp_path: Path) -> None:
    answers = {f"text {n}": {"civic": "?"} for n in (1, 2, 3)}
    vote_on_all(three, "anna", answers, "--seed", 1)
    hand.deleted(three, 1)
    hand.change(three, post(2, "text 2", v=2, state="hidden"))
    gold = tmp_path / "gold.jsonl"
    done, rows = hand.exported(three, gold)
    assert re.search(r"left out: 1 (deleted, 1 hidden|hidden, 1 deleted)", done.text)
    assert [row["uri"] for row in rows] == [uri_of(3)]
    assert {row[1]: row[4] for row in hand.votes(three)} == {
        uri_of(1): None, uri_of(2): '{"civic": "?"}', uri_of(3): '{"civic": "?"}'
    }  # fmt: skip
    hand.change(three, post(2, "text 2", v=3))
    _, rows = hand.exported(three, tmp_path / "later.jsonl", with_text=True)
    assert [(row["uri"], row["text"]) for row in rows] == [(uri_of(2), "text 2"), (uri_of(3), "text 3")]
    with pytest.raises(Usage, match="is there already"):
        hand.exported(three, gold)


def test_what_is_erased_is_emptied_at_once_and_cannot_be_voted_on_late(three: Path) -> None:
    sitting = Sitting(three, "--annotator", "anna", "--seed", 5)
    caller = Caller(sitting.address).enter()
    view = caller.json("/api/begin")["view"]
    n = int(view["post"]["text"][-1])
    caller.vote(said(view["at"], NO, note="quoted: secret words of the post"))
    raw = b"".join(file.read_bytes() for file in three.glob("annotations.db*"))
    assert b"secret words" in raw
    assert command.run("erase", f"did:plc:author{n}", "--data-dir", three).code == 0
    assert hand.votes(three) == [("anna", uri_of(n), "vote", None, None, "")]
    raw = b"".join(file.read_bytes() for file in three.glob("annotations.db*"))
    assert b"secret words" not in raw
    assert caller.vote(said(view["at"], NO))["told"] == "gone"
    assert len(hand.votes(three)) == 1
    sitting.end()


def test_export_says_what_ties_need_and_what_is_not_defined(three: Path, tmp_path: Path) -> None:
    vote_on_all(three, "anna", {f"text {n}": NO for n in (1, 2, 3)})
    vote_on_all(three, "ben", {f"text {n}": NO for n in (1, 2, 3)})
    done, _ = hand.exported(three, tmp_path / "agreed.jsonl")
    assert "Cohen's kappa        not defined  n = 3  anna, ben" in done.text, "all said the same"
    assert "nowhere" not in done.text
    sitting = Sitting(three, "--annotator", "ben")
    caller = Caller(sitting.address).enter()
    caller.json("/api/begin")
    caller.vote(said(0, {"civic": "civic", "lean": "unclear", "us_politics": "unclear"}))
    sitting.end()
    done, _ = hand.exported(three, tmp_path / "tied.jsonl")
    assert "! 1 tie counts nowhere: `civicsky annotate --adjudicate NAME` decides" in done.text


SECRET = "quoted: secret words of the post"


def noted(folder: Path, who: str, *ns: int) -> None:
    """One person's votes on all posts, each with a note that quotes it."""
    sitting = Sitting(folder, "--annotator", who, "--posts", len(ns))
    caller = Caller(sitting.address).enter()
    view = caller.json("/api/begin")["view"]
    while not view["over"]:
        view = caller.vote(said(view["at"], NO, note=SECRET))
    sitting.end()


def followed(folder: Path) -> None:
    """The labelling half takes over what the journal tells, as it does all the time while it runs."""
    asyncio.run(catch_up(folder, hand.settings_of(folder), Metrics()))


def kept(folder: Path) -> set[int]:
    """The posts of which something is still said."""
    return {int(uri.partition("author")[2].partition("/")[0]) for _, uri, *_, note in hand.votes(folder) if note}


def test_what_its_author_deletes_is_emptied_by_the_service_though_nobody_labels_any_more(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", [post(n, f"text {n}") for n in range(1, 7)])
    noted(folder, "anna", *range(1, 7))
    followed(folder)
    assert kept(folder) == {1, 2, 3, 4, 5, 6}
    told = "INSERT INTO change (kind, did, rkey, rev, at) VALUES (?,?,?,'3s',1)"
    hand.deleted(folder, 1)
    hand.journal(folder, told, [("delete", hand.key(2)[1], hand.key(2)[0])])  # the journal pruned the post long ago
    hand.journal(folder, told, [("remove", "did:plc:author3", "")])  # an account's end
    hand.journal(folder, told, [("hide", "did:plc:author4", "")])
    hand.deleted(folder, 5)  # and made again under the same address, before the labelling half came to it
    hand.journal(folder, "UPDATE post SET state = ? WHERE did = ?", [("live", "did:plc:author5")])
    ended = hand.labelled_all(folder)
    assert ended.code == 0, ended.err
    assert kept(folder) == {4, 5, 6}
    raw = b"".join(file.read_bytes() for file in folder.glob("annotations.db*"))
    assert raw.count(SECRET.encode()) == 3


def test_what_was_deleted_is_emptied_before_the_ledger_is_past_it(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the two only makes it be told once more."""
    noted(three, "anna", 1, 2, 3)
    hand.deleted(three, 1)

    async def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "follow", crash)
        with pytest.raises(KeyboardInterrupt):
            followed(three)
    assert kept(three) == {2, 3}
    followed(three)
    assert kept(three) == {2, 3}


def test_where_nobody_labelled_by_hand_no_file_is_made(three: Path) -> None:
    hand.deleted(three, 1)
    followed(three)
    assert not (three / datadir.ANNOTATIONS).exists()


def test_a_backup_has_the_votes_and_a_restore_brings_them_back(three: Path, tmp_path: Path) -> None:
    vote_on_all(three, "anna", {f"text {n}": NO for n in (1, 2, 3)})
    assert command.run("backup", tmp_path / "backups", "--data-dir", three).code == 0
    (made,) = (tmp_path / "backups").glob("civicsky-*")
    ended = command.run("restore", made, "--data-dir", tmp_path / "again")
    assert ended.code == 0, ended.err
    assert hand.votes(tmp_path / "again") == hand.votes(three)


def test_posts_of_a_mongodb_are_labelled_as_well(mongod: Mongod, mongo_database: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", [])
    (folder / datadir.POSTS).unlink()
    from pymongo import MongoClient  # noqa: PLC0415

    with MongoClient[dict[str, Any]](mongod.uri) as client:
        client[mongo_database]["posts"].insert_one(post(1, "text 1"))
    where = {"store__mongo_uri": mongod.uri, "store__mongo_database": mongo_database, "store__kind": "mongo"}
    sitting = Sitting(folder, "--annotator", "anna", **where)
    caller = Caller(sitting.address).enter()
    assert caller.json("/api/begin")["view"]["post"]["text"] == "text 1"
    assert caller.vote(said(0, NO))["over"]
    sitting.end()


# ---- rejects ---------------------------------------------------------------------------------------------------------


def test_rejects_measure_what_the_filter_missed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", [])
    english = {n: f"the council votes {n}" for n in (1, 2)} | {3: "my cat slept all day"}
    foreign = {n: f"der Rat stimmt ab {n}" for n in range(4, 11)}
    reject(folder, *[(n, "language" if n != 2 else "adult", text) for n, text in (english | foreign).items()])
    reject(folder, (11, "no_text", "\u200b"), (12, "language", "suspended"), (13, "language", "went away"))
    hand.journal(folder, "INSERT INTO account VALUES (?, 'suspended', 1)", [("did:plc:author12",)])
    hand.journal(folder, "INSERT INTO account VALUES (?, 'deleted', 1)", [("did:plc:author13",)])
    civic = {"civic": "civic", "lean": "unclear", "us_politics": "unclear"}
    answers: dict[str, Any] = {english[1]: civic, english[2]: civic, english[3]: NO, **dict.fromkeys(foreign.values())}
    assert sorted(vote_on_all(folder, "anna", answers, "--rejects")) == sorted((english | foreign).values())
    gold = tmp_path / "gold.jsonl"
    done, rows = hand.exported(folder, gold, kind="rejects")
    every, *by_reason = done.found["missed"]
    # 3 of 10 are English, 2 of 10 are English and civic; each by another author.
    for name, hits in (("english", 3), ("english_and_value", 2)):
        expected = weighted_share([n < hits for n in range(10)], [1.0] * 10, [str(n) for n in range(10)]).population
        assert every[name]["value"] == pytest.approx(hits / 10)
        assert (every[name]["low"], every[name]["high"]) == pytest.approx((expected.low, expected.high))
    assert [(one["reason"], one["judged"], one["english_and_value"]["value"]) for one in by_reason] == [
        ("adult", 1, 1.0), ("language", 9, pytest.approx(1 / 9))
    ]  # fmt: skip
    assert {(row["draw_kind"], row["draw_p"]) for row in rows} == {("rejects", 1.0)}
    assert sum(row["vote_english"] == "no" and row["civic"] == "" for row in rows) == 7
    with pytest.raises(Usage, match="posts drawn by rejects"):
        asyncio.run(estimate(hand.settings_of(folder), Estimate(gold=gold)))
    # The journal forgets rejects: then votes stay, and nobody can say whether the posts are there.
    hand.journal(folder, "DELETE FROM reject WHERE reason = ?", [("language",)])
    hand.deleted(folder, 2)
    later, _ = hand.exported(folder, tmp_path / "later.jsonl", kind="rejects")
    assert later.found["posts"] == {"drawn": 10, "judged": 9, "not held": 9, "deleted": 1, "edited since": 0}


def test_rejects_of_which_another_share_was_kept_meanwhile_are_said_to_be_uneven_and_since_when_they_are_even(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, now, hour = fill(tmp_path / "data", []), now_us(), 3_600_000_000
    reject(folder, (1, "language", "before"), (2, "language", "after"))
    hand.journal(folder, "UPDATE reject SET at = ? WHERE did = ?", [(now - 3 * hour, "did:plc:author1")])
    hand.journal(
        folder,
        "INSERT INTO run (started, version, filter_version, settings, settings_hash) VALUES (?,'0','0',?,'')",
        [
            (now - ago * hour, json.dumps({"journal": {"reject_sample": share}}))
            for ago, share in ((4, 0.01), (2, 0.05), (1, 0.05))
        ],
    )
    assert sorted(vote_on_all(folder, "anna", {"before": None, "after": None}, "--rejects")) == ["after", "before"]
    hand.exported(folder, tmp_path / "uneven.jsonl", kind="rejects")
    noted = re.search(
        r"reject_sample changed within this draw \(0.01 from \S+, 0.05 from \S+\).* --new --since (\S+)$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert noted
    assert vote_on_all(folder, "anna", {"after": None}, "--rejects", "--new", "--since", noted[1]) == ["after"]
    hand.exported(folder, tmp_path / "even.jsonl", kind="rejects")
    assert "reject_sample" not in capsys.readouterr().out


def test_nothing_is_written_into_the_files_of_others(three: Path) -> None:
    def held() -> dict[str, Any]:
        names = (datadir.POSTS, datadir.JOURNAL)
        return {name: [list(row) for row in command.query(three / name, "PRAGMA data_version")] for name in names} | {
            name: (three / name).read_bytes() for name in names
        }

    before = held()
    vote_on_all(three, "anna", {f"text {n}": NO for n in (1, 2, 3)})
    assert held() == before
    for name in (datadir.POSTS, datadir.JOURNAL):
        (three / name).chmod(0o400)
    assert re.fullmatch(r"ben: 0 of 3 posts done", Sitting(three, "--annotator", "ben").end())
    assert (three / datadir.POSTS).stat().st_mode & 0o777 == 0o400, "who only reads leaves it as it was"
