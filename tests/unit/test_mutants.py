"""The list of mutants follows the code: each patch fits, and each test that is to fail for it exists."""

import re
import shlex
from pathlib import Path

import pytest

from mutants.run import PACKAGE, ROOT, Mutant, is_killed, read


@pytest.mark.parametrize("mutant", read(), ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code_and_its_test_exists(mutant: Mutant) -> None:
    text = (PACKAGE / mutant.file).read_text()
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")
    words = shlex.split(mutant.killed_by)
    source = "".join((ROOT / word.partition("::")[0]).read_text() for word in words if word.startswith("tests/"))
    for word in words:
        if "::" in word:
            assert f"def {word.partition('::')[2]}(" in source
    if "-k" in words:
        assert re.search(rf"def test_\w*{words[-1]}", source)


def test_every_guarantee_has_a_mutant() -> None:
    told = {int(n) for n in re.findall(r"^\| (\d+)\.", Path(ROOT / "docs/architecture.md").read_text(), re.MULTILINE)}
    assert told <= {mutant.guarantee for mutant in read()}


def test_only_an_assertion_kills() -> None:
    assert is_killed(1, "E       AssertionError: no")
    assert is_killed(1, "E       assert 1 == 2")
    assert not is_killed(1, "E       ImportError: no such thing")
    assert not is_killed(0, "E       AssertionError: of another run")
    assert not is_killed(2, "E       AssertionError: interrupted")
