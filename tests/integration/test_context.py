"""What stands around a post: fetched from a real HTTP server, kept in a real ledger, gone when its author says so."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from civicsky.appview import AppView
from civicsky.context import Contexts, texts_of
from civicsky.ledger import Ledger
from civicsky.model import post_uri
from civicsky.settings import AppView as AppViewSettings, Context
from civicsky.store import SqliteStore
from civicsky.task import load_task
from support.appview_server import AppViewServer, appview_server

TASK = load_task("civic")[0]
DID, RKEY = "did:plc:quoted", "3kq"
QUOTED = post_uri(DID, RKEY)
WANTED = Context(quote=True, root=True)
SECRET = "what the quagmire said"


@pytest.fixture
def server() -> Iterator[AppViewServer]:
    with appview_server() as told:
        told.write(QUOTED, SECRET)
        yield told


@pytest.fixture
async def api(server: AppViewServer) -> AsyncIterator[AppView]:
    opened = AppView(AppViewSettings(url=server.url, per_second=1000))
    yield opened
    await opened.close()


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(tmp_path / "ledger.db")
    yield opened
    await opened.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "posts.db")
    yield opened
    await opened.close()


async def test_a_quoted_post_is_fetched_once_for_all_who_quote_it(
    server: AppViewServer, api: AppView, ledger: Ledger
) -> None:
    for _ in range(2):  # the second time as after a restart
        contexts = Contexts(WANTED, 4000, api, ledger)
        given = await contexts.of(TASK, {"quote_uri": QUOTED, "reply_root": None})
        assert given == TASK.context_format.splitlines()[0].replace("{quote}", SECRET)
        await contexts.close()
    assert len(server.calls) == 1
    nothing = Contexts(Context(), 4000, api, ledger)
    assert await nothing.of(TASK, {"quote_uri": QUOTED}) == "", "no setting asks for it"


@pytest.mark.parametrize("deleted", [(DID, RKEY), (DID,)], ids=["post", "account"])
async def test_what_was_deleted_is_not_given_though_the_cache_and_the_api_still_have_it(
    api: AppView, ledger: Ledger, deleted: tuple[str, ...]
) -> None:
    contexts = Contexts(WANTED, 4000, api, ledger)
    assert SECRET in await contexts.of(TASK, {"quote_uri": QUOTED})
    contexts.forget(*deleted)
    assert await contexts.of(TASK, {"quote_uri": QUOTED}) == ""
    await contexts.close()


async def test_what_is_deleted_while_it_is_fetched_does_not_stay_in_the_cache(api: AppView, ledger: Ledger) -> None:
    class DeletedMeanwhile:
        """The ledger, to which the deletion comes just before the answer."""

        async def contexts(self, uris: Sequence[str]) -> dict[str, str | None]:
            return await ledger.contexts(uris)

        async def keep_contexts(self, posts: Mapping[str, str | None]) -> None:
            contexts.forget(DID, RKEY)
            await ledger.keep_contexts(posts)

    contexts = Contexts(WANTED, 4000, api, DeletedMeanwhile())
    assert await contexts.of(TASK, {"quote_uri": QUOTED}) == ""
    assert await ledger.contexts([QUOTED]) == {QUOTED: None}
    await contexts.close()


async def test_a_text_that_the_store_knows_as_deleted_is_not_fetched_again(
    server: AppViewServer, api: AppView, store: SqliteStore
) -> None:
    """The API may show a deleted post for a while; what is hidden may be shown again by now."""
    here, gone, hidden, unknown = (post_uri(DID, rkey) for rkey in ("here", "gone", "hidden", "unknown"))
    for uri in (here, gone, hidden, unknown):
        server.write(uri, "as the API has it")
    read = {"v": 1, "text": "as the store has it", "link": None, "alts": []}
    await store.put("posts", [{"_id": here, "state": "live", **read}, {"_id": hidden, "state": "hidden", **read}])
    await store.put("posts", [{"_id": gone, "state": "deleted", "v": 1}])
    found = await texts_of([here, gone, hidden, unknown], store, api)
    assert found == {
        here: "as the store has it",
        gone: None,
        hidden: "as the API has it",
        unknown: "as the API has it",
    }
    assert [uri for call in server.calls for uri in call.query["uris"]] == [hidden, unknown]
