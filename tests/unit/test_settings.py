import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

import civicsky.settings
from civicsky.errors import Usage
from civicsky.loading import CONFIG_VARIABLE, documented, effective, load
from civicsky.model import feed_place
from civicsky.settings import AppView, Group, Http, Label, Notify, Settings, Source, Store, Workers

SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CIVICSKY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def complaint(config: Path | None = None, flags: dict[str, Any] | None = None) -> str:
    with pytest.raises(Usage) as caught:
        load(config, flags)
    assert caught.value.exit_code == 2
    return str(caught.value)


# ---- precedence ------------------------------------------------------------------------------------------------------


def test_without_any_source_the_defaults_hold() -> None:
    assert load() == Settings()
    assert load().source.relays == ("wss://bsky.network",)


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load().label.slots == 4
    file.write_text("[label]\nslots = 5\n")
    assert load(file).label.slots == 5
    monkeypatch.setenv("CIVICSKY_LABEL__SLOTS", "6")
    assert load(file).label.slots == 6
    assert load(file, {"label.slots": 7}).label.slots == 7


def test_one_key_from_a_higher_source_leaves_the_groups_other_keys_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('data_dir = "/from/file"\n[label]\nslots = 5\nattempts = 9\nmodel = "from file"\n')
    monkeypatch.setenv("CIVICSKY_LABEL__SLOTS", "6")
    label = load(file, {"label.model": "from flag"}).label
    assert (label.slots, label.attempts, label.model) == (6, 9, "from flag")
    assert load(file).data_dir == Path("/from/file")


def test_a_value_at_the_top_follows_the_same_order(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('data_dir = "/from/file"\n')
    monkeypatch.setenv("CIVICSKY_DATA_DIR", "/from/environment")
    assert load(file).data_dir == Path("/from/environment")
    assert load(file, {"data_dir": "/from/flag"}).data_dir == Path("/from/flag")
    assert load(file, {"data_dir": Path("/from/flag")}).data_dir == Path("/from/flag")


def test_a_credential_beats_the_file_and_the_environment_beats_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "credentials"
    given.mkdir()
    file.write_text('[label]\napi_key = "of the file"\nslots = 7\n', encoding="utf-8")
    (given / "label.api_key").write_text("of systemd\n", encoding="utf-8")
    (given / "store.mongo_uri").write_text("mongodb://a\n", encoding="utf-8")
    (given / "label.slots").write_text("9", encoding="utf-8")
    assert load(file).label.api_key.get_secret_value() == "of the file", "nobody named the folder"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    settings = load(file)
    assert settings.label.api_key.get_secret_value() == "of systemd"
    assert settings.store.mongo_uri.get_secret_value() == "mongodb://a", "also of a group that the file does not have"
    assert settings.label.slots == 7, "only secrets are looked for there"
    monkeypatch.setenv("CIVICSKY_LABEL__API_KEY", "of the environment")
    assert load(file).label.api_key.get_secret_value() == "of the environment"
    assert load(file, {"label.slots": 3}).label.api_key.get_secret_value() == "of the environment"


def test_a_credential_that_is_no_text_is_named_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "label.api_key").write_bytes(b"\xffkey")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert complaint() == f"credential {tmp_path}/label.api_key: not UTF-8; it must be a readable text"


def test_a_flag_that_was_not_given_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVICSKY_LABEL__SLOTS", "6")
    monkeypatch.setenv("CIVICSKY_SOURCE__RELAYS", '["wss://a.example", "ws://b.example/"]')
    settings = load(None, {"label.slots": None, "source.relays": [], "data_dir": None})
    assert settings.label.slots == 6
    assert settings.source.relays == ("wss://a.example", "ws://b.example")


def test_a_list_from_a_flag_replaces_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVICSKY_SOURCE__RELAYS", '["wss://a.example", "ws://b.example"]')
    assert load(None, {"source.relays": ["wss://c.example"]}).source.relays == ("wss://c.example",)


