"""Where settings come from, and what is said of those that cannot be used.

In rising precedence: the defaults of `settings.py`, a TOML file, the file of secrets beside it, for secrets a file
named like the setting (`label.api_key`) in $CREDENTIALS_DIRECTORY, which systemd sets (LoadCredential=), the
environment (`CIVICSKY_STAGE__FIELD`), flags.
"""

import io
import json
import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import SettingsError

from civicsky.errors import Usage
from civicsky.settings import ENV_PREFIX, SLOTS_OF_OWN, Group, Settings, expanded

CONFIG_VARIABLE: Final = "CIVICSKY_CONFIG"
SECRETS: Final = {
    "CIVICSKY_LABEL__API_KEY": "label.api_key",
    "CIVICSKY_WORKERS__PASSWORD": "workers.password",
    "CIVICSKY_WORKERS__TOKEN": "workers.token",
    "CIVICSKY_STORE__MONGO_URI": "store.mongo_uri",
    "CIVICSKY_APPVIEW__APP_PASSWORD": "appview.app_password",
    "CIVICSKY_NOTIFY__URL": "notify.url",
    "CIVICSKY_NOTIFY__TOKEN": "notify.token",
    "CIVICSKY_HTTP__TOKEN": "http.token",
}
"""Every secret: its variable, which is also its name in a file of secrets, and the setting."""
_MAX_SECRETS: Final = 100_000
"""Bytes of a file of secrets."""
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
_WORDS: Final = {
    "missing": "is missing; add it",
    "string_pattern_mismatch": "three capital letters are needed, such as USD",
}
"""By kind of pydantic's error. One setting has a pattern: `label.currency`."""
_TABLES: Final = {
    "label.prices": '{"MODEL": {"input": 0.05, "output": 0.08}}',
    "feeds.lists": '{"NAME": "https://bsky.app/profile/DID-OR-HANDLE/feed/RKEY"}',
    "authors.lists": '{"NAME": "FILE.csv"}',
}
"""What a setting that is a table looks like in the environment."""
_OWN_VARIABLES: Final = frozenset({CONFIG_VARIABLE, "CIVICSKY_FAULT", "CIVICSKY_CLOCK"})


def load(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read file, environment and flags. `flags` maps dotted names ("source.relays") to values; None means not given.

    Raises `Usage`, which names the key and where it came from, for an unknown key or a bad value.
    """
    return _loaded(file_of(config), flags)


def load_without_file(flags: Mapping[str, Any] | None = None) -> Settings:
    """The same of environment and flags alone, whatever file the environment names."""
    return _loaded(None, flags)


def _loaded(file: Path | None, flags: Mapping[str, Any] | None) -> Settings:
    _check_environment()
    values = _with_credentials(_with_secrets(_read_file(file), file) if file else {})
    try:
        settings = _with_flags(Settings(**values), flags or {})
        if settings.data_dir.parts[:1] and settings.data_dir.parts[0].startswith("~"):
            settings = settings.model_copy(update={"data_dir": expanded(settings.data_dir)})
        if settings.label.slots > SLOTS_OF_OWN and not settings.workers.url:
            raise Usage(f"label.slots: more than {SLOTS_OF_OWN} need label workers: set workers.url")
        return settings.read_from(file)
    except SettingsError:
        raise Usage(_explain_no_json()) from None
    except ValidationError as error:
        raise Usage(_explain(error, values, file)) from None


def file_of(config: Path | None) -> Path | None:
    """The settings file that counts: the one that is named, else the environment's; None: there is none."""
    return config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)


def secrets_file(config: Path) -> Path:
    """Where the secrets of a settings file stand: beside it, NAME.env for NAME.toml."""
    return config.with_suffix(".env") if config.suffix == ".toml" else config.with_name(f"{config.name}.env")


