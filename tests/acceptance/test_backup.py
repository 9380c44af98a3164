"""Backups, while the service runs or not, and what is restored from them goes on as if nothing had happened."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from civicsky import backups, datadir, restore as restoring
from civicsky.errors import Usage
from civicsky.model import POSTS
from civicsky.settings import Settings
from conftest import Client, Mongod
from support.command import Ended, cursor, end_when, model_server, query, run, start, until
from support.converge import cursors, differences, documents, get, has_converged, post
from support.inboxed import item, leave
from support.led import FIRST, SECRET, A, all_told, files_that_hold, in_store, led_relay, service, states, three_posts
from support.schedules import RELAY, SMALL
from support.tried import lots

STAMP = "[0-9]" * 8 + "T" + "[0-9]" * 6 + "Z"


class Relay(NamedTuple):
    """A fake relay in a process of its own."""

    url: str
    control: str


@contextmanager
def fake_relay(*options: str) -> Iterator[Relay]:
    command = [sys.executable, RELAY, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, control, *_ = process.stdout.readline().split()
            yield Relay(url, control)
        finally:
            process.kill()


def begin(folder: Path, relay: Relay, model: tuple[str, Path], **settings: Any) -> "subprocess.Popen[str]":
    asks = ("--relay", relay.url, "--model-url", model[0], "--model", "mock")
    return start("run", "--data-dir", folder, *asks, **SMALL | {"appview__url": relay.control, **settings})


def to_the_end(folder: Path, relay: Relay, process: "subprocess.Popen[str]") -> list[str]:
    """Let it run until it has all that the relay has; how it differs from what a perfect collector holds."""
    ended = end_when(process, lambda: has_converged(folder, relay.control, [relay.url]), "the end of the stream")
    assert ended.code == 0, ended.err
    return differences(folder, relay.control, [relay.url], documents(folder))


def a_moment_passes(folder: Path, relay: Relay, numbers: int) -> None:
    """Until so many sequence numbers are committed, or there are no more."""
    before = cursors(folder, [relay.url]).get(0, 0)
    until(
        lambda: (
            cursors(folder, [relay.url]).get(0, 0) >= before + numbers
            or has_converged(folder, relay.control, [relay.url])
        ),
        "a moment",
    )


def back_up(folder: Path, place: Path, *options: str, **settings: Any) -> dict[str, Any]:
    ended = run("backup", place, "--data-dir", folder, "--json", *options, **settings)
    assert ended.code == 0, ended.err
    told: dict[str, Any] = json.loads(ended.out)
    return told


def restore(backup: Path | str, folder: Path) -> dict[str, Any]:
    ended = run("restore", backup, "--data-dir", folder, "--json")
    assert ended.code == 0, ended.err
    told: dict[str, Any] = json.loads(ended.out)
    return told


def line(ended: Ended) -> str:
    (only,) = [one for one in ended.err.splitlines() if not one.startswith("{")]
    return only


# ---- under load ------------------------------------------------------------------------------------------------------


@pytest.mark.drawn
def test_what_is_restored_from_a_backup_made_under_load_at_any_moment_ends_like_the_undisturbed_run(
    tmp_path: Path, model: tuple[str, Path]
) -> None:
    lot = lots()
    folder, places = tmp_path / "data", [tmp_path / str(n) for n in range(2)]
    with fake_relay("--seed", str(lot.randrange(10**6)), "--rate", "150", "--events", "1400") as relay:
        process = begin(folder, relay, model)
        told = []
        for place in places:
            a_moment_passes(folder, relay, lot.randrange(100, 1200))
            told.append(back_up(folder, place))
        assert process.poll() is None
        assert to_the_end(folder, relay, process) == []
        whole = documents(folder)
        gone = {uri for uri, doc in whole.items() if doc["state"] == "deleted"}
        had_gone = set()
        for number, one in enumerate(told):
            assert one["followed"] <= one["last_change"]
            live = query(Path(one["path"]) / "posts.db", "SELECT _id FROM posts WHERE state <> 'deleted'")
            assert len(live) < len(whole)
            had_gone |= {uri for (uri,) in live} & gone
            back = tmp_path / f"back-{number}"
            assert restore(one["path"], back)["data_dir"] == str(back)
            assert cursors(back, [relay.url])[0] == one["cursors"][0]["cursor"]
            assert to_the_end(back, relay, begin(back, relay, model)) == [], f"restored {one}"
            found = documents(back)
            alive = {uri for uri, doc in found.items() if doc["state"] != "deleted"}
            assert alive == whole.keys() - gone
            assert {uri: found[uri]["text"] for uri in alive} == {uri: whole[uri]["text"] for uri in alive}
        assert had_gone, "texts were in a backup that their authors deleted later"


def test_what_was_deleted_in_a_gap_after_the_backup_is_found_by_looking_posts_up(
    tmp_path: Path, model: tuple[str, Path]
) -> None:
    """A backup older than the relay's window: what was deleted since never comes through the stream again."""
    folder, back = tmp_path / "data", tmp_path / "back"
    with fake_relay("--seed", "7", "--events", "300", "--accounts", "60") as relay:
        assert to_the_end(folder, relay, begin(folder, relay, model)) == []
        told = back_up(folder, tmp_path / "backups")
        before = {uri for uri, doc in documents(folder).items() if doc["state"] == "live"}
        post(relay.control + "/make", {"events": 250})
        post(relay.control + "/knob", {"name": "outdated_cursor", "skip": 240, "jump_seconds": 86_400 * 4})
        restore(told["path"], back)
        process = begin(back, relay, model)
        gaps = "SELECT count(*) FROM gap"
        until(lambda: query(back / "journal.db", gaps) not in ([], [(0,)]), "the gap to be found")
        ended = end_when(process, lambda: has_converged(back, relay.control, [relay.url]), "the end of the stream")
        assert ended.code == 0, ended.err
        found = documents(back)
        still_there = _there(relay, sorted(before))
    assert still_there < before, "some were deleted meanwhile"
    assert {uri for uri in before if found[uri]["state"] == "live"} == still_there


