"""What a lookup's answers mean, whatever happens between two of them."""

from collections.abc import Sequence

import pytest

from civicsky.errors import BadInput
from civicsky.recheck import DOUBTFUL, Checked, Found, look_up


class World:
    """An AppView whose posts and accounts change between two questions."""

    def __init__(self, *states: tuple[set[str], dict[str, str]]) -> None:
        self.states = list(states)
        """(URIs that are there, status by DID), one after each question about posts."""
        self.asked = 0

    @property
    def now(self) -> tuple[set[str], dict[str, str]]:
        return self.states[min(self.asked, len(self.states) - 1)]

    async def posts(self, uris: Sequence[str]) -> dict[str, str]:
        there, _ = self.now
        self.asked += 1
        return {uri: "cid" for uri in uris if uri in there}

    async def accounts(self, dids: Sequence[str]) -> set[str]:
        return {did for did in dids if self.now[1].get(did) == "active"}

    async def status(self, did: str) -> str:
        return self.now[1].get(did, "deleted")


def post(n: int, did: str = "did:plc:a", state: str = "live") -> Checked:
    return Checked(n, f"r{n}", did, "rev", "cid", state)


ONE, ACTIVE = post(1), {"did:plc:a": "active"}


async def test_a_post_that_is_there_stays() -> None:
    assert await look_up(World(({ONE.uri}, ACTIVE)), [ONE], []) == Found([], {}, 0, 1)


async def test_a_post_that_is_gone_while_its_author_is_there_is_deleted() -> None:
    assert (await look_up(World((set(), ACTIVE)), [ONE], [])).gone == [ONE]


@pytest.mark.parametrize("status", ["deleted", "takendown", "deactivated"])
async def test_a_post_whose_author_is_gone_or_hidden_is_not_called_deleted(status: str) -> None:
    found = await look_up(World((set(), {"did:plc:a": status})), [ONE], [])
    assert (found.gone, found.accounts) == ([], {"did:plc:a": status})


async def test_an_account_that_comes_back_between_two_questions_loses_no_post() -> None:
    away, back = (set[str](), {"did:plc:a": "deactivated"}), ({ONE.uri}, ACTIVE)
    assert (await look_up(World(away, back), [ONE], [])).gone == []


async def test_an_account_that_goes_between_two_questions_loses_no_post() -> None:
    there, away = (set[str](), ACTIVE), (set[str](), {"did:plc:a": "deactivated"})
    assert (await look_up(World(there, there, away), [ONE], [])).gone == []


async def test_a_hidden_account_that_can_be_seen_again_is_shown() -> None:
    hidden = post(1, state="hidden")
    assert (await look_up(World(({hidden.uri}, ACTIVE)), [hidden], [])).accounts == {"did:plc:a": "active"}


async def test_an_api_that_knows_no_post_of_anybody_is_not_believed() -> None:
    page = [post(n, f"did:plc:{n}") for n in range(DOUBTFUL)]
    everybody = {one.did: "active" for one in page}
    with pytest.raises(BadInput, match="all_gone"):
        await look_up(World((set(), everybody)), page, ["at://did:plc:z/app.bsky.feed.post/z"])


async def test_a_whole_page_is_gone_when_the_api_knows_other_posts() -> None:
    page = [post(n, f"did:plc:{n}") for n in range(DOUBTFUL)]
    other = "at://did:plc:z/app.bsky.feed.post/z"
    found = await look_up(World(({other}, {one.did: "active" for one in page})), page, [other])
    assert found.gone == page


async def test_another_text_is_counted_and_left_as_it_is() -> None:
    found = await look_up(World(({ONE.uri}, ACTIVE)), [ONE._replace(cid="former")], [])
    assert (found.gone, found.changed, found.present) == ([], 1, 1)
