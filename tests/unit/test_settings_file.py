"""A settings file that is written is the one that is read, whatever is in it; so is a file of secrets."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from civicsky import settings
from civicsky.errors import Usage
from civicsky.loading import SECRETS, documented, effective, load, read_secrets, secrets_file
from civicsky.settings import Settings
from civicsky.setup.settings_file import SHOWN, described, secrets_text, settings_text

HOSTILE = [
    "a\"b'c",
    '"""',
    "'''",
    "a\nb",
    "\\",
    "\\u0000",
    "# no comment",
    "] [x",
    "é 日本",
    "\x7f\x01",
    "\u2028\u202e",
    " ",
]
PLAIN = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _, variable in documented():
        assert name
        monkeypatch.delenv(variable, raising=False)


def written(folder: Path, chosen: dict[str, Any]) -> Path:
    file = folder / "civicsky.toml"
    file.write_text(settings_text(chosen, "civicsky.env"), encoding="utf-8")
    return file


# ---- settings --------------------------------------------------------------------------------------------------------


def test_a_new_file_changes_no_setting_but_those_that_were_chosen(tmp_path: Path) -> None:
    assert load(written(tmp_path, {})).read_from(None) == load()
    chosen = {"data_dir": "/x", "source.relays": ("wss://a", "wss://b"), "label.slots": 9, "source.window.zone": ""}
    read = load(written(tmp_path, chosen))
    assert (str(read.data_dir), read.source.relays, read.label.slots) == ("/x", ("wss://a", "wss://b"), 9)
    assert effective(read) == effective(load(None, {k: v for k, v in chosen.items() if k != "source.window.zone"}))


def test_every_line_that_shows_a_default_may_be_put_in_force_and_changes_nothing(tmp_path: Path) -> None:
    text = settings_text({}, "civicsky.env")
    in_force = re.sub(r"^#(\w+ = .+)$", r"\1", text, flags=re.MULTILINE)
    file = tmp_path / "all.toml"
    file.write_text(in_force, encoding="utf-8")
    assert load(file).read_from(None) == load()
    assert len(re.findall(r"^\w+ = .+$", in_force, re.MULTILINE)) > 20


def test_every_setting_that_is_shown_exists_and_has_its_own_docstring_as_comment() -> None:
    names = [name for name, _, _ in documented()]
    assert list(described()) == names
    source = " ".join(Path(str(settings.__file__)).read_text(encoding="utf-8").split())
    text = " ".join(settings_text({}, "civicsky.env").replace("\n# ", " ").split())
    for name in SHOWN:
        told = described()[name][1]
        assert len(told) > 10
        assert told in source
        assert told in text


def test_a_new_file_shows_how_to_watch_the_service_and_be_told() -> None:
    text = settings_text({}, "civicsky.env")
    for line in ("[log]", '#file = ""', "[notify]", "#command = []", "[http]", '#listen = ""'):
        assert line in text.splitlines()


def test_no_secret_is_among_the_settings_of_a_new_file() -> None:
    assert not set(SECRETS.values()) & set(SHOWN)
    annotations = {
        f"{part.name.lower()}.{line.target.id}"
        for part in ast.parse(Path(str(settings.__file__)).read_text(encoding="utf-8")).body
        if isinstance(part, ast.ClassDef)
        for line in part.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and "SecretStr" in ast.dump(line.annotation)
    }
    assert annotations == set(SECRETS.values())
    assert {variable for name, _, variable in documented() if name in annotations} == set(SECRETS)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_value_that_looks_like_toml_stays_a_value(tmp_path: Path, text: str) -> None:
    read = load(written(tmp_path, {"data_dir": f"/x{text}", "label.model": text}))
    assert (str(read.data_dir), read.label.model) == (f"/x{text}", text)
    assert effective(read) == effective(load(None, {"data_dir": f"/x{text}", "label.model": text}))


@given(PLAIN, st.lists(PLAIN, min_size=1))
def test_whatever_is_written_is_what_is_read(text: str, texts: list[str]) -> None:
    read = tomllib.loads(settings_text({"label.model": text, "label.tasks": texts}, "x.env"))
    assert read["label"] == {"model": text, "tasks": texts}


