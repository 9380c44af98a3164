"""`civicsky hydrate FILE`: a list of posts is filled with the texts of those that are there now."""

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from civicsky.record import extract
from support.appview_server import AppViewServer, Trouble, appview_server
from support.asked import GIVES_UP, asked, did, post_uri
from support.command import Ended, finish, run, start, until

QUICK: dict[str, Any] = {"appview__per_second": 1000}
OPTS_OUT = {"src": did(3), "val": "!no-unauthenticated", "cts": "2026-11-22T12:00:00.000Z"}
BOT = {"src": did(4), "val": "bot", "cts": "2026-11-22T12:00:00.000Z"}


@pytest.fixture
def appview() -> Iterator[AppViewServer]:
    with appview_server() as server:
        for n in range(60):
            server.write(post_uri(n), f"text {n}", langs=["en"], alts=["a picture"], created_at="2026-11-22T12:00:00Z")
        yield server


def hydrate(file: Path, appview: AppViewServer, *args: str | Path, **settings: Any) -> Ended:
    return run("hydrate", file, *args, appview__url=appview.url, **{**QUICK, **settings})


def told(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def written(folder: Path, uris: list[str], name: str = "list.txt") -> Path:
    file = folder / name
    file.write_text("".join(uri + "\n" for uri in uris))
    return file


# ---- what is written -------------------------------------------------------------------------------------------------


def test_each_post_that_is_there_is_a_line_with_text_counts_and_marks_and_of_the_others_nothing_is_written(
    appview: AppViewServer, tmp_path: Path
) -> None:
    appview.likes[post_uri(1)] = 77
    appview.labels |= {did(3): [OPTS_OUT], post_uri(1): [{"src": "did:plc:mod", "val": "rude", "cts": "never"}]}
    del appview.posts[post_uri(2)]
    file = written(tmp_path, [post_uri(n) for n in (3, 1, 2)])
    ended = hydrate(file, appview, "--json")
    out = tmp_path / "list.hydrated.jsonl"
    assert told(ended) == {"out": str(out), "listed": 3, "there": 2, "not_shown": 1, "dropped": 0, "bad": 0}
    third, first = lines(out)
    assert {**extract({}), **first} == first, "all that `record.extract` gives"
    shown = {
        "uri": post_uri(1), "cid": appview.posts[post_uri(1)], "did": did(1), "text": "text 1", "langs": ["en"],
        "created_at": "2026-11-22T12:00:00.000Z", "alts": ["a picture"], "media": "images", "link": None,
        "likes": 77, "reposts": 2, "replies": 3, "quotes": 4, "marks": [], "indexed_at": "2026-11-22T12:00:00.000Z",
        "moderation": [{"source": "did:plc:mod", "value": "rude", "at": None}],
    }  # fmt: skip
    assert {name: first[name] for name in shown} == shown
    assert (third["uri"], third["marks"]) == (post_uri(3), ["no-unauthenticated"])
    assert post_uri(2) not in out.read_text()
    assert out.stat().st_mode & 0o077 == 0, "texts are for their owner's eyes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.hydrated.jsonl", "list.txt"]


