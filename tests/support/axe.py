"""The accessibility checker axe-core, run inside a page of the tests' browser."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from support.browser import Page

WRONG = ("serious", "critical")
"""How bad a finding must be to count."""


def findings(page: Page) -> list[str]:
    """What is wrong with a page as it is now, each rule with the elements that break it."""
    page.evaluate(_script() + "; 1")
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    found = page.evaluate(f"axe.run(document, {json.dumps(options)})")
    assert found["testEngine"]["name"] == "axe-core"
    return [
        f"{one['impact']} {one['id']}: {one['help']}: {node['target']} {node.get('failureSummary', '')[:300]}"
        for one in found["violations"]
        if one["impact"] in WRONG
        for node in one["nodes"][:5]
    ]


def _script() -> str:
    """The checker itself: a file inside a package whose other parts are not wanted."""
    spec = find_spec("axe_playwright_python")
    assert spec is not None, "requirements/axe.txt is not installed: tools/setup.sh test"
    assert spec.origin is not None
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")
