"""Who gets in: the token once, and the cookie after that."""

import pytest

from civicsky.page import door
from civicsky.page.door import COOKIE, TRIES, Door

TOKEN = "a-token-of-some-length"


def value_of(cookie: str) -> str:
    return cookie.partition(";")[0]


def test_a_cookie_is_known_by_every_service_with_the_token_and_by_no_other() -> None:
    cookie = value_of(Door(TOKEN).cookie())
    assert Door(TOKEN).knows(cookie)
    assert Door(TOKEN).knows(f"other=1; {cookie}; more=2")
    assert not Door(TOKEN + "x").knows(cookie)
    assert not Door("").knows(cookie)
    assert TOKEN not in cookie


def test_a_cookie_that_was_changed_or_is_none_is_not_known() -> None:
    good = value_of(Door(TOKEN).cookie())
    name, _, value = good.partition("=")
    until, _, proof = value.partition(".")
    for bad in (
        "", "x", f"{name}=", f"{name}=.", f"{name}={int(until) + 1}.{proof}", f"{name}={until}.{proof[:-1]}",
        f"{name}={until}", f"{name}=x.{proof}", f"{name}=\u0663.{proof}", good + "0", f"{COOKIE}2={value}", "\0=;\xff",
    ):  # fmt: skip
        assert not Door(TOKEN).knows(bad), bad


@pytest.mark.parametrize(
    "other",
    ['a={"x":"y z"}', 'a="open', "two words=1", "a[0]=1", "a=b c", "a=\xe9", "a@b=1", "lonely", "=x", "a/b=1", ""],
)
def test_a_cookie_is_found_beside_whatever_other_programs_of_the_machine_set(other: str) -> None:
    cookie = value_of(Door(TOKEN).cookie())
    assert Door(TOKEN).knows(f"{other}; {cookie}")
    assert Door(TOKEN).knows(f"{cookie}; {other}")
    assert Door(TOKEN).knows(f"{cookie.partition('=')[0]}=stale.1; {cookie}")
    assert not Door(TOKEN).knows(other)


def test_services_with_different_tokens_on_one_machine_leave_each_others_cookie_alone() -> None:
    one, other = (value_of(Door(token).cookie()).partition("=")[0] for token in (TOKEN, TOKEN + "x"))
    assert one != other
    assert Door(TOKEN).no_cookie().startswith(f"{one}=;")


def test_a_cookie_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = value_of(Door(TOKEN).cookie())
    end = int(cookie.partition("=")[2].partition(".")[0])
    monkeypatch.setattr(door, "time", lambda: end - 1)
    assert Door(TOKEN).knows(cookie)
    monkeypatch.setattr(door, "time", lambda: end)
    assert not Door(TOKEN).knows(cookie)


def test_no_script_and_no_other_site_gets_the_cookie() -> None:
    for cookie in (Door(TOKEN).cookie(), Door(TOKEN).no_cookie()):
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Max-Age=0" in Door(TOKEN).no_cookie()


def test_the_token_is_taken_as_it_is_and_without_one_nothing_is() -> None:
    assert Door(TOKEN).is_token(TOKEN)
    for given in ("", TOKEN[:-1], TOKEN + " ", TOKEN.upper(), "\udcff"):
        assert not Door(TOKEN).is_token(given)
    assert not Door("").is_token("")
    assert Door("").is_open


def test_tries_are_bounded_and_come_back_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(door, "monotonic", lambda: now)
    mine = Door(TOKEN)
    assert [mine.may_try() for _ in range(TRIES + 2)] == [True] * TRIES + [False, False]
    now += door.TRY_SECONDS
    assert [mine.may_try(), mine.may_try()] == [True, False]
    now += 1e6
    assert sum(mine.may_try() for _ in range(100)) == TRIES