def _there(relay: Relay, uris: list[str]) -> set[str]:
    """Those that the public API shows."""
    shown: set[str] = set()
    for at in range(0, len(uris), 25):
        told = get(relay.control + "/xrpc/app.bsky.feed.getPosts", uris=uris[at : at + 25])
        shown |= {one["uri"] for one in told["posts"]}
    return shown


# ---- what is in one --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with three labelled posts, two of them with the secret. Copy it before use."""
    folder = tmp_path_factory.mktemp("held") / "data"
    log = folder.with_name("model.log")
    with led_relay() as relay, model_server(log) as url:
        three_posts(relay)
        process = service(folder, relay, (url, log))
        ended = end_when(process, lambda: cursor(folder) == 3 and all_told(folder), "all to be labelled and stored")
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def folder(held: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(held, tmp_path / "data"))


def test_a_backup_is_for_its_owner_alone_and_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    (folder / "pseudonyms.key").write_text("0" * 64)
    for secret in ("session.json", "cron.log"):
        (folder / secret).write_text("hunter2")
    ended = run("backup", tmp_path / "far" / "away", "--data-dir", folder)
    assert ended.code == 0, ended.err
    (backup,) = (tmp_path / "far" / "away").glob(f"civicsky-{STAMP}")
    assert ended.out.splitlines()[0] == str(backup)
    assert "not encrypted" in ended.out
    names = {"journal.db", "ledger.db", "posts.db", "pseudonyms.key", "backup.json"}
    assert {path.name for path in backup.iterdir()} == names
    modes = {path.stat().st_mode & 0o777 for path in backup.iterdir()}
    assert (modes, backup.stat().st_mode & 0o777) == ({0o600}, 0o700)
    told = json.loads((backup / "backup.json").read_text())
    assert told["formats"] == {
        name: query(folder / name, "PRAGMA user_version")[0][0] for name in ("journal.db", "ledger.db", "posts.db")
    }
    assert (told["posts"], told["labels"], told["stored"], told["followed"]) == (3, 3, 3, told["last_change"])
    assert set(told["files"]) == names - {"backup.json"}
    assert restore(backup, tmp_path / "back")["posts"] == 3
    assert query(tmp_path / "back" / "ledger.db", "PRAGMA journal_mode") == [("wal",)]
    for name, one in told["files"].items():
        digest = subprocess.run(["sha256sum", backup / name], capture_output=True, text=True, check=True).stdout[:64]
        assert (one["bytes"], one["sha256"]) == ((backup / name).stat().st_size, digest)
    assert "session.json" in told["left_out"]


