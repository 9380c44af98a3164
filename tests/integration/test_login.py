"""Logging in where a feed wants it: what is read when, sent where, and kept, and that no secret is shown."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from civicsky import __version__, login
from civicsky.appview import AppView
from civicsky.errors import Refused, Transient, Usage
from civicsky.loading import effective, load
from civicsky.settings import AppView as AppViewSettings
from support.appview_server import AppViewServer, Trouble, appview_server
from support.shown import credentials, english_posts, feed_uri

FEED, OTHER, OPEN = feed_uri("private"), feed_uri("other"), feed_uri("open")
PASSWORD = "abcd-efgh"
ACCOUNT: dict[str, Any] = {"handle": "me.test", "app_password": PASSWORD}
CREATE, REFRESH = "com.atproto.server.createSession", "com.atproto.server.refreshSession"
GET = "app.bsky.feed.getFeed"


@pytest.fixture
def public() -> Iterator[AppViewServer]:
    """The public API, which gives the private feeds to nobody."""
    with appview_server() as told:
        told.feeds |= {feed: english_posts(3) for feed in (FEED, OTHER, OPEN)}
        told.private |= {FEED, OTHER}
        yield told


@pytest.fixture
def home() -> Iterator[AppViewServer]:
    """The account's own server, which passes requests on."""
    with appview_server() as told:
        told.feeds |= {feed: english_posts(3) for feed in (FEED, OTHER, OPEN)}
        told.private |= {FEED, OTHER, OPEN}
        told.logins["me.test"] = PASSWORD
        yield told


@asynccontextmanager
async def api(public: AppViewServer, home: AppViewServer, folder: Path | None, **more: Any) -> AsyncIterator[AppView]:
    known = {"url": public.url, "login_url": home.url, "per_second": 10_000, "contact": "me@uni.test", **more}
    opened = AppView(AppViewSettings(**known), folder)
    try:
        yield opened
    finally:
        await opened.close()


def methods(server: AppViewServer) -> list[str]:
    return [call.method for call in server.calls]


def session_of(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "session.json").read_text())
    return found


# ---- when, where, how --------------------------------------------------------------------------------------------