def test_the_environment_can_name_the_file_and_a_flag_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = file.with_name("other.toml")
    file.write_text("[label]\nslots = 5\n")
    other.write_text("[label]\nslots = 6\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    assert load().label.slots == 5
    assert load(other).label.slots == 6
    monkeypatch.setenv(CONFIG_VARIABLE, "")
    assert load().label.slots == 4


def test_names_in_the_environment_may_have_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("civicsky_label__slots", "6")
    assert load().label.slots == 6


def test_settings_and_their_groups_are_frozen() -> None:
    for target, name in ((load(), "data_dir"), (load().label, "slots")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(target, name, 1)


# ---- complaints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [("[label]\nslotz = 1\n", "label.slotz"), ("[labl]\nslots = 1\n", "labl"), ("slots = 1\n", "slots")],
)
def test_an_unknown_key_of_the_file_is_named_with_the_file(file: Path, text: str, key: str) -> None:
    file.write_text(text)
    assert complaint(file) == f"settings file {file}: no such setting {key!r}; `civicsky config` lists them all"


@pytest.mark.parametrize(
    "name", ["CIVICSKY_LABEL__SLOTZ", "CIVICSKY_LABEL_SLOTS", "CIVICSKY_LABEL", "civicsky_nothing"]
)
def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert complaint() == f"environment variable {name}: no such setting; `civicsky config` lists them all"


def test_variables_that_only_look_like_ours_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVICSKYX", "1")
    monkeypatch.setenv("MY_CIVICSKY_LABEL", "1")
    monkeypatch.setenv("CIVICSKY_FAULT", "")
    monkeypatch.setenv("CIVICSKY_CLOCK", "")
    assert load() == Settings()


BAD = [
    ("label.slots", "0", "greater than or equal to 1"),
    ("label.slots", '"many"', "valid integer"),
    ("label.way", '"guess"', "'auto', 'schema', 'json', 'plain' or 'words'"),
    ("label.margin", "1.5", "less than or equal to 1"),
    ("label.model_url", '"localhost:8000"', "'localhost:8000' is not an http:// or https:// address"),
    ("appview.url", '"public.api.bsky.app"', "'public.api.bsky.app' is not an http:// or https:// address"),
    ("appview.url", '""', "'' is not an http:// or https:// address"),
    ("appview.url", '"https://api.example:70000"', "Port out of range"),
    ("appview.url", '"https://api.example/?a=1"', "no ? and no #"),
    ("appview.url", '"https://api.example/#a"', "no ? and no #"),
    ("appview.contact", '"ä@example.org"', "plain ASCII characters"),
    ("appview.per_second", "0", "greater than 0"),
    ("appview.login", '"never"', "'needed' or 'always'"),
    ("appview.login_url", '"http://bsky.social"', "https:// only"),
    ("appview.login_url", '"http://127.0.0.1.bsky.social"', "https:// only"),
    ("feeds.attempts", "0", "greater than or equal to 1"),
    ("source.relays", "[]", "at least one relay is needed"),
    ("source.relays", '["https://bsky.network"]', "'https://bsky.network' is not a ws:// or wss:// address"),
    ("source.relays", '["wss://"]', "'wss://' is not a ws:// or wss:// address"),
    ("source.liveness_seconds", "0", "greater than 0"),
    ("worker.processes", "-1", "greater than or equal to 0"),
    ("store.kind", '"postgres"', "'auto', 'sqlite' or 'mongo'"),
    ("limits.max_posts", "0", "greater than or equal to 1"),
    ("label.tasks", "[]", "at least one task is needed"),
    ("label.posts_per_request", "51", "less than or equal to 50"),
    ("label.currency", '"EURO"', "three capital letters are needed, such as USD"),
    ("label.currency", '"usd"', "three capital letters are needed, such as USD"),
    ("label.more_urls", '["localhost:8000"]', "'localhost:8000' is not an http:// or https:// address"),
    ("label.budget_money", "1e999", "finite number"),
    ("sample.unit", '"day"', "'post', 'author' or 'thread'"),
]


@pytest.mark.parametrize(("key", "value", "why"), BAD)
def test_a_bad_value_of_the_file_is_named_with_key_and_file(file: Path, key: str, value: str, why: str) -> None:
    group, _, field = key.partition(".")
    file.write_text(f"[{group}]\n{field} = {value}\n")
    told = complaint(file)
    assert told.startswith(f"settings file {file}: {key}: ")
    assert why in told


@pytest.mark.parametrize(("key", "value", "why"), BAD)
def test_a_bad_value_of_the_environment_is_named_with_key_and_variable(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str, why: str
) -> None:
    variable = "CIVICSKY_" + key.upper().replace(".", "__")
    monkeypatch.setenv(variable, value.strip('"'))
    told = complaint()
    assert told.startswith(f"environment variable {variable}: {key}: ")
    assert why in told


def test_a_bad_value_of_the_environment_is_not_blamed_on_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[label]\nslots = 5\n")
    monkeypatch.setenv("CIVICSKY_LABEL__SLOTS", "0")
    assert complaint(file).startswith("environment variable CIVICSKY_LABEL__SLOTS: label.slots: ")


@pytest.mark.parametrize(("key", "value", "why"), [row for row in BAD if row[1] != "[]"])
def test_a_bad_value_of_a_flag_is_named_and_blamed_on_no_file(file: Path, key: str, value: str, why: str) -> None:
    file.write_text("[label]\nslots = 5\n")
    told = complaint(file, {key: json.loads(value)})
    assert told.startswith(f"flag or setting: {key}")
    assert why in told


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("source.relays", "wss://relay.example", 'a list must be: CIVICSKY_SOURCE__RELAYS=\'["first", "second"]\''),
        ("label.tasks", "civic", 'a list must be: CIVICSKY_LABEL__TASKS=\'["first", "second"]\''),
        ("label.prices", "0.05", ""),
        (
            "label.prices",
            "m=1",
            'a table must be: CIVICSKY_LABEL__PRICES=\'{"MODEL": {"input": 0.05, "output": 0.08}}\'',
        ),
    ],
)
def test_a_list_or_a_table_of_the_environment_must_be_json(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    variable = "CIVICSKY_" + name.upper().replace(".", "__")
    monkeypatch.setenv(variable, value)
    assert complaint().startswith(f"environment variable {variable}: {name}: ")
    if why:  # else it is JSON, but no table
        assert complaint() == f"environment variable {variable}: {name}: not JSON, as {why}"


def test_a_price_table_of_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVICSKY_LABEL__PRICES", '{"m": {"input": 0.05, "output": 0.08}}')
    assert load().label.prices["m"].output == 0.08
    monkeypatch.setenv("CIVICSKY_LABEL__PRICES", '{"m": {"input": -1, "output": 0.08}}')
    assert complaint().startswith("environment variable CIVICSKY_LABEL__PRICES: label.prices.m.input: ")


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("civicsky_label__slots", "x", "label.slots"),
        ("Civicsky_Source__Relays", "x", "source.relays"),
        ("civicsky_source__relays", '["x"]', "source.relays"),
    ],
)
def test_a_bad_variable_is_named_as_the_user_wrote_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, key: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert complaint().startswith(f"environment variable {variable}: {key}: ")