def test_files_of_fetches_that_wait_to_be_imported_are_in_it(folder: Path, tmp_path: Path) -> None:
    waiting = leave(folder, [item(1, "3abcabcabcabc", "A post of a feed, in plain English")])
    told = back_up(folder, tmp_path / "backups")
    assert f"inbox/{waiting.name}" in told["files"]
    back = tmp_path / "back"
    restore(told["path"], back)
    assert (back / "inbox" / waiting.name).read_bytes() == waiting.read_bytes()


def test_of_a_store_in_mongodb_it_says_how_that_is_backed_up_and_tells_no_password(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "posts.db").unlink()
    secret = "mongodb://user:hunter2@127.0.0.1:1/"  # never contacted
    ended = run("backup", tmp_path / "backups", "--data-dir", folder, store__mongo_uri=secret)
    assert ended.code == 0, ended.err
    assert "mongodump --config=FILE --db=civicsky --gzip --out=" in ended.out
    said = "".join(path.read_text(errors="replace") for path in (tmp_path / "backups").rglob("*.json"))
    assert "hunter2" not in ended.out + ended.err + said


def test_all_but_the_newest_of_this_directory_are_removed_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    former = []
    for day in ("20260101", "20260102", "20260103"):
        path = Path(back_up(folder, place)["path"])
        former.append(path.rename(place / f"civicsky-{day}T000000Z"))
    others = [place / "civicsky-20250101T000000Z", place / "civicsky-20250102T000000Z", place / "notes"]
    told = json.loads((former[0] / "backup.json").read_text())
    for other in others:
        other.mkdir()
    (others[0] / "backup.json").write_text(json.dumps({**told, "of": "another directory's"}))
    newest = back_up(folder, place, "--keep", "2")
    assert newest["removed"] == [str(former[1]), str(former[0])]
    assert set(place.iterdir()) == {Path(newest["path"]), former[2], *others}