def read_secrets(file: Path) -> dict[str, str]:
    """What a file of secrets sets, by variable: lines that a shell and systemd read alike. {} when there is none.

    Raises `Usage` when others can read it, for a line that is none, and for what is no secret of ours. Never tells a
    value.
    """
    try:
        with file.open("rb") as stream:
            mode, text = stat.S_IMODE(os.fstat(stream.fileno()).st_mode), stream.read(_MAX_SECRETS).decode()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise Usage(f"file of secrets {file}: {error.strerror}; make it yours: chmod 600 {file}") from None
    except UnicodeDecodeError:
        raise Usage(f"file of secrets {file}: it is not text; write NAME='value' lines") from None
    if mode & 0o077:
        raise Usage(f"file of secrets {file}: others can read or write it; make it yours alone: chmod 600 {file}")
    return _secrets_in(text, file)


def _with_secrets(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """The values of a settings file, with those of the file of secrets beside it in their places."""
    for variable, secret in read_secrets(secrets_file(file)).items():
        group, _, field = SECRETS[variable].partition(".")
        values.setdefault(group, {})[field] = secret
    return values


def _secrets_in(text: str, file: Path) -> dict[str, str]:
    from dotenv.parser import parse_stream  # noqa: PLC0415  (few commands have such a file)

    found = {}
    for line in parse_stream(io.StringIO(text)):
        if line.error or (line.key is not None and line.value is None):
            raise Usage(f"file of secrets {file}: line {line.original.line} is not NAME='value'")
        if line.key is None or not line.key.upper().startswith(ENV_PREFIX):
            continue  # a comment, or another program's
        if line.key.upper() not in SECRETS:
            raise Usage(
                f"file of secrets {file}: {line.key[:60]!a} is no secret; set it in the settings file beside it"
            )
        found[line.key.upper()] = str(line.value)
    return found


def effective(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, secrets masked."""
    shown: dict[str, Any] = settings.model_dump(mode="json")
    return shown


def documented() -> list[tuple[str, str, str]]:
    """(name, default, environment variable) of every setting, in their order: for `config` and for the docs' test."""
    shown = Settings.model_construct().model_dump(mode="json")
    return [
        (_dotted(*path), str(_at(shown, *path)), _variable(*path)) for path, _ in _defaults(Settings.model_construct())
    ]


def secrets() -> list[str]:
    """Names of the settings that are secrets: those may be credentials."""
    return [_dotted(*path) for path, default in _defaults(Settings.model_construct()) if isinstance(default, SecretStr)]


def _with_credentials(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a settings file, with those of secrets from the credentials in their places."""
    folder = os.environ.get(CREDENTIALS_VARIABLE)
    for name in secrets() if folder else ():
        file, (group, field) = Path(str(folder)) / name, name.split(".")
        try:
            if file.exists():
                values.setdefault(group, {})[field] = file.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise Usage(f"credential {file}: {why}; it must be a readable text") from None
    return values


def _with_flags(settings: Settings, flags: Mapping[str, Any]) -> Settings:
    values = settings.model_dump()
    for dotted, value in flags.items():
        if value is None or (isinstance(value, list) and not value):
            continue
        *groups, field = dotted.split(".")
        _at(values, *groups)[field] = value
    # Validated again as plain data, so that the environment cannot win over a flag.
    groups_read = {path[0]: _checked(path[0], group, values[path[0]]) for path, group in _groups() if len(path) == 1}
    return settings.model_copy(update={**groups_read, "data_dir": Path(values["data_dir"])})


def _checked(name: str, default: Group, values: Any) -> Group:
    try:
        return default.__class__.model_validate(values)
    except ValidationError as error:  # only flags are new here
        first = error.errors(include_url=False, include_input=False)[0]
        raise Usage(f"flag or setting: {_dotted(name, *first['loc'])}: {_in_words(first)}") from None


def _defaults(group: BaseModel, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and the default of every setting that is no group, in order; names as users write them."""
    for field, info in type(group).model_fields.items():
        path, value = (*above, info.alias or field), getattr(group, field)
        if isinstance(value, Group):
            yield from _defaults(value, *path)
        else:
            yield path, value


def _groups() -> Iterator[tuple[tuple[str, ...], Group]]:
    """The path and the default of every group, the outer ones before those that they hold."""
    waiting: list[tuple[tuple[str, ...], BaseModel]] = [((), Settings.model_construct())]
    while waiting:
        above, group = waiting.pop(0)
        for field, info in type(group).model_fields.items():
            value = getattr(group, field)
            if isinstance(value, Group):
                waiting.append(((*above, info.alias or field), value))
                yield waiting[-1][0], value


def _read_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Usage(f"settings file {file}: {error.strerror}; name a readable file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Usage(f"settings file {file} is not valid TOML: {error}") from None
    for path, _ in _groups():
        # Checked here, because a variable of the group would hide it.
        if not isinstance(_at(values, *path), dict | None):
            name = _dotted(*path)
            raise Usage(f"settings file {file}: {name}: must be a table: write [{name}] and its settings below")
    return values


def _check_environment() -> None:
    known = {variable for _, _, variable in documented()} | _OWN_VARIABLES
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            raise Usage(f"environment variable {variable}: no such setting; `civicsky config` lists them all")


def _explain(error: ValidationError, values: Mapping[str, Any], file: Path | None) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    loc = first["loc"]
    where = _where(loc, values, file)
    if first["type"] == "extra_forbidden":
        return f"{where}: no such setting {_dotted(*loc)!r}; `civicsky config` lists them all"
    return f"{where}: {_dotted(*loc)}: {_in_words(first)}"


def _where(loc: tuple[str | int, ...], values: Mapping[str, Any], file: Path | None) -> str:
    """Where the value that is complained of came from. Of a list or a table all of it is one value."""
    settings = {path for path, _ in _defaults(Settings.model_construct())}
    path = next((loc[:n] for n in range(1, len(loc)) if loc[:n] in settings), loc)
    variable = _as_written(_variable(*path))
    if variable:
        return f"environment variable {variable}"
    if _at(values, *path) is not None and file:
        return f"settings file {file}"
    # What a group complains of may have come from any of its variables.
    of_group = [name for name in map(_as_written, _variables_of(path)) if name]
    return f"environment variable {of_group[0]}" if of_group else "flag or setting"


def _variables_of(path: tuple[str | int, ...]) -> list[str]:
    """The variables of a group's settings."""
    return [_variable(*inner) for inner, _ in _defaults(Settings.model_construct()) if inner[: len(path)] == path]


def _in_words(error: Any) -> str:
    """What pydantic says, where that is clear; else what to do."""
    return _WORDS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")


def _explain_no_json() -> str:
    for path, default in _defaults(Settings.model_construct()):
        variable = _as_written(_variable(*path))
        if isinstance(default, tuple | dict) and variable and not _is_json(os.environ[variable]):
            kind = (
                f'a list must be: {variable}=\'["first", "second"]\''
                if isinstance(default, tuple)
                else f"a table must be: {variable}='{_TABLES[_dotted(*path)]}'"
            )
            return f"environment variable {variable}: {_dotted(*path)}: not JSON, as {kind}"
    raise AssertionError  # pragma: no cover - only lists and tables are read as JSON


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _dotted(*parts: str | int) -> str:
    return ".".join(str(part) for part in parts)


def _at(values: Any, *path: str | int) -> Any:
    """What stands at a path of nested tables; None when nothing does."""
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _variable(*parts: str | int) -> str:
    return ENV_PREFIX + "__".join(str(part) for part in parts).upper()


def _as_written(variable: str) -> str | None:
    """A variable of the environment in the user's own spelling; of several the last, which is the one that counts."""
    return {name.upper(): name for name in os.environ}.get(variable)