def test_a_bad_item_of_a_list_of_the_file_is_blamed_on_the_file(file: Path) -> None:
    file.write_text("[source]\nrelays = [3]\n")
    assert complaint(file).startswith(f"settings file {file}: source.relays.0: ")


def test_a_bad_flag_is_not_blamed_on_a_good_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVICSKY_LABEL__SLOTS", "6")
    assert complaint(None, {"label.slots": 0}).startswith("flag or setting: label.slots: ")


@pytest.mark.parametrize("text", ["label = 3\n", "label = []\n", "[[label]]\nslots = 5\n"])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_group_that_is_no_table_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str, *, hidden: bool
) -> None:
    file.write_text(text)
    if hidden:
        monkeypatch.setenv("CIVICSKY_LABEL__SLOTS", "6")
    assert complaint(file) == f"settings file {file}: label: must be a table: write [label] and its settings below"


def test_a_file_that_is_not_there_or_no_toml_is_named(file: Path) -> None:
    assert complaint(file) == f"settings file {file}: No such file or directory; name a readable file with --config"
    assert complaint(file.parent) == f"settings file {file.parent}: Is a directory; name a readable file with --config"
    file.write_text("[label")
    assert complaint(file).startswith(f"settings file {file} is not valid TOML: ")
    file.write_bytes(b"\xff\xfe")
    assert complaint(file).startswith(f"settings file {file} is not valid TOML: ")