def test_the_backup_made_now_is_kept_also_when_a_clock_was_ahead(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    ahead = Path(back_up(folder, place)["path"]).rename(place / "civicsky-20990101T000000Z")
    newest = back_up(folder, place, "--keep", "1")
    assert newest["removed"] == [str(ahead)]
    assert set(place.iterdir()) == {Path(newest["path"])}


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_without_room_it_ends_before_it_begins_with_the_figures(folder: Path, small_disk: Path) -> None:
    ended = run("backup", small_disk, "--data-dir", folder)
    assert ended.code == 1
    assert f"and {small_disk}/" in line(ended)
    assert " MB free; nothing was changed" in line(ended)
    assert list(small_disk.iterdir()) == []


def test_a_restore_without_room_leaves_the_folder_empty(folder: Path, small_disk: Path, tmp_path: Path) -> None:
    told = back_up(folder, tmp_path / "backups")
    ended = run("restore", told["path"], "--data-dir", small_disk)
    assert ended.code == 1
    assert " MB free; nothing was changed" in line(ended)
    assert list(small_disk.iterdir()) == []


def test_a_backup_that_is_killed_leaves_nothing_of_its_name_and_the_next_one_removes_the_rest(
    folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "backups"
    assert run("backup", place, "--data-dir", folder, fault="backup.copied:2").code == -9
    (left,) = place.iterdir()
    assert files_that_hold(left, "council"), "it has texts in it"
    assert not left.name.startswith("civicsky-")
    ended = run("backup", place, "--data-dir", folder)
    assert ended.code == 0, ended.err
    assert f"removed {left}, which was left when a backup was interrupted" in ended.err
    assert [path.name for path in place.iterdir()] == [Path(ended.out.splitlines()[0]).name]


def test_two_backups_of_a_directory_at_once_are_refused(folder: Path, tmp_path: Path) -> None:
    with datadir.locked(folder, ("backup",)):
        ended = run("backup", tmp_path / "backups", "--data-dir", folder)
    assert ended.code == 2
    assert "the role 'backup' is held by" in line(ended)


def test_a_backup_into_the_data_directory_itself_is_refused(folder: Path) -> None:
    ended = run("backup", folder / "backups", "--data-dir", folder)
    assert ended.code == 2
    assert "is in the data directory itself" in line(ended)


def test_a_restore_that_is_killed_halfway_is_not_started_on(folder: Path, tmp_path: Path, relay: str) -> None:
    told, back = back_up(folder, tmp_path / "backups"), tmp_path / "back"
    assert run("restore", told["path"], "--data-dir", back, fault="restore.moved:2").code == -9
    for command in (("collect", "--relay", relay), ("status",)):
        ended = run(*command, "--data-dir", back)
        assert ended.code == 2
        assert "a restore was interrupted there; if none is at work, remove the folder" in line(ended)
    shutil.rmtree(back)
    restore(told["path"], back)
    assert states(back) == states(folder)


@pytest.mark.parametrize("wrong", ["full", "none", "newer", "damaged", "leads out", "hostile"])
def test_what_cannot_be_restored_is_refused_and_nothing_is_changed(folder: Path, tmp_path: Path, wrong: str) -> None:
    backup, back = Path(back_up(folder, tmp_path / "backups")["path"]), tmp_path / "back"
    back.mkdir()
    told = json.loads((backup / "backup.json").read_text())
    if wrong == "full":
        (back / "journal.db").write_text("mine")
    elif wrong == "none":
        backup = tmp_path
    elif wrong == "newer":
        told["formats"]["ledger.db"] = 99
    elif wrong == "damaged":
        with (backup / "ledger.db").open("r+b") as stream:
            stream.seek(5000)
            stream.write(b"!")
    elif wrong == "hostile":
        told["at"] = "\x1b]0;title\x07"
    else:
        told["files"]["../evil"] = told["files"]["ledger.db"]
    if wrong in {"newer", "leads out", "hostile"}:
        (backup / "backup.json").write_text(json.dumps(told))
    before = list(back.iterdir())
    ended = run("restore", backup, "--data-dir", back)
    code, says = {
        "full": (2, "is not empty; name a new folder"),
        "none": (2, "is no backup: it has no backup.json"),
        "newer": (2, "was written by a newer civicsky (format 99)"),
        "damaged": (1, "ledger.db is damaged (its SHA-256 is another)"),
        "leads out": (2, "it is none of ours, or damaged"),
        "hostile": (2, "it is none of ours, or damaged"),
    }[wrong]
    assert ended.code == code
    assert says in line(ended)
    assert list(back.iterdir()) == before
    assert not (tmp_path / "evil").exists()


def test_a_restore_leaves_what_a_service_that_was_faster_has_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, back = Path(back_up(folder, tmp_path / "backups")["path"]), tmp_path / "back"
    monkeypatch.setattr(os, "umask", lambda mask: mask)  # of this process
    erased_since = backups.erased_since
    for faster in ("runs", "ran", "restores"):
        with ExitStack() as service:

            def between(path: Path, faster: str = faster, service: ExitStack = service) -> list[str]:
                """After the folder was found empty."""
                if faster == "restores":
                    (back / datadir.RESTORING).mkdir()
                    (back / datadir.RESTORING / "journal.db").write_text("mine")
                    return erased_since(path)
                (back / "journal.db").write_text("mine")
                if faster == "runs":
                    service.enter_context(datadir.locked(back, ("collect", "label")))
                return erased_since(path)

            monkeypatch.setattr(backups, "erased_since", between)
            with pytest.raises(Usage):
                restoring.restore(Settings(data_dir=back), backup)
        made = back / datadir.RESTORING / "journal.db" if faster == "restores" else back / "journal.db"
        assert made.read_text() == "mine", faster
        shutil.rmtree(back)


# ---- what is erased --------------------------------------------------------------------------------------------------


def test_what_is_erased_after_a_backup_is_erased_again_by_its_restore(
    folder: Path, tmp_path: Path, model: tuple[str, Path]
) -> None:
    backup, back = Path(back_up(folder, tmp_path / "backups")["path"]), tmp_path / "back"
    lost = Path(back_up(folder, tmp_path / "elsewhere")["path"])
    shutil.rmtree(lost.parent)
    ended = run("erase", A, "--data-dir", folder)
    assert ended.code == 0, ended.err
    assert f"backup {backup}: it keeps the texts until you remove it" in ended.out
    assert f"backup {lost}: No such file or directory; if you restore it, erase these again" in ended.out
    assert restore(backup, back)["erased_again"] == 1
    assert "journal.db" not in files_that_hold(back, SECRET)
    with led_relay() as relay:
        relay.seq = 3
        three_posts(relay)  # the relay replays them
        process = service(back, relay, model)
        newest = "SELECT max(cursor) FROM host"
        ended = end_when(
            process,
            lambda: query(back / "journal.db", newest) == [(6,)] and all_told(back),
            "all to be followed",
        )
    assert ended.code == 0, ended.err
    assert files_that_hold(back, SECRET) == []
    assert in_store(back)[FIRST]["state"] == "deleted"
    assert query(back / "journal.db", "SELECT name FROM erased") == [(A,)]
    assert query(back / "ledger.db", "SELECT 1 FROM label WHERE did = ? AND answer IS NOT NULL", A) == []
    again = run("erase", f"at://{A}/{POSTS}/{FIRST}", "--data-dir", back)
    assert f"backup {backup}: " in again.out, "the restored directory knows where it came from"


def test_what_is_erased_after_a_restore_is_noted_in_all_backups_beside_it_also_in_one_that_is_being_made(
    folder: Path, tmp_path: Path
) -> None:
    place, back = tmp_path / "backups", tmp_path / "back"
    former = Path(back_up(folder, place)["path"]).rename(place / "civicsky-20260101T000000Z")
    backup = Path(back_up(folder, place)["path"])
    restore(backup, back)
    (backup / "erased.txt").write_text("did:plc:half")  # a disk was full
    making = place / "civicsky-20260102T000000Z"
    backups.half_name(making).mkdir()
    backups.note(back, making)
    ended = run("erase", A, "--data-dir", back)
    assert ended.code == 0, ended.err
    for one in (former, making, backup):
        assert f"backup {one}: it keeps the texts until you remove it" in ended.out
    backups.half_name(making).rename(making)
    assert [backups.erased_since(one) for one in (former, making, backup)] == [[A], [A], ["did:plc:half", A]]


def test_an_earlier_format_is_backed_up_and_restored_as_it_is(tmp_path: Path) -> None:
    folder, back = tmp_path / "data", tmp_path / "back"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "journal.db")) as db:
        from civicsky.tables import SCHEMA  # noqa: PLC0415

        db.executescript(SCHEMA.steps[0])
        db.execute(f"PRAGMA application_id={SCHEMA.application_id}")
        db.execute("PRAGMA user_version=1")
        db.commit()
    told = back_up(folder, tmp_path / "backups")
    assert told["formats"] == {"journal.db": 1}
    restore(told["path"], back)
    assert query(back / "journal.db", "PRAGMA user_version") == [(1,)]


