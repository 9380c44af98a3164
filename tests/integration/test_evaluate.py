"""`civicsky evaluate`, as installed, against a real HTTP server that says of each post what the post dictates.

The figures below are worked out by hand from this table; "no" is not civic, and L, M, R, U are the leans.

    item         ann   bob   adjudicated   gold       schema says   words say
    1            L     L                   civic L    civic L       civic
    2            L     L                   civic L    civic R       no
    3            M     M                   civic M    no            civic
    4            no    no                  no         no            no
    5            no    no                  no         civic U       no
    6            L     no                  tie        civic L       civic
    7            R     no    no            no         no            no
    8                                      none       no            no
    9            ?     ?                   none       no            no
    example      civic civic               dropped
    by address   U     U                   civic U    civic U       civic
    gone         civic civic               no text
    refused      L     L                   civic L    refuses       civic

(A refusal is a message; asked for one word, only the first token's probabilities are read.)
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from civicsky.research.gold import read_gold, sample_rows
from civicsky.task import load_task
from support.appview_server import AppViewServer, Trouble, appview_server
from support.command import Ended, model_server, run, start, until

LEANS = {"L": "left-leaning", "M": "moderate", "R": "right-leaning", "U": "unclear"}
Found = dict[str, Any]
HERE, GONE = (f"at://did:plc:{name}/app.bsky.feed.post/3kx" for name in ("here", "gone"))
KNOB = json.dumps({"name": "refusal", "text": "REFUSE"})
REQUESTS = 10 + 3
"""One for each item, three for the one that is refused."""


def said(name: str, lean: str, word: str) -> str:
    """A post that dictates its labels."""
    fields = {"civic": "civic", "lean": LEANS[lean]} if lean in LEANS else {"civic": "not civic"}
    return f"{name} answer {word} {json.dumps(fields)}"


JUDGED: list[tuple[str, dict[str, str]]] = [
    (said("1", "L", "politics"), {"ann": "L", "bob": "L"}),
    (said("2", "R", "food"), {"ann": "L", "bob": "L"}),
    (said("3", "no", "politics"), {"ann": "M", "bob": "M"}),
    (said("4", "no", "food"), {"ann": "no", "bob": "no"}),
    (said("5", "U", "food"), {"ann": "no", "bob": "no"}),
    (said("6", "L", "politics"), {"ann": "L", "bob": "no"}),
    (said("7", "no", "food"), {"ann": "R", "bob": "no", "adjudicated": "no"}),
    (said("8", "no", "food"), {"ann": "", "bob": ""}),
    (said("9", "no", "food"), {"ann": "?", "bob": "can't tell"}),
    (said("REFUSE", "L", "politics"), {"ann": "L", "bob": "L"}),
]


def rows() -> list[list[str]]:
    example = load_task("civic")[0].boundaries[0].post
    found = [["uri", "text", "author", "annotator", "civic", "lean"]]
    for text, votes in JUDGED:
        for who, vote in votes.items():
            civic = {"no": "FALSE", "": "", "?": "?", "can't tell": "can't tell"}.get(vote, "TRUE")
            found.append(["", text, f"author of {text[0]}", who, civic, LEANS.get(vote, "")])
    for who in ("ann", "bob"):
        found.append(["", example.upper() + "\n https://example.org/x", "", who, "civic", ""])
        found += [[uri, "", "", who, "civic", lean] for uri, lean in ((HERE, "unclear"), (GONE, ""))]
    return found


def gold_file(folder: Path) -> Path:
    file = folder / "gold.csv"
    with file.open("w", encoding="utf-8-sig", newline="") as out:
        csv.writer(out, delimiter=";").writerows(rows())
    return file


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    return gold_file(tmp_path)


@pytest.fixture(scope="module")
def api() -> Iterator[AppViewServer]:
    with appview_server() as server:
        server.write(HERE, said("10", "U", "politics"))
        yield server


def evaluate(gold: Path, url: str, api: AppViewServer, *args: str | Path, **settings: Any) -> Ended:
    return run("evaluate", gold, "--model-url", url, "--model", "mock", *args, **options(gold, api), **settings)


def options(gold: Path, api: AppViewServer) -> dict[str, Any]:
    return {"appview__url": api.url, "data_dir": gold.parent / "none", "label__slots": 1, "log__level": "error"}


def asked(log: Path) -> list[str]:
    return log.read_text().split()


def of(found: Found, variant: int, field: str) -> dict[str, Any]:
    (row,) = [row for row in found["variants"][variant]["fields"] if row["field"] == field]
    return dict(row)


def number(figure: dict[str, Any]) -> tuple[Any, int]:
    return pytest.approx(figure["value"]), figure["n"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, api: AppViewServer) -> Found:
    """All figures of the two ways side by side."""
    folder = tmp_path_factory.mktemp("evaluate")
    out = folder / "out"
    with model_server(folder / "log", "--obey", "replaces", "--knob", KNOB) as url:
        ended = evaluate(gold_file(folder), url, api, "--out", out, "--way", "schema,words", "--json")
    assert (ended.code, ended.err) == (0, "")
    figures: Found = json.loads(ended.out)
    assert figures == json.loads((out / "figures.json").read_text())
    return figures


# ---- figures worked out by hand --------------------------------------------------------------------------------------


def test_items_are_dropped_left_out_and_counted(found: Found) -> None:
    told = found["gold"]
    counts = {name: told[name] for name in ("rows", "items", "shown", "without_text", "asked", "without_author")}
    assert counts == {"rows": 27, "items": 13, "shown": 1, "without_text": 1, "asked": 11, "without_author": 0}
    assert told["annotators"] == ["ann", "bob"]
    civic, lean = found["fields"]
    assert civic["outcomes"] == {"judged": 8, "tie": 1, "not_judged": 1, "cannot_tell": 1}
    assert civic["classes"] == {"civic": 5, "not civic": 3}
    assert lean["outcomes"] == {"judged": 5, "not_applicable": 3, "tie": 1, "not_judged": 1, "cannot_tell": 1}
    assert lean["classes"] == {"left-leaning": 3, "moderate": 1, "unclear": 1}


def test_annotators_among_themselves(found: Found) -> None:
    told = found["fields"][0]["annotators"]
    assert number(told["agreement"]) == (7 / 9, 9)
    # Nine items, two disagreements: observed 4/18, expected 2 * 12 * 6 / (18 * 17).
    assert number(told["alpha"]) == (1 - (4 / 18) / (2 * 12 * 6 / (18 * 17)), 9)
    (pair,) = told["pairs"]
    assert (pair["first"], pair["second"]) == ("ann", "bob")


def test_a_field_that_every_post_has(found: Found) -> None:
    row = of(found, 0, "civic")
    assert (row["n"], row["failed"], row["unsaid"]) == (8, 1, 0)
    assert number(row["answered"]["accuracy"]) == (5 / 7, 7)
    assert number(row["all"]["accuracy"]) == (5 / 8, 8)
    assert (row["all"]["majority"], number(row["all"]["baseline"])) == ("civic", (5 / 8, 8))
    assert row["answered"]["confusion"] == [[3, 1, 0], [1, 2, 0]]
    assert row["all"]["confusion"] == [[3, 1, 1], [1, 2, 0]]
    assert number(row["answered"]["precision"]["civic"]) == (3 / 4, 4)
    assert number(row["answered"]["recall"]["not civic"]) == (2 / 3, 3)
    assert row["answered"]["f1"]["civic"]["value"] == pytest.approx(3 / 4)
    assert number(row["answered"]["macro_f1"]) == ((3 / 4 + 2 / 3) / 2, 7)
    # Observed 5/7, by chance 4/7 * 4/7 + 3/7 * 3/7.
    assert number(row["answered"]["kappa"]) == ((5 / 7 - 25 / 49) / (1 - 25 / 49), 7)


def test_a_field_that_only_some_posts_have(found: Found) -> None:
    row = of(found, 0, "lean")
    assert (row["n"], row["failed"], row["unsaid"]) == (5, 1, 1)
    assert number(row["answered"]["accuracy"]) == (2 / 3, 3)
    assert number(row["all"]["accuracy"]) == (2 / 5, 5)
    assert (row["all"]["majority"], number(row["all"]["baseline"])) == ("left-leaning", (3 / 5, 5))


def test_two_ways_side_by_side(found: Found) -> None:
    row = of(found, 1, "civic")
    assert number(row["all"]["accuracy"]) == (7 / 8, 8)
    assert row["calibration"]["n"] == 8
    assert row["event"] == "the post is civic"
    (pair,) = [pair["result"] for pair in found["comparisons"] if pair["field"] == "civic"]
    cells = [pair[name] for name in ("both_right", "first_only", "second_only", "both_wrong")]
    assert cells == [4, 1, 3, 0]
    assert pair["p_value"] == pytest.approx(2 * (1 + 4) / 16)  # none or one of four, either way
    assert number(pair["difference"]) == (-2 / 8, 8)
    assert found["disagreed"]["civic"] == 4
    wrong = {row["gold"] for row in found["disagreements"] if row["field"] == "lean"}
    assert wrong == {"left-leaning", "moderate", "unclear"}


def test_what_it_took_and_who_was_asked(found: Found) -> None:
    first, second = found["variants"]
    assert first["failed"] == {"refusal": 1}
    assert second["failed"] == {}
    assert (first["answered"], first["asked_now"]) == (10, 10)
    effort = {name: first["effort"][name] for name in ("posts", "calls", "tokens_in", "cost")}
    assert effort == {"posts": 11, "calls": REQUESTS, "tokens_in": 100 * REQUESTS, "cost": None}
    assert (first["ways"], second["ways"]) == ({"schema": 10}, {"words": 11})
    assert first["models_named"] == ["mock-0001"]
    assert first["prompts"] != second["prompts"]


# ---- again, and other ways -------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_and_asks_nothing_twice(gold: Path, api: AppViewServer, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    args = ("--out", out, "--way", "schema", "--model", "mock")
    with model_server(log, "--obey", "replaces", "--knob", KNOB, "--delay", "0.1") as url:
        process = start("evaluate", gold, "--model-url", url, *args, **options(gold, api))
        until(lambda: log.exists() and len(asked(log)) > REQUESTS // 2, "half of the questions")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        paid = (out / "answers.jsonl").read_bytes().count(b'"key"')
        assert REQUESTS // 2 <= paid < REQUESTS
        assert not (out / "report.html").exists()
        with (out / "answers.jsonl").open("ab") as file:
            file.write(b'{"key": "cut in the midd')
        before = len(asked(log))
        ended = evaluate(gold, url, api, *args[:4], "--json")
        assert ended.code == 0
        assert len(asked(log)) == before + REQUESTS - paid
        assert json.loads(ended.out)["variants"][0]["effort"]["calls"] == REQUESTS
        again = evaluate(gold, url, api, *args[:4], "--json")
        assert len(asked(log)) == before + REQUESTS - paid
    assert json.loads(again.out)["variants"][0]["asked_now"] == 0
    assert json.loads(again.out)["variants"][0]["fields"] == json.loads(ended.out)["variants"][0]["fields"]


def test_a_way_that_was_found_out_is_remembered(gold: Path, api: AppViewServer, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    with model_server(log, "--obey", "replaces", "--only-plain") as url:
        ended = evaluate(gold, url, api, "--out", out, "--json")
        (variant,) = json.loads(ended.out)["variants"]
        assert variant["ways"] == {"plain": 11}
        n = len(asked(log))
        assert evaluate(gold, url, api, "--out", out).code == 0
        assert len(asked(log)) == n


def test_a_server_that_goes_away_ends_the_run_and_what_was_answered_stays(
    gold: Path, api: AppViewServer, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    soon = {"label__pause_seconds": 0.01, "label__pause_max_seconds": 0.01, "label__overload_attempts": 3}
    broken = json.dumps({"name": "close", "text": "5 answer"})
    with model_server(log, "--obey", "replaces", "--knob", broken) as url:
        ended = evaluate(gold, url, api, "--out", out, "--way", "schema", **soon)
    assert ended.code == 1  # not all was asked
    assert "failed: transport 1" in ended.out
    assert (out / "report.html").exists()
    assert "1 question could not be put" in ended.err
    ended = evaluate(gold, url, api, "--out", tmp_path / "new", "--way", "schema", **soon)  # now nobody is there
    assert ended.code == 1
    assert "what was answered is kept" in ended.err
    with model_server(log, "--obey", "replaces") as url:
        n = len(asked(log))
        ended = evaluate(gold, url, api, "--out", out, "--way", "schema", "--json")
        assert len(asked(log)) == n + 1
    assert ended.code == 0
    assert json.loads(ended.out)["variants"][0]["answered"] == 11


def test_several_posts_in_a_request_and_two_tasks_side_by_side(gold: Path, api: AppViewServer, tmp_path: Path) -> None:
    text = load_task("civic")[1]
    other = tmp_path / "other.toml"
    other.write_text(re.sub(r'^version = ".*"$', 'version = "next"', text, count=1, flags=re.MULTILINE))
    with model_server(tmp_path / "log", "--obey", "replaces", "--knob", KNOB) as url:
        ended = evaluate(
            gold, url, api, "--out", tmp_path / "out", "--task", "civic", "--task", other, "--way", "json", "--json",
            label__posts_per_request=4,
        )  # fmt: skip
    assert ended.code == 0, ended.err
    found: Found = json.loads(ended.out)
    assert [one["task"]["version"] == "next" for one in found["variants"]] == [False, True]
    assert [number(of(found, at, "civic")["answered"]["accuracy"]) for at in (0, 1)] == [(5 / 7, 7)] * 2
    (pair,) = [pair["result"] for pair in found["comparisons"] if pair["field"] == "civic"]
    assert (pair["both_right"], pair["both_wrong"], pair["p_value"]) == (5, 3, 1)


def test_a_report_of_another_gold_is_moved_aside_and_its_answers_are_used(
    gold: Path, api: AppViewServer, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    with model_server(log, "--obey", "replaces", "--knob", KNOB) as url:
        evaluate(gold, url, api, "--out", out, "--way", "schema")
        former = (out / "report.html").read_bytes()
        sha = json.loads((out / "figures.json").read_text())["gold"]["sha256"]
        gold.write_text(gold.read_text(encoding="utf-8-sig").replace("4 answer", "44 answer"), encoding="utf-8")
        n = len(asked(log))
        ended = evaluate(gold, url, api, "--out", out, "--way", "schema")
        assert len(asked(log)) == n + 1
    assert (out / f"report-{sha[:8]}.html").read_bytes() == former
    assert f"report.html was made from another GOLD; it is now {out}/report-{sha[:8]}.html" in ended.err


def test_what_stands_around_a_post_is_given_where_the_settings_want_it(tmp_path: Path) -> None:
    quoted = "at://did:plc:other/app.bsky.feed.post/3kq"
    gold, log, out = tmp_path / "gold.csv", tmp_path / "log", tmp_path / "out"
    gold.write_text(f"uri,text,civic\n{HERE},mine {{}},true\n,no address,true\n")
    with appview_server() as api, model_server(log) as url:
        api.write(HERE, "not as judged", quote=quoted)
        api.write(quoted, "what is quoted")
        plain = evaluate(gold, url, api, "--out", out, "--way", "json", "--json")
        quoting = evaluate(gold, url, api, "--out", out, "--way", "json", "--json", context__quote=True)
    assert [json.loads(ended.out)["variants"][0]["with_context"] for ended in (plain, quoting)] == [0, 1]
    assert json.loads(quoting.out)["variants"][0]["asked_now"] == 1
    assert len(asked(log)) == 3


def test_contexts_are_fetched_together_and_a_post_that_the_api_fails_at_costs_no_other(tmp_path: Path) -> None:
    gold, log, out = tmp_path / "gold.csv", tmp_path / "log", tmp_path / "out"
    mine, quoted = ([f"at://did:plc:{who}/app.bsky.feed.post/3kq{n:02}" for n in range(10)] for who in ("me", "other"))
    gold.write_text("uri,text,civic\n" + "".join(f"{uri},mine {n},true\n" for n, uri in enumerate(mine)))
    with appview_server() as api, model_server(log) as url:
        for uri, other in zip(mine, quoted, strict=True):
            api.write(uri, "not as judged", quote=other)
            api.write(other, "what is quoted")
        api.stumbles = dict.fromkeys((mine[3], quoted[5]), Trouble(500))
        ended = evaluate(gold, url, api, "--out", out, "--way", "json", "--json", context__quote=True)
        calls = [call.query["uris"] for call in api.named("getPosts")]
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["variants"][0]["with_context"] == 8
    there = {uri for n, uri in enumerate(quoted) if n != 3}
    assert there in [set(uris) for uris in calls], "the posts around all of them in one call"


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--way", "schema,loud"), "--way: 'loud' is none of schema, json, plain, words, auto"),
        (("--task", "nothing"), "no such task"),
        ((), "gold.csv, line 2, column 'civic': 'perhaps' is none of 'civic', 'not civic'"),
    ],
)
def test_wrong_usage_ends_with_one_line_and_2(tmp_path: Path, args: tuple[str, ...], why: str) -> None:
    file = tmp_path / "gold.csv"
    file.write_text("text,civic\nx," + ("perhaps" if not args else "civic"))
    ended = run(
        "evaluate", file, "--model-url", "http://127.0.0.1:1/v1", "--model", "m", "--out", tmp_path / "o", *args
    )
    assert ended.code == 2
    assert why in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_no_file_no_model_and_a_model_that_is_not_there(gold: Path, api: AppViewServer, tmp_path: Path) -> None:
    assert "No such file or directory; name a CSV" in run("evaluate", tmp_path / "none.csv").err
    assert run("evaluate", gold).code == 2
    with model_server(tmp_path / "log") as url:
        ended = evaluate(gold, url, api, "--out", tmp_path / "out", "--model", "other")
    assert ended.code == 2
    assert "does not know the model" in ended.err


def test_a_file_that_nobody_filled_in_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "gold.csv"
    file.write_text("text,annotator,civic,lean\nx,anna,,\ny,ben,,\n")
    with model_server(tmp_path / "log") as url:
        ended = run("evaluate", file, "--model-url", url, "--model", "mock", "--out", tmp_path / "o")
    assert (ended.code, asked(tmp_path / "log")) == (2, [])
    assert ended.err.endswith("nobody judged anything: the columns civic, lean are blank; fill them in\n")


@pytest.mark.parametrize("name", ["jinja2", "matplotlib", "numpy"])
def test_without_the_extra_it_is_said_what_to_install(name: str) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None; sys.argv = ['civicsky', 'evaluate', 'x.csv']\n"
        "from civicsky.cli.main import run_command; sys.exit(run_command())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.endswith(
        f"({name} is missing): pip install --require-hashes -r requirements/research.txt "
        "in the folder with civicsky's source\n"
    )


# ---- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would make of it, as far as it matters here."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


HOSTILE = [
    "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>",
    '</p></div></body></html>"><svg onload=alert(1)>',
    "{{ 7 * 7 }} {% include '/etc/passwd' %} ${x} $x^2$",
    "turned \u202eabc\u202c, hidden \u200b, bell \x07, half",
    "Z" + "\u0301" * 500,
    "w" * 9_000,
    "<!-- ]]> --> &amp; <style>*{display:none}</style> url(http://evil.example/y)",
]


def test_the_report_loads_nothing_and_shows_hostile_texts_as_texts(api: AppViewServer, tmp_path: Path) -> None:
    file, out = tmp_path / "<b>gold.jsonl", tmp_path / "out"
    with file.open("w") as lines:
        for n, text in enumerate(HOSTILE):
            for civic in (True, False):  # one of them is not what the model says
                row = {"id": f"{n}{civic}", "text": text, "author": f"<u>{n}</u>", "x<s>": 1, "civic": civic}
                for who in ("<i>ann</i>", "bob"):
                    lines.write(json.dumps({**row, "annotator": who}) + "\n")
    with model_server(tmp_path / "log") as url:
        ended = evaluate(file, url, api, "--out", out, "--way", "schema")
    assert ended.code == 0, ended.err
    page = (out / "report.html").read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(page)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "image",
        "i",
        "u",
        "b",
        "s",
    }
    assert [tag for tag, _ in parsed.tags].count("style") == 1 + sum(
        "<style " in part for part in page.split("<svg ")[1:]
    )
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            assert name not in {"src", "srcset", "action"}, name
            if name in {"href", "xlink:href"}:
                assert value is not None
                assert value.startswith("#"), value
    policies = [a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]
    ids = [str(attributes["id"]) for _, attributes in parsed.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    words = "".join(parsed.words)
    assert HOSTILE[0] in words
    assert HOSTILE[2] in words
    assert "turned \u2039U+202E\u203aabc\u2039U+202C\u203a, hidden \u2039U+200B\u203a, bell \u2039U+0007\u203a" in words
    assert "\u202e" not in page
    assert "\u0301" * 5 not in page
    assert "w" * 1_001 not in page
    assert "NaN" not in (out / "figures.json").read_text()
    assert ended.out.replace("\n", "").isprintable()


def test_the_packaged_samples_labels_are_a_gold_file(tmp_path: Path) -> None:
    file = tmp_path / "sample.jsonl"
    assert run("dev", "sample-gold", file).out == f"360 items in {file}\n"
    ended = run("dev", "sample-gold", file)
    assert (ended.code, ended.err) == (2, f"civicsky: {file}: File exists; name a file that is not there yet\n")
    task = load_task("civic")[0]
    gold = read_gold(file.name, file.read_bytes(), {field.name: field.values for field in task.fields})
    assert (len(gold.items), gold.fields, gold.ignored) == (360, ("civic", "lean"), ())
    truths = [item.truth("civic").value for item in gold.items]
    assert (truths.count("civic"), truths.count("not civic")) == (168, 192)
    assert any("\nLink: " in row["text"] for row in sample_rows())