@pytest.mark.parametrize("who", ["me:pw@", "pw@", ":pw@"])
def test_an_address_must_not_carry_a_password(who: str) -> None:
    for key, url in (
        ("source.relays", [f"wss://{who}relay.example"]),
        ("label.model_url", f"https://{who}model.example"),
        ("appview.url", f"https://{who}api.example"),
        ("appview.url", f"ftp://{who}api.example"),
    ):
        told = complaint(None, {key: url})
        assert "pw" not in told
        assert "credentials" in told or "CIVICSKY_LABEL__API_KEY" in told


@pytest.mark.parametrize(
    "url",
    [
        "{}://me:hunter2@host.example",
        "{}://me:hunter2@host.example:port",
        "{}://me:hunt@er/hunter2?@host.example",
        "{}://me:hunter2@host\u2100.example",
        "{}://me:hunter2@[::1",
        "{}://host.example/?key=hunter2",
        "{}://host.example/#hunter2",
        "me:hunter2@host.example",
    ],
)
@pytest.mark.parametrize("scheme", ["ftp", "", "ws", "https"])
def test_no_complaint_about_an_address_tells_its_password(file: Path, url: str, scheme: str) -> None:
    address = url.format(scheme)
    one = ("label.model_url", "appview.url", "appview.login_url")
    for key, value in (("source.relays", [address]), *((name, address) for name in one)):
        group, _, field = key.partition(".")
        file.write_text(f"[{group}]\n{field} = {json.dumps(value)}\n")
        for config, flags in ((file, None), (None, {key: value})):
            told = complaint(config, flags)
            assert key in told
            assert "hunter2" not in told


def test_what_is_no_port_of_the_public_api_is_not_shown() -> None:
    for key in ("appview.url", "appview.login_url"):
        told = complaint(None, {key: "https://me:hunter2"})
        assert key in told
        assert "hunter2" not in told


@pytest.mark.parametrize("rest", ["/?x=1", "?x=1", "/?", "/#part", "#"])
def test_a_relays_address_with_a_query_or_a_fragment_is_refused(rest: str) -> None:
    told = complaint(None, {"source.relays": [f"wss://relay.example{rest}"]})
    assert "source.relays: " in told
    assert "'wss://relay.example" in told
    assert "must end before its ? or #" in told


# ---- the window ------------------------------------------------------------------------------------------------------

WINDOW = {"from": "16:00", "to": "20:00", "zone": "America/Chicago"}


def window_toml(**changed: str) -> str:
    """A settings file with a window; an empty value leaves its key out."""
    lines = [f'{name} = "{value}"' for name, value in {**WINDOW, **changed}.items() if value]
    return "\n".join(["[source.window]", *lines])


def test_without_hours_there_is_no_window() -> None:
    assert not load().source.window.is_set