# ---- MongoDB ---------------------------------------------------------------------------------------------------------


@pytest.mark.mongo
def test_a_mongodb_that_is_newer_than_the_backup_stays_as_it_is_and_holds_nothing_twice(
    tmp_path: Path, mongod: Mongod, mongo_database: str, model: tuple[str, Path]
) -> None:
    folder, back = tmp_path / "data", tmp_path / "back"
    store = {"store__mongo_uri": mongod.uri, "store__mongo_database": mongo_database}
    with led_relay() as relay, Client(mongod.uri, tz_aware=True) as db:
        three_posts(relay)
        process = service(folder, relay, model, **store)
        until(lambda: cursor(folder) == 3 and all_told(folder), "the first posts to be stored")
        told = back_up(folder, tmp_path / "backups", **store)
        assert f"--db={mongo_database} " in told["mongodump"]
        relay.delete(FIRST, did=A)
        relay.post("3bbbbbbbbbbbb", "A post that came after the backup", did=A)
        ended = end_when(process, lambda: cursor(folder) == 5 and all_told(folder), "the rest to be stored")
        assert ended.code == 0, ended.err
        names = ("posts", "labels")
        before = {name: {one["_id"]: one for one in db[mongo_database][name].find()} for name in names}
        restore(told["path"], back)
        relay.seq = 3
        relay.delete(FIRST, did=A)  # what the relay replays
        relay.post("3bbbbbbbbbbbb", "A post that came after the backup", did=A)
        process = service(back, relay, model, **store)
        ended = end_when(process, lambda: cursor(back) == 5 and all_told(back), "all to be stored again")
        assert ended.code == 0, ended.err
        after = {name: {one["_id"]: one for one in db[mongo_database][name].find()} for name in names}
    for name in names:
        assert before[name].keys() == after[name].keys()
        assert {key: one["state"] for key, one in before[name].items()} == {
            key: one["state"] for key, one in after[name].items()
        }
    gone = f"at://{A}/{POSTS}/{FIRST}"
    assert after["posts"][gone].keys() == before["posts"][gone].keys()
    assert "text" not in after["posts"][gone]
    assert all(after["posts"][key]["v"] >= one["v"] for key, one in before["posts"].items()), "nothing moved back"
