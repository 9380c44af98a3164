"""Whether a collector has come to the end of what a fake relay gives it, and how what it holds differs from the oracle.

Everything is read from the files, as another process wrote them.
"""

import json
import sqlite3
import ssl
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from civicsky.model import POSTS, Asked
from civicsky.prompt import messages
from civicsky.record import readable
from civicsky.task import load_task
from support.command import query
from support.model_server import answer_for

TASK = load_task("civic")[0]
CLIENT = httpx.Client(timeout=60, trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
"""For loopback: loading the certificates of the world costs more than a question."""


def get(address: str, **asked: Any) -> Any:
    """A JSON answer of the relay's control server."""
    return CLIENT.get(address, params=asked).raise_for_status().json()


def post(address: str, told: Any) -> None:
    """Tell the relay's control server something."""
    CLIENT.post(address, json=told).raise_for_status()


def ended(folder: Path, control: str, hosts: Sequence[str]) -> None:
    """Tell the oracle of the hosts of which a life that has ended left nothing committed."""
    for number in set(range(len(hosts))) - cursors(folder, hosts).keys():
        post(control + "/forget", {"host": number})


def cursors(folder: Path, hosts: Sequence[str]) -> dict[int, int]:
    """The committed cursor of each host that has one."""
    found = dict(query(folder / "journal.db", "SELECT name, cursor FROM host"))
    return {number: found[host] for number, host in enumerate(hosts) if found.get(host)}


def has_converged(folder: Path, control: str, hosts: Sequence[str]) -> bool:
    """Whether all that the relay has is collected, from any host, looked up, labelled and stored.

    Each step is looked at only after the one before it was over: what is over stays so, since nothing new can come to
    it. In any other order a batch that commits between two looks would not be waited for.
    """
    return _has_all(folder, control, hosts) and _is_told(folder)


def covers(state: dict[str, Any], held: dict[int, int]) -> bool:
    """Whether one of these cursors, by host, stands for all that the relay has made.

    One of a former numbering, which may lie above the present one, does not.
    """
    return any(state["last_seq"][host] <= cursor <= state["head_seq"][host] for host, cursor in held.items())


def _has_all(folder: Path, control: str, hosts: Sequence[str]) -> bool:
    held = cursors(folder, hosts)
    if not held or query(folder / "journal.db", "SELECT 1 FROM recheck LIMIT 1"):
        return False
    state = get(control + "/state")
    return state["quiet"] and covers(state, held)


def _is_told(folder: Path) -> bool:
    try:
        followed = query(folder / "ledger.db", "SELECT n FROM position WHERE name = 'journal'")
        last = query(folder / "journal.db", "SELECT seq FROM sqlite_sequence WHERE name = 'change'")
        waiting = "SELECT 1 FROM job JOIN doc USING (did, rkey) WHERE job.state = 'pending' AND doc.state = 'live'"
        return (
            (followed == last or not last)
            and not query(folder / "ledger.db", waiting + " LIMIT 1")
            and not query(folder / "ledger.db", "SELECT 1 FROM doc WHERE v > stored_v LIMIT 1")
        )
    except sqlite3.OperationalError:  # it is being made, or killed just now
        return False


def documents(folder: Path) -> dict[str, Any]:
    """The SQLite store's posts."""
    return {uri: json.loads(doc) for uri, doc in query(folder / "posts.db", "SELECT _id, doc FROM posts")}


def differences(folder: Path, control: str, hosts: Sequence[str], stored: dict[str, Any]) -> list[str]:
    """How journal, ledger and store differ from what a perfect collector holds; empty when they do not."""
    at = [f"{host}:{cursor}" for host, cursor in cursors(folder, hosts).items()]
    wanted = get(control + "/oracle", rechecked=[1], cursor=at)["posts"]
    alive = {uri: post for uri, post in wanted.items() if post["state"] != "deleted"}
    return [
        *_of_journal(folder, alive),
        *_of_store(alive, stored),
        *_of_ledger(folder, alive),
        *_of_balance(folder),
        *_of_files(folder),
    ]


def _of_journal(folder: Path, alive: dict[str, Any]) -> list[str]:
    with closing(sqlite3.connect(f"file:{folder / 'journal.db'}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT did, rkey, state, cid, fields, record FROM post").fetchall()
    held, wrong = {}, []
    for did, rkey, state, cid, fields, record in rows:
        uri = f"at://{did}/{POSTS}/{rkey}"
        if state == "deleted":
            wrong += [f"journal: {uri} is deleted and has a text"] if fields or record else []
        else:
            held[uri] = {"state": state, "cid": cid, "text": json.loads(fields)["text"]}
    return wrong + _compare("journal", alive, held)


def _of_store(alive: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    held, wrong = {}, []
    for uri, doc in stored.items():
        if doc["state"] == "deleted":
            wrong += (
                [] if doc.keys() == {"_id", "uri", "v", "state", "event_at"} else [f"store: tombstone of {uri}: {doc}"]
            )
            continue
        held[uri] = {name: doc.get(name) for name in ("state", "cid", "text")}
        if doc["state"] == "live":
            wrong += _of_label(uri, doc)
    return wrong + _compare("store", alive, held)


def _of_label(uri: str, doc: dict[str, Any]) -> list[str]:
    label = doc["labels"].get(TASK.name)
    if label is None or label["cid"] != doc["cid"]:
        return [f"store: {uri} has no label of its text"]
    fields = {name: doc[name] for name in ("text", "link", "alts")}
    said = answer_for(messages(TASK, [Asked(readable(fields))])[-1]["content"])
    told = {name: value["value"] for name, value in label["fields"].items()}
    return [] if all(told[name] == said[name] for name in ("civic",)) else [f"store: {uri} has another post's label"]


def _of_ledger(folder: Path, alive: dict[str, Any]) -> list[str]:
    live = {uri for uri, post in alive.items() if post["state"] == "live"}
    with closing(sqlite3.connect(f"file:{folder / 'ledger.db'}?mode=ro", uri=True)) as db:
        done = db.execute(
            "SELECT did, rkey FROM job JOIN doc USING (did, rkey, cid) WHERE job.state = 'done'"
        ).fetchall()
        twice = db.execute("SELECT did, rkey FROM label GROUP BY did, rkey, cid, task HAVING count(*) > 1").fetchall()
        ((answers,),) = db.execute("SELECT count(*) FROM label").fetchall()
        ((calls,),) = db.execute("SELECT coalesce(sum(calls), 0) FROM spend").fetchall()
    labelled = {f"at://{did}/{POSTS}/{rkey}" for did, rkey in done}
    wrong = [f"ledger: {uri} is not labelled" for uri in sorted(live - labelled)]
    wrong += [f"ledger: {key} is labelled twice" for key in twice]
    return wrong + ([f"ledger: {answers} labels of {calls} calls"] if answers > calls else [])


def _of_balance(folder: Path) -> list[str]:
    counts = Counter[tuple[str, bool]]()
    for unit, outcome, n in query(folder / "journal.db", "SELECT unit, outcome, n FROM count"):
        counts[unit, outcome == "received"] += n
    return [
        f"balance of {unit}s: received {counts[unit, True]}, handled {counts[unit, False]}"
        for unit in ("frame", "post")
        if counts[unit, True] != counts[unit, False]
    ]


def _of_files(folder: Path) -> list[str]:
    return [
        f"{file.name}: {found}"
        for file in sorted(folder.glob("*.db"))
        if (found := query(file, "PRAGMA integrity_check")) != [("ok",)]
    ]


def _compare(where: str, wanted: dict[str, Any], held: dict[str, Any]) -> list[str]:
    gone = {uri for uri in wanted.keys() - held.keys() if not wanted[uri].get("may_be_gone")}
    lost = [f"{where}: {uri} is lost" for uri in sorted(gone)]
    extra = [
        f"{where}: {uri} is there and should not be: {held[uri]['state']}"
        for uri in sorted(held.keys() - wanted.keys())
    ]
    other = [
        f"{where}: {uri} is {held[uri]}, not {wanted[uri]}"
        for uri in sorted(wanted.keys() & held.keys())
        if any(held[uri][name] != wanted[uri][name] for name in ("state", "cid", "text"))
    ]
    return lost + extra + other