def test_a_window_is_read_from_the_file_the_environment_and_flags(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(window_toml())
    monkeypatch.setenv("CIVICSKY_SOURCE__WINDOW__FROM", "17:30")
    window = load(file, {"source.window.to": "23:59", "source.liveness_seconds": 5}).source.window
    assert (window.is_set, window.begin, window.to, window.zone) == (True, "17:30", "23:59", "America/Chicago")
    assert effective(load(file))["source"]["window"] == {
        **WINDOW, "from": "17:30", "resume": "live", "max_posts": None, "max_kept": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "key", "why"),
    [
        ({"zone": ""}, "source.window", "zone is missing, and none is assumed: name one, such as America/Chicago"),
        ({"to": ""}, "source.window", "to is missing: a window needs from, to and zone"),
        ({"from": ""}, "source.window", "from is missing"),
        ({"from": "", "to": ""}, "source.window", "no hours are set: add from and to"),
        ({"to": "16:00"}, "source.window", "from and to are equal"),
        ({"from": "24:00"}, "source.window.from", "'24:00' is no time of the day; write it as 16:00"),
        ({"to": "4pm"}, "source.window.to", "'4pm' is no time of the day"),
        ({"to": "20:00:30"}, "source.window.to", "no time of the day"),
        ({"to": "\u0662\u0660:00"}, "source.window.to", "no time of the day"),
        (
            {"zone": "Chicago"},
            "source.window.zone",
            "(no such zone): write one such as America/Chicago",
        ),
        ({"zone": "America"}, "source.window.zone", "no such zone"),
        ({"zone": "../../etc/passwd"}, "source.window.zone", "no such zone"),
        ({"zone": "/etc/localtime"}, "source.window.zone", "no such zone"),
        ({"zone": "localtime"}, "source.window.zone", "no such zone"),
        ({"resume": "later"}, "source.window.resume", "'live' or 'cursor'"),
    ],
)
def test_a_window_that_is_not_whole_or_not_right_is_refused_in_words(
    file: Path, changed: dict[str, str], key: str, why: str
) -> None:
    file.write_text(window_toml(**changed))
    told = complaint(file)
    assert told.startswith(f"settings file {file}: {key}: ")
    assert why in told


def test_what_a_window_lacks_is_blamed_on_the_variables_that_set_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVICSKY_SOURCE__WINDOW__FROM", "16:00")
    monkeypatch.setenv("CIVICSKY_SOURCE__WINDOW__TO", "20:00")
    assert complaint().startswith("environment variable CIVICSKY_SOURCE__WINDOW__FROM: source.window: zone is missing")
    assert complaint(None, {"source.window.zone": "Moon"}).startswith("environment variable")


def test_a_live_window_and_a_start_that_reads_other_hours_contradict_each_other(file: Path) -> None:
    file.write_text('[source]\nstart = "window"\n' + window_toml())
    assert 'set start = "live", or source.window.resume = "cursor"' in complaint(file)
    file.write_text('[source]\nstart = "window"\n' + window_toml(resume="cursor"))
    assert load(file).source.start == "window"


def test_an_unknown_key_of_a_group_in_a_group_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(window_toml(begin="16:00"))
    assert complaint(file) == (
        f"settings file {file}: no such setting 'source.window.begin'; `civicsky config` lists them all"
    )
    file.write_text("[source]\nwindow = 3\n")
    assert complaint(file) == (
        f"settings file {file}: source.window: must be a table: write [source.window] and its settings below"
    )
    monkeypatch.setenv("CIVICSKY_SOURCE__WINDOW__BEGIN", "16:00")
    assert "no such setting" in complaint()


# ---- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_is_read_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"mongodb://me:{SECRET}@mongo.example"
    monkeypatch.setenv("CIVICSKY_LABEL__API_KEY", SECRET)
    monkeypatch.setenv("CIVICSKY_STORE__MONGO_URI", uri)
    settings = load(None, {"label.slots": 5})
    assert settings.label.api_key.get_secret_value() == SECRET
    assert settings.store.mongo_uri.get_secret_value() == uri
    for shown in (str(settings), repr(settings), json.dumps(effective(settings)), str(settings.model_dump())):
        assert SECRET not in shown
    assert effective(settings)["label"]["api_key"] == "**********"
    assert effective(settings)["store"]["mongo_uri"] == "**********"


@pytest.mark.parametrize("key", ["label.api_key", "store.mongo_uri"])
@pytest.mark.parametrize("value", [f'["{SECRET}"]', f'{{a = "{SECRET}"}}'])
def test_a_secret_of_the_wrong_type_is_not_shown_in_the_complaint(file: Path, key: str, value: str) -> None:
    group, _, field = key.partition(".")
    file.write_text(f"[{group}]\n{field} = {value}\n")
    told = complaint(file)
    assert told.startswith(f"settings file {file}: {key}")
    assert SECRET not in told


def test_a_secret_is_not_shown_in_a_complaint_about_something_else(file: Path) -> None:
    for wrong in ("slots = 0", "slotz = 0", "broken"):
        file.write_text(f'[label]\napi_key = "{SECRET}"\n{wrong}\n')
        assert SECRET not in complaint(file)