def test_what_a_settings_file_cannot_hold_is_refused() -> None:
    with pytest.raises(Usage, match="cannot hold"):
        settings_text({"data_dir": "/\udcff"}, "civicsky.env")


def test_a_table_and_a_switch_can_be_written(tmp_path: Path) -> None:
    chosen = {"label.prices": {'a "b"': {"input": 0.5, "output": 1.0}}, "context.quote": True}
    read = load(written(tmp_path, chosen))
    assert read.context.quote
    assert read.label.prices['a "b"'].input == 0.5


# ---- secrets ---------------------------------------------------------------------------------------------------------

VALUES = ["sk-1234", "mongodb://a:b%27@h:1/?x=y&z=w", 'a"$HOME`id`#!;&|*?~ b', "${X}", "$(id)", "=", "a b"]


def secrets(folder: Path, values: dict[str, str]) -> Path:
    file = folder / "civicsky.env"
    file.write_text(secrets_text(values), encoding="utf-8")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("value", VALUES)
def test_a_shell_and_we_read_the_same_secret(tmp_path: Path, value: str) -> None:
    file = secrets(tmp_path, dict.fromkeys(SECRETS, value))
    assert read_secrets(file) == dict.fromkeys(SECRETS, value)
    for name in SECRETS:
        script = f'set -a; . "$1"; set +a; printf %s "${name}"'
        ran = subprocess.run(["sh", "-c", script, "sh", file], capture_output=True, text=True, check=True)
        assert ran.stdout == value


@pytest.mark.parametrize("value", ["a'b", "a\nb", "a\\b", " zq", "zq ", "é", "\x1b[2J", ""])
def test_a_secret_that_not_all_would_read_alike_is_refused_without_being_told(value: str) -> None:
    with pytest.raises(Usage, match="CIVICSKY_LABEL__API_KEY") as caught:
        secrets_text({"CIVICSKY_LABEL__API_KEY": value})
    assert not value.strip() or value not in str(caught.value)


def test_secrets_beside_a_settings_file_count_above_it_and_below_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "civicsky.toml"
    file.write_text('[label]\nmodel = "m"\napi_key = "of the file"\n')
    assert load(file).label.api_key.get_secret_value() == "of the file"
    assert secrets(tmp_path, {"CIVICSKY_LABEL__API_KEY": "beside"}) == secrets_file(file)
    assert (load(file).label.api_key.get_secret_value(), load(file).label.model) == ("beside", "m")
    monkeypatch.setenv("CIVICSKY_LABEL__API_KEY", "of the environment")
    assert load(file).label.api_key.get_secret_value() == "of the environment"
    assert load().label.api_key.get_secret_value() == "of the environment"
    assert isinstance(load(), Settings)


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("CIVICSKY_LABEL__API_KEY='sekret'\n", 0o640, "others can read or write it"),
        ("CIVICSKY_LABEL__API_KEY\n", 0o600, "line 1 is not NAME='value'"),
        ("A=b\nCIVICSKY_LABEL__API_KEY='sekret\n", 0o600, "line 2 is not NAME='value'"),
        ("CIVICSKY_LABEL__SLOTS=sekret\n", 0o600, "'CIVICSKY_LABEL__SLOTS' is no secret"),
    ],
)
def test_a_file_of_secrets_that_is_not_right_is_refused_without_a_value(
    tmp_path: Path, text: str, mode: int, why: str
) -> None:
    (tmp_path / "civicsky.toml").touch()
    file = tmp_path / "civicsky.env"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(Usage) as caught:
        load(tmp_path / "civicsky.toml")
    assert why in str(caught.value)
    assert str(file) in str(caught.value)
    assert "sekret" not in str(caught.value)


def test_what_a_file_of_secrets_says_to_others_is_none_of_our_business(tmp_path: Path) -> None:
    file = tmp_path / "civicsky.env"
    file.write_text("# x\n\nHTTPS_PROXY=http://p:1\nexport CIVICSKY_LABEL__API_KEY=bare\n")
    file.chmod(0o600)
    assert read_secrets(file) == {"CIVICSKY_LABEL__API_KEY": "bare"}
    assert read_secrets(tmp_path / "none") == {}
    assert secrets_file(Path("/a/b.conf")) == Path("/a/b.conf.env")
