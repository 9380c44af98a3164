"""docs/configuration.md tells every setting as the code has it."""

import json
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from civicsky.loading import CONFIG_VARIABLE, documented, effective, load
from civicsky.settings import Settings
from civicsky.task import Task
from docs.pages import blocks, named, page, section

CONFIGURATION = "docs/configuration.md"


def default(name: str) -> Any:
    shown: Any = effective(Settings.model_construct())
    for part in name.split("."):
        shown = shown[part]
    return shown


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
    examples = blocks(section(CONFIGURATION, "An example"), "toml") + blocks(section(CONFIGURATION, "source"), "toml")
    assert len(examples) == 2
    file = tmp_path / "civicsky.toml"
    for example in examples:
        file.write_text(example, encoding="utf-8")
        assert load(file) != load()


def test_every_example_of_a_window_names_its_zone() -> None:
    pages = [CONFIGURATION, "docs/operations.md", "deploy/systemd/civicsky.toml.example"]
    for name in pages:
        (example,) = re.findall(r"^(?:# )?\[source\.window\]\n(?:.+\n)+", page(name), re.MULTILINE)
        assert "zone = " in example, name


def keys(part: type[BaseModel], prefix: str = "") -> dict[str, bool]:
    """Every key of a task file, and whether it must be there."""
    found = {}
    for name, info in part.model_fields.items():
        found[prefix + name] = info.is_required()
        for inner in get_args(info.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= keys(inner, f"{name}.")
    return found


def test_every_key_of_a_task_file_is_told_and_no_other() -> None:
    told = named(section(CONFIGURATION, "Task files"))
    assert {name: cells[0] == "yes" for name, cells in told.items()} == keys(Task)
    assert len(keys(Task)) > 20
    for name, (_, meaning) in told.items():
        assert len(meaning) > 8, f"{name} has no meaning in {CONFIGURATION}"


def test_the_example_of_a_task_file_is_the_one_that_the_tests_run() -> None:
    (example,) = blocks(section(CONFIGURATION, "Task files"), "toml")
    assert example.strip() == page("tests/tasks/toxicity.toml").strip()


def test_every_secret_is_named_as_one() -> None:
    shown = section(CONFIGURATION, "Secrets")
    masked = [name for name, _, _ in documented() if _is_secret(name)]
    assert masked
    for name in masked:
        assert f"`{name}`" in shown


def test_the_variable_that_names_the_file_is_told() -> None:
    assert CONFIG_VARIABLE in page(CONFIGURATION)


def _is_secret(name: str) -> bool:
    value: Any = Settings.model_construct()
    for part in name.split("."):
        fields = type(value).model_fields
        (field,) = (field for field, info in fields.items() if (info.alias or field) == part)
        annotation, value = fields[field].annotation, getattr(value, field)
    return "Secret" in str(annotation)