def test_every_setting_that_may_hold_a_secret_is_of_the_secret_kind() -> None:
    assert type(Label().api_key) is SecretStr
    assert type(Store().mongo_uri) is SecretStr
    assert type(AppView().app_password) is SecretStr
    assert type(Http().token) is SecretStr
    assert type(Notify().url) is SecretStr
    words = ("key", "password", "secret", "token", "uri")
    suspicious = [name for name, _, _ in documented() if name.rpartition(".")[2].split("_")[-1] in words]
    assert suspicious == [
        "label.api_key", "workers.password", "workers.token", "workers.key", "store.mongo_uri", "appview.app_password",
        "notify.token", "http.token",
    ]  # fmt: skip
    assert type(Workers().password) is type(Workers().token) is SecretStr  # workers.key names a file


@pytest.mark.parametrize(
    ("lists", "why"),
    [
        ({"24h": "at://did:plc:a/app.bsky.feed.generator/x"}, "'24h' is no name: a letter"),
        ({"a b": "at://did:plc:a/app.bsky.feed.generator/x"}, "'a b' is no name"),
        ({"a": "at://did:plc:a/app.bsky.feed.post/x"}, "'at://did:plc:a/app.bsky.feed.post/x' is no feed"),
        ({"a": "https://bsky.app/profile/a.test/post/x"}, "is no feed: a feed is given as at://"),
        ({"week": "at://did:plc:a/app.bsky.feed.generator/x"}, "daily: 'today' is not in feeds.lists (set both)"),
    ],
)
def test_feeds_have_names_and_addresses_and_the_daily_ones_are_known(lists: dict[str, str], why: str) -> None:
    assert why in complaint(None, {"feeds.lists": lists})


def test_a_feeds_place_is_found_in_both_of_its_addresses_and_in_nothing_else() -> None:
    assert feed_place("at://did:plc:a/app.bsky.feed.generator/x-1") == ("did:plc:a", "x-1")
    assert feed_place("https://bsky.app/profile/a.test/feed/x?y#z") == ("a.test", "x")
    for other in ("", "x", "at://did:plc:a/feed/x", "https://bsky.app/profile/a.test/app.bsky.feed.generator/x",
                  "https://evil.test/profile/a.test/feed/x", "https://bsky.app/profile/a.test/feed/x/y",
                  "at://did:plc:a/app.bsky.feed.generator/x y", "at://a b/app.bsky.feed.generator/x"):  # fmt: skip
        assert feed_place(other) is None


def test_feeds_of_the_file_are_added_to_those_that_ship(file: Path) -> None:
    file.write_text('[feeds.lists]\nmine = "https://bsky.app/profile/one.example/feed/x"\n')
    assert list(load(file).feeds.lists) == ["today", "week", "mine"]


# ---- what the settings say of themselves -----------------------------------------------------------------------------


def fields_of_source() -> dict[str, dict[str, str | None]]:
    """Class -> field -> the docstring under it, from the module's source."""
    tree = ast.parse(Path(civicsky.settings.__file__).read_text(encoding="utf-8"))
    found: dict[str, dict[str, str | None]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = found[node.name] = {}
        for one, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                fields[one.target.id] = str(after.value.value) if is_doc else None  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("url", "http://chat.example/hunter2", "https:// only"),
        ("url", "http://127.0.0.1.example/hunter2", "https:// only"),
        ("url", "ftp://chat.example/hunter2", "not an https:// address"),
        ("url", "hunter2", "not an https:// address"),
        ("url", "https:///hunter2", "not an https:// address"),
        ("url", "https://[hunter2/", "not an https:// address"),
        ("url", "https://chat.example:hunter2/", "not an https:// address"),
        ("url", "https://chat.example:0/hunter2", "not an https:// address"),
        ("url", "https://chat.example/hunter2 x", "plain characters"),
        ("url", "https://chat.example/hunter2\n", "plain characters"),
        ("token", "hunter2 x", "without spaces"),
        ("token", "hunter2\r\nX-A: b", "without spaces"),
    ],
)
def test_a_webhook_that_would_not_be_private_is_refused_without_being_told(
    name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CIVICSKY_NOTIFY__{name.upper()}", value)
    with pytest.raises(Usage, match=re.escape(why)) as caught:
        load()
    assert f"CIVICSKY_NOTIFY__{name.upper()}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://chat.example/a?b=c", "https://u:p@chat.example", "http://localhost:1/x"])
