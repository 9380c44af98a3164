"""docs/configuration.md tells every setting as the code has it."""

import json
from pathlib import Path
from typing import Any

from civicsky.settings import CONFIG_VARIABLE, Group, Settings, documented, load
from docs.pages import blocks, named, page, section

CONFIGURATION = "docs/configuration.md"


def default(name: str) -> Any:
    group, _, field = name.partition(".")
    value = Settings.model_fields[group].default
    return value.model_dump(mode="json")[field] if isinstance(value, Group) else str(value)


def test_every_setting_has_a_row_with_its_default_its_variable_and_a_meaning() -> None:
    told = {name: cells for name, cells in named(page(CONFIGURATION)).items() if len(cells) == 3}
    for name, _, variable in documented():
        assert name in told, f"{name} is not in {CONFIGURATION}"
        assert told[name][0] == f"`{json.dumps(default(name))}`", name
        assert told[name][1] == f"`{variable}`", name
        assert len(told[name][2]) > 10, f"{name} has no meaning in {CONFIGURATION}"


def test_no_row_tells_a_setting_that_there_is_not() -> None:
    told = {name for name, cells in named(page(CONFIGURATION)).items() if len(cells) == 3}
    assert told == {name for name, _, _ in documented()}


def test_the_example_is_a_settings_file_that_can_be_loaded(tmp_path: Path) -> None:
    (example,) = blocks(section(CONFIGURATION, "An example"), "toml")
    file = tmp_path / "civicsky.toml"
    file.write_text(example, encoding="utf-8")
    assert load(file) != load()


def test_every_secret_is_named_as_one() -> None:
    shown = section(CONFIGURATION, "Secrets")
    masked = [name for name, _, _ in documented() if _is_secret(name)]
    assert masked
    for name in masked:
        assert f"`{name}`" in shown


def test_the_variable_that_names_the_file_is_told() -> None:
    assert CONFIG_VARIABLE in page(CONFIGURATION)


def _is_secret(name: str) -> bool:
    group, _, field = name.partition(".")
    value = Settings.model_fields[group].default
    return isinstance(value, Group) and "Secret" in str(type(value).model_fields[field].annotation)