async def test_a_login_is_made_only_where_a_feed_wants_one(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        assert len((await opened.feed(OPEN)).items) == 3
        assert not home.calls
        assert len((await opened.feed(FEED)).items) == 3
        assert len((await opened.feed(FEED, "2", 1)).items) == 1
        assert len((await opened.feed(OPEN)).items) == 3
    assert methods(public) == [GET, GET, GET], "nobody asks again without a login what wants one"
    assert methods(home) == [CREATE, GET, GET]
    assert json.loads(home.calls[0].body) == {"identifier": "me.test", "password": PASSWORD}


async def test_the_settings_may_ask_for_a_login_always(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, login="always", **ACCOUNT) as opened:
        await opened.feed(OPEN)
    assert methods(public) == []
    assert methods(home) == [CREATE, GET]


async def test_requests_with_a_login_are_passed_on_to_the_appview_and_say_who_we_are(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        await opened.feed(FEED)
    made, asked = home.calls
    assert asked.headers["atproto-proxy"] == "did:web:api.bsky.app#bsky_appview"
    assert asked.headers["authorization"] == f"Bearer {session_of(tmp_path)['accessJwt']}"
    assert not {"atproto-proxy", "authorization"} & set(made.headers), "the session is the server's own business"
    for call in [*public.calls, *home.calls]:
        assert call.headers["user-agent"] == f"civicsky/{__version__} (me@uni.test)"
    assert "authorization" not in public.calls[0].headers


async def test_calls_with_and_without_a_login_keep_one_pace(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, **{**ACCOUNT, "per_second": 20}) as opened:
        await asyncio.gather(opened.feed(OPEN), opened.feed(FEED), opened.feed(OTHER), opened.feed(OPEN))
    at = sorted(call.at for call in [*public.calls, *home.calls])
    assert len(at) == 7
    assert at[-1] - at[0] >= 6 * 0.9 / 20


# ---- credentials -------------------------------------------------------------------------------------------------


async def test_credentials_may_come_from_a_file(public: AppViewServer, home: AppViewServer, tmp_path: Path) -> None:
    async with api(public, home, tmp_path, credentials_file=credentials(tmp_path)) as opened:
        assert len((await opened.feed(FEED)).items) == 3


async def test_what_the_settings_say_themselves_wins_over_the_file(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    file = credentials(tmp_path, 'handle = "other.test"\napp_password = "wrong"\n')
    async with api(public, home, tmp_path, credentials_file=file, app_password=PASSWORD, handle="@me.test") as opened:
        assert len((await opened.feed(FEED)).items) == 3


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o644])
async def test_a_credentials_file_that_others_can_read_or_write_is_refused(
    mode: int, public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, credentials_file=credentials(tmp_path, mode=mode)) as opened:
        with pytest.raises(Usage, match="can be read by others; make it yours alone: chmod 600"):
            await opened.feed(FEED)
    assert methods(home) == []


@pytest.mark.parametrize(
    "text",
    [
        "", "abcd-efgh", 'handle = "me.test"', 'handle = "me.test"\napp_password = 5', 'app_password = "abcd-efgh"',
        'handle = ""\napp_password = "abcd-efgh"', 'handle = "me.test"\napp_password = "abcd-efgh"\nmore = 1',
        'handle = "me.test"\napp_password = "abcd-efgh', "\x00", 'a"abcd-efgh"',
    ],
)  # fmt: skip
async def test_a_file_that_does_not_hold_credentials_is_wrong_usage_and_not_quoted(
    text: str, public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, credentials_file=credentials(tmp_path, text)) as opened:
        with pytest.raises(Usage, match="handle =") as wrong:
            await opened.feed(FEED)
    assert "efgh" not in str(wrong.value)


async def test_a_file_that_is_not_there_is_wrong_usage(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, credentials_file=tmp_path / "none") as opened:
        with pytest.raises(Usage, match=r"No such file.*mend appview\.credentials_file"):
            await opened.feed(FEED)


@pytest.mark.parametrize("half", ["handle", "app_password"])
async def test_half_a_login_is_wrong_usage(
    half: str, public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, **{half: ACCOUNT[half]}) as opened:
        with pytest.raises(Usage, match="needs a handle and an app password"):
            await opened.feed(FEED)


async def test_a_wrong_password_is_tried_once_and_not_again_for_the_next_feed(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, handle="me.test", app_password="wrong-one") as opened:
        for feed in (FEED, OTHER):
            with pytest.raises(
                Refused, match=r"refuses the login of me\.test .HTTP 401, AuthenticationRequired"
            ) as why:
                await opened.feed(feed)
            assert "wrong-one" not in str(why.value)
    assert methods(home) == [CREATE]
    assert not (tmp_path / "session.json").exists()


async def test_a_login_server_that_is_busy_is_tried_again_later(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    home.next += [Trouble(429, {"Retry-After": "9"}), Trouble(503), Trouble(302, {"Location": public.url})]
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        with pytest.raises(Transient) as busy:
            await opened.feed(FEED)
        assert busy.value.retry_after == 9
        for _time in range(2):
            with pytest.raises(Transient):
                await opened.feed(FEED)
        assert len((await opened.feed(FEED)).items) == 3
    assert CREATE not in methods(public), "a password is sent nowhere else"


# ---- the session -------------------------------------------------------------------------------------------------


async def test_a_session_is_kept_for_later_runs_for_its_owners_eyes_only(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    for _run in range(3):
        async with api(public, home, tmp_path, **ACCOUNT) as opened:
            await opened.feed(FEED)
    assert methods(home) == [CREATE, GET, GET, GET]
    assert (tmp_path / "session.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["session.json"], "and nothing half written"


@pytest.mark.parametrize("change", ["handle", "server", "mode", "damaged", "no token", "odd token"])
async def test_a_kept_session_of_another_account_or_that_is_not_fit_is_not_used(
    change: str, public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        await opened.feed(FEED)
    file, kept = tmp_path / "session.json", session_of(tmp_path)
    changes: dict[str, dict[str, Any]] = {
        "handle": {"handle": "other.test"},
        "server": {"server": "https://other.test"},
        "no token": {"accessJwt": 5},
        "odd token": {"accessJwt": "a\r\nX-Evil: b"},
    }
    file.write_text(json.dumps({**kept, **changes.get(change, {})}) if change != "damaged" else "{")
    file.chmod(0o644 if change == "mode" else 0o600)
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        assert len((await opened.feed(FEED)).items) == 3
    assert methods(home) == [CREATE, GET, CREATE, GET]
    assert session_of(tmp_path)["accessJwt"] != kept["accessJwt"]
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_token_that_is_over_by_its_own_word_is_refreshed_first(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    home.access_seconds = 5
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        await opened.feed(FEED)
    home.access_seconds = 7200
    kept = session_of(tmp_path)
    for _run in range(2):
        async with api(public, home, tmp_path, **ACCOUNT) as opened:
            await opened.feed(FEED)
    assert methods(home) == [CREATE, GET, REFRESH, GET, GET]
    assert home.calls[2].headers["authorization"] == f"Bearer {kept['refreshJwt']}"
    assert session_of(tmp_path)["refreshJwt"] != kept["refreshJwt"]


async def test_a_token_that_has_expired_by_the_servers_word_is_refreshed_also_in_mid_feed(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        await opened.feed(FEED)
        home.expired |= home.access
        assert len((await opened.feed(FEED, "1", 1)).items) == 1
        await opened.feed(FEED)
    assert methods(home) == [CREATE, GET, GET, REFRESH, GET, GET]


@pytest.mark.parametrize("how", ["refresh is refused", "access is refused", "refused with 401"])
async def test_a_session_that_is_refused_is_made_anew_once(
    how: str, public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        await opened.feed(FEED)
    if how == "refresh is refused":
        home.expired |= home.access
        home.refresh.clear()
    elif how == "access is refused":
        home.access.clear()
    else:
        home.next.append(Trouble(401, body=b'{"error": "AccountGone"}'))
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        assert len((await opened.feed(FEED)).items) == 3
    between = [REFRESH] if how == "refresh is refused" else []
    assert methods(home) == [CREATE, GET, GET, *between, CREATE, GET]


async def test_a_feed_that_refuses_the_account_itself_costs_one_new_session_and_no_more(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    home.breaks[FEED] = [Trouble(403, body=b'{"error": "Blocked\\u001b"}')] * 9
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        for _time in range(2):
            with pytest.raises(Refused, match=r"account me\.test may not have what was asked for .HTTP 403, Blocked.?"):
                await opened.feed(FEED)
        assert len((await opened.feed(OTHER)).items) == 3
    assert methods(home).count(CREATE) == 1


async def test_without_a_folder_a_session_is_forgotten(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, None, **ACCOUNT) as opened:
        await opened.feed(FEED)
    assert list(tmp_path.iterdir()) == []


async def test_a_feed_that_nobody_knows_is_told_with_a_login_too(
    public: AppViewServer, home: AppViewServer, tmp_path: Path
) -> None:
    async with api(public, home, tmp_path, login="always", **ACCOUNT) as opened:
        with pytest.raises(Usage, match="knows no feed"):
            await opened.feed(feed_uri("none"))
    assert methods(home) == [CREATE, GET]


# ---- what is shown -----------------------------------------------------------------------------------------------


async def test_no_secret_is_in_the_log_an_error_or_a_repr(
    public: AppViewServer, home: AppViewServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    known: dict[str, Any] = {"url": public.url, "login_url": home.url, "per_second": 10_000, **ACCOUNT}
    settings = AppViewSettings(**known)
    async with api(public, home, tmp_path, **ACCOUNT) as opened:
        await opened.feed(FEED)
        home.expired |= home.access
        await opened.feed(FEED)
        home.next += [Trouble(status) for status in (500, 401, 403, 429)]
        for _time in range(3):
            try:
                await opened.feed(FEED)
            except (Refused, Transient) as error:
                said += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
        said += [repr(opened), repr(vars(opened)), repr(vars(opened._account))]
    who = login.credentials(settings)
    said += [repr(settings), str(settings), repr(who), repr(login.kept(tmp_path, settings, who))]
    output = capfd.readouterr()
    said += [output.out, output.err]
    assert "created" in output.out + output.err
    assert "refreshed" in output.out + output.err
    tokens = [value for name, value in session_of(tmp_path).items() if name.endswith("Jwt")]
    assert len(tokens) == 2
    for secret in [PASSWORD, *tokens, *home.access, *home.refresh]:
        assert not any(secret in text for text in said)


def test_settings_show_no_password_and_read_no_file() -> None:
    flags = {"appview.app_password": SecretStr(PASSWORD), "appview.credentials_file": "/does/not/exist"}
    assert PASSWORD not in json.dumps(effective(load(None, flags)))


@pytest.mark.parametrize("url", ["http://bsky.social", "ftp://bsky.social", "https://me:x@bsky.social", "bsky.social"])
def test_a_password_goes_over_https_only(url: str) -> None:
    with pytest.raises(ValidationError):
        AppViewSettings(login_url=url)
    assert AppViewSettings(login_url="http://127.0.0.1:80/").login_url == "http://127.0.0.1:80"