def test_a_webhook_may_have_any_private_address(url: str) -> None:
    assert Notify(url=SecretStr(url)).chosen


@pytest.mark.parametrize("words", [("",), (" ",), ("tell", "a\0b")])
def test_a_command_that_names_no_program_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        Notify(command=words)
    assert not Notify().chosen
    assert Notify(command=("tell",)).chosen


def test_every_setting_has_a_docstring_that_says_something() -> None:
    found = fields_of_source()
    groups = [type(group) for _, group in civicsky.loading._groups()]
    assert len(groups) == 23
    for group in groups:
        assert set(found[group.__name__]) == set(group.model_fields)
        assert (group.__doc__ or "").endswith(".")
        for name, text in found[group.__name__].items():
            if isinstance(group.model_fields[name].default, Group):
                continue
            assert text, f"{group.__name__}.{name} has no docstring"
            assert " " in text.rstrip(".")
            assert text.endswith(".")
    assert found["Settings"]["data_dir"]


def test_every_setting_is_listed_with_its_default_and_its_variable() -> None:
    rows = {name: (default, variable) for name, default, variable in documented()}
    assert list(rows) == list(leaves(effective(Settings())))
    assert rows["data_dir"] == ("civicsky-data", "CIVICSKY_DATA_DIR")
    assert rows["label.slots"] == ("4", "CIVICSKY_LABEL__SLOTS")
    assert rows["limits.max_posts"] == ("None", "CIVICSKY_LIMITS__MAX_POSTS")
    assert rows["source.window.from"] == ("", "CIVICSKY_SOURCE__WINDOW__FROM")
    assert list(rows)[1].startswith("source.")


TABLES = {"label.prices", "feeds.lists", "authors.lists"}
"""Settings that are tables themselves."""


def leaves(shown: dict[str, Any], *above: str) -> dict[str, Any]:
    """Every setting by its dotted name, with what is shown of it."""
    found: dict[str, Any] = {}
    for name, value in shown.items():
        dotted = ".".join((*above, name))
        is_group = isinstance(value, dict) and dotted not in TABLES
        found |= leaves(value, *above, name) if is_group else {dotted: value}
    return found


OTHER_VALUES = {
    "alts": "False",
    "ask_anyway": "0.125",
    "at": "16:15",
    "at_bound": "shed",
    "authors.lists": '{"news": "news.csv"}',
    "client": "websockets",
    "command": '["/bin/tell", "me"]',
    "count_hours": "[6, 48]",
    "currency": "EUR",
    "daily": '["week"]',
    "events.max_articles": "7",
    "events.max_chars": "1070",
    "events.max_distance": "0.125",
    "events.summarise": "False",
    "events.unclear": '["civic"]',
    "feeds.lists": json.dumps(dict.fromkeys(("today", "week"), "https://bsky.app/profile/one.example/feed/x")),
    "fetch": "True",
    "format": "json",
    "http.page": "False",
    "in_clear": "True",
    "from": "07:00",
    "keep": "all",
    "kind": "mongo",
    "label_all": "False",
    "level": "debug",
    "listen": "107",
    "login": "always",
    "login_url": "https://one.example",
    "margin": "0.125",
    "model_url": "http://one.example/v1",
    "more_urls": '["http://one.example/v1"]',
    "names": '["node17"]',
    "notify.format": "slack",
    "notify.url": "https://chat.example/hook",
    "parent": "True",
    "posts_per_request": "7",
    "prices": '{"m": {"input": 1.0, "output": 2.0, "cached": null}}',
    "processes": "7",
    "quote": "True",
    "recheck": "False",
    "reject_sample": "0.125",
    "relays": '["ws://one.example"]',
    "respect": "drop",
    "resume": "cursor",
    "root": "True",
    "shed_share": "0.125",
    "start": "window",
    "tasks": '["civic", "toxicity.toml"]',
    "to": "23:00",
    "token": "a-token-of-some-length",
    "unit": "thread",
    "url": "http://api.example",
    "way": "words",
    "workers.url": "nats://one.example:4222",
    "zone": "Australia/Lord_Howe",
}
"""By field, or by whole name, a value that is not the default, for the settings that 107 does not suit."""