def test_posts_whose_authors_ask_not_to_be_shown_to_the_public_are_left_out_where_that_is_asked_for(
    appview: AppViewServer, tmp_path: Path
) -> None:
    by_another = {**OPTS_OUT, "src": "did:plc:mod"}
    appview.labels |= {
        did(3): [OPTS_OUT],
        did(4): [BOT],
        did(5): [by_another],
        did(6): [OPTS_OUT | {"src": did(6), "neg": True}],
    }
    file = written(tmp_path, [post_uri(n) for n in range(7)])
    found = told(hydrate(file, appview, "--respect", "drop", "--out", tmp_path / "a.jsonl", "--json"))
    assert (found["there"], found["dropped"]) == (6, 1)
    marks = {one["did"]: one["marks"] for one in lines(tmp_path / "a.jsonl")}
    assert did(3) not in marks
    assert marks[did(4)] == ["automated"]
    assert marks[did(5)] == marks[did(6)] == [], "what others say, or what was taken back, is no wish of the author"
    by_setting = told(hydrate(file, appview, "--out", tmp_path / "b.jsonl", "--json", authors__respect="drop"))
    assert by_setting["dropped"] == 1


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "JSONL of texts"])
def test_a_list_may_be_text_csv_or_jsonl(kind: str, appview: AppViewServer, tmp_path: Path) -> None:
    uris = [post_uri(n) for n in range(3)]
    file = tmp_path / f"list.{kind.partition(' ')[0].lower()}"
    if kind == "csv":
        with file.open("w", newline="", encoding="utf-8-sig") as stream:
            csv.writer(stream).writerows([["text", "uri"], *(["a,\nb", uri] for uri in uris)])
    elif kind == "txt":
        file.write_text("\n\n".join(uris) + "\r\n")
    else:
        file.write_text("".join(json.dumps({"uri": uri} if kind == "jsonl" else uri) + "\n" for uri in uris))
    assert told(hydrate(file, appview, "--json"))["there"] == 3
    assert [one["uri"] for one in lines(tmp_path / "list.hydrated.jsonl")] == uris


def test_parquet_is_read_where_its_package_is_there_else_that_is_said(appview: AppViewServer, tmp_path: Path) -> None:
    file = tmp_path / "list.parquet"
    try:
        import pyarrow as pa  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
        from pyarrow import parquet  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    except ImportError:
        file.write_bytes(b"PAR1")
        ended = hydrate(file, appview)
        assert ended.code == 2
        assert "Parquet needs the extra `export`" in ended.err
        return
    parquet.write_table(pa.table({"uri": [post_uri(n) for n in range(3)]}), file)
    assert told(hydrate(file, appview, "--json"))["there"] == 3


def test_addresses_of_web_pages_are_taken_when_they_name_a_did_and_bad_lines_are_told_and_counted(
    appview: AppViewServer, tmp_path: Path
) -> None:
    key = post_uri(1).rpartition("/")[2]
    file = written(
        tmp_path,
        [
            f"https://bsky.app/profile/{did(1)}/post/{key}",
            f"https://bsky.app/profile/alice.test/post/{key}",
            "at://did:plc:a/app.bsky.feed.generator/x",
            "\x1b[31mhostile",
            post_uri(5),
        ],
    )
    ended = hydrate(file, appview)
    assert ended.code == 0
    assert ended.out.startswith("5 listed: 2 there, 0 not shown, 0 left out at their authors' wish, 3 bad lines; ")
    assert [line.partition(" names")[0] for line in ended.err.splitlines()] == [
        f"civicsky: line 2: 'https://bsky.app/profile/alice.test/post/{key}'",
        "civicsky: line 3: 'at://did:plc:a/app.bsky.feed.generator/x'",
        "civicsky: line 4: '?[31mhostile'",
    ]
    assert asked(appview) == [post_uri(1), post_uri(5)]


def test_many_bad_lines_are_not_all_told(appview: AppViewServer, tmp_path: Path) -> None:
    ended = hydrate(written(tmp_path, ["x"] * 500), appview)
    assert "500 bad lines" in ended.out
    assert len(ended.err.splitlines()) == 21


def test_hostile_texts_are_written_as_sound_json(appview: AppViewServer, tmp_path: Path) -> None:
    appview.records[post_uri(0)] = rb'{"text": "\ud800 \u2028 \u0000 \n {\"", "langs": 7}'
    appview.records[post_uri(1)] = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert told(hydrate(written(tmp_path, [post_uri(0), post_uri(1), post_uri(2)]), appview, "--json"))["there"] == 3
    lines_of = (tmp_path / "list.hydrated.jsonl").read_bytes().decode().split("\n")
    assert [json.loads(line)["text"] for line in lines_of[:3]] == ['? \u2028 \0 \n {"', "", "text 2"]


# ---- an end in the midst ---------------------------------------------------------------------------------------------


def test_one_that_was_killed_goes_on_where_it_was_and_asks_nothing_again_of_what_it_has(
    appview: AppViewServer, tmp_path: Path
) -> None:
    uris = [post_uri(n) for n in range(60)]
    file = written(tmp_path, uris)
    answer = appview.answer

    def stopping(method: str, query: dict[str, list[str]]) -> tuple[int, bytes]:
        if uris[55] in query.get("uris", ()):
            appview.answering.clear()
            appview.answering.wait()
        return answer(method, query)

    appview.answer = stopping  # type: ignore[method-assign]
    process = start("hydrate", file, appview__url=appview.url, **QUICK)
    until(lambda: uris[55] in asked(appview), "the third page")
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -9
    out, part = tmp_path / "list.hydrated.jsonl", tmp_path / "list.hydrated.jsonl.part"
    assert not out.exists()
    assert len(lines(part)) == 50
    with part.open("a") as stream:
        stream.write('{"uri": "half a li')  # as if it had been killed while it wrote
    appview.answer = answer  # type: ignore[method-assign]
    appview.answering.set()
    appview.calls.clear()
    assert told(hydrate(file, appview, "--json"))["there"] == 60
    assert asked(appview) == uris[50:]
    assert [one["uri"] for one in lines(out)] == uris
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.hydrated.jsonl", "list.txt"]


def test_an_api_that_cannot_be_asked_ends_with_1_and_the_same_command_goes_on(
    appview: AppViewServer, tmp_path: Path
) -> None:
    uris = [post_uri(n) for n in range(60)]
    file = written(tmp_path, uris)
    appview.stumbles[uris[30]] = Trouble(status=503, headers=GIVES_UP)
    ended = hydrate(file, appview)
    assert ended.code == 1
    assert ended.err == (
        f"civicsky: public API at {appview.url} answers HTTP 503; what was got is kept in "
        f"{tmp_path}/list.hydrated.jsonl.part, and the same command goes on from there\n"
    )
    appview.stumbles.clear()
    appview.calls.clear()
    other = hydrate(file, appview, "--respect", "drop")
    assert other.code == 2
    assert "list.hydrated.jsonl.part is of another list or of other options; remove it" in other.err
    assert appview.calls == []
    assert told(hydrate(file, appview, "--json"))["there"] == 60
    assert asked(appview) == uris[25:]


def test_one_post_at_which_the_api_stumbles_costs_no_other(appview: AppViewServer, tmp_path: Path) -> None:
    appview.stumbles[post_uri(30)] = Trouble(status=400)
    found = told(hydrate(written(tmp_path, [post_uri(n) for n in range(60)]), appview, "--json"))
    assert (found["there"], found["not_shown"]) == (59, 1)


# ---- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ((), "give a FILE, or one of --counts, --verify and --authors"),
        (("list.txt", "--counts"), "give a FILE, or one of"),
        (("--counts", "--verify"), "give a FILE, or one of"),
        (("--counts", "--out", "x"), "--out and --respect are for a FILE"),
        (("--counts", "--since", "2026-11-22"), "--since and --until choose what --verify looks up"),
        (("nowhere.txt",), "nowhere.txt: No such file or directory; name a list of posts"),
    ],
)
def test_wrong_usage_is_one_line(args: tuple[str, ...], why: str) -> None:
    ended = run("hydrate", *args)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert why in ended.err


def test_a_list_without_the_column_and_a_file_that_is_there_are_told(appview: AppViewServer, tmp_path: Path) -> None:
    file = written(tmp_path, ["text,link", "a,b"], "list.csv")
    ended = hydrate(file, appview)
    assert (ended.code, ended.err) == (
        2, f"civicsky: {file}: it has no column `uri`; name the column of the posts' addresses so\n",
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["list.csv"]
    (tmp_path / "list.hydrated.jsonl").write_text("mine")
    ended = hydrate(written(tmp_path, [post_uri(1)]), appview)
    assert ended.code == 2
    assert "list.hydrated.jsonl is there already; name another file with --out" in ended.err
    assert (tmp_path / "list.hydrated.jsonl").read_text() == "mine"