@pytest.mark.parametrize(("name", "variable"), [(name, variable) for name, _, variable in documented()])
def test_every_listed_variable_sets_its_setting(monkeypatch: pytest.MonkeyPatch, name: str, variable: str) -> None:
    group, _, field = name.rpartition(".")
    value = OTHER_VALUES.get(name) or OTHER_VALUES.get(field, "107")
    if group == "source.window":  # none of them alone is of any use
        for part, usual in WINDOW.items():
            monkeypatch.setenv(f"CIVICSKY_SOURCE__WINDOW__{part.upper()}", usual)
    monkeypatch.setenv(variable, value)
    if name == "feeds.at":
        monkeypatch.setenv("CIVICSKY_FEEDS__ZONE", OTHER_VALUES["zone"])  # one without the other is refused
    settings = load()
    if field in {"api_key", "mongo_uri", "app_password", "token", "password"} or name == "notify.url":
        assert getattr(getattr(settings, group), field).get_secret_value() == value
        assert leaves(effective(settings))[name] == "**********"
        return
    changed = leaves(effective(settings))[name]
    assert changed != (leaves(effective(Settings.model_construct()))[name] if group else "civicsky-data")
    if isinstance(changed, list | dict):
        assert changed == json.loads(value)
    else:
        assert str(changed) in {value, "107.0"}


# ---- what follows from settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "uri", "chosen"),
    [
        ("auto", "", "sqlite"),
        ("auto", "mongodb://h", "mongo"),
        ("sqlite", "mongodb://h", "sqlite"),
        ("mongo", "", "mongo"),
    ],
)
def test_the_store_is_mongodb_when_its_address_is_set_unless_told_otherwise(kind: Any, uri: str, chosen: str) -> None:
    assert Store(kind=kind, mongo_uri=SecretStr(uri)).chosen == chosen


@pytest.mark.parametrize(
    ("url", "model", "chosen"),
    [("", "", False), ("http://h/v1", "", False), ("", "m", False), ("http://h/v1", "m", True), ("", "local", True)],
)
def test_a_model_is_chosen_by_address_and_name_or_as_local(url: str, model: str, *, chosen: bool) -> None:
    assert Label(model_url=url, model=model).chosen is chosen


def test_addresses_lose_their_last_slash() -> None:
    assert Label(model_url="http://h/v1/").model_url == "http://h/v1"
    assert Source(relays=("wss://h/",)).relays == ("wss://h",)
    assert AppView(url="https://h/").url == "https://h"


@pytest.mark.parametrize("contact", ["a\r\nX: b", "a\n", "a\x00", "a" * 201])
def test_a_contact_cannot_add_to_the_request(contact: str) -> None:
    assert "plain ASCII characters" in complaint(None, {"appview.contact": contact})


def test_settings_know_the_file_that_they_were_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("civicsky.toml")
    file.write_text('data_dir = "~/x"\n', encoding="utf-8")
    assert load(file, {"label.model": "m"}).file == tmp_path / file
    assert load().file is None
    monkeypatch.setenv("CIVICSKY_CONFIG", str(file))
    assert load().file == tmp_path / file


def test_more_calls_in_flight_than_one_process_makes_need_workers() -> None:
    with pytest.raises(Usage, match=r"more than 256 need label workers: set workers\.url"):
        load(None, {"label.slots": 257})
    assert load(None, {"label.slots": 256}).label.slots == 256
    assert load(None, {"label.slots": 4_096, "workers.url": "nats://127.0.0.1:4222"}).label.slots == 4_096
