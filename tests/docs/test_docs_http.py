"""Health over HTTP: metrics, alerts and dashboard are those that the documentation tells, and promtool agrees."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from civicsky.watch.scrape import CONFIGURED, MEASURES
from docs.pages import ROOT, named, page, quoted, rows, section
from support.promtool import promtool

OPERATIONS = "docs/operations.md"
ALERTS, TESTS = "deploy/prometheus/alerts.yml", "deploy/prometheus/alerts.test.yml"
DASHBOARD, EXAMPLE = "deploy/grafana/civicsky.json", "deploy/prometheus/prometheus.yml.example"
NAMES = {measure.name for measure in MEASURES}
SERIES = NAMES | {
    f"{one.name}_{end}" for one in MEASURES if one.kind == "histogram" for end in ("bucket", "sum", "count")
}


def used(text: str) -> set[str]:
    """The series of ours that are named in a text."""
    return set(re.findall(r"\bcivicsky_\w+", text))


def alerts() -> dict[str, str]:
    """Each alert with all that stands below its name."""
    parts = re.split(r"^ +- alert: (\w+)\n", page(ALERTS), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_metric_has_a_row_with_its_kind_its_unit_its_labels_and_no_other_has() -> None:
    told = named(section(OPERATIONS, "Metrics"))
    assert list(told) == [measure.name for measure in MEASURES]
    for measure in MEASURES:
        kind, unit, labels, meaning = told[measure.name]
        assert (kind, unit) == (measure.kind, measure.unit), measure.name
        assert quoted(labels) == list(measure.labels), measure.name
        assert meaning.startswith(measure.meaning), measure.name


def test_the_values_of_every_label_are_told() -> None:
    told = named(section(OPERATIONS, "Labels of metrics"))
    assert set(told) == {label for measure in MEASURES for label in measure.labels}
    for measure in MEASURES:
        for label, values in measure.labels.items():
            if label not in CONFIGURED and len(values) < 8:
                assert {value for value in values if value} <= set(quoted(told[label][0])), (measure.name, label)


def test_every_alert_names_its_section_and_every_section_is_of_an_alert() -> None:
    headings = re.findall(r"^#+ (.*)$", page(OPERATIONS), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    found = alerts()
    assert len(found) > 15
    for name, text in found.items():
        (place,) = re.findall(r"^ +section: docs/operations\.md#(\S+)$", text, re.MULTILINE)
        assert place == name.lower()
        assert place in anchors, name
        assert len(section(OPERATIONS, name)) > 80, f"{name}: what to do?"
        assert re.search(r"^ +summary: .{20,}$", text, re.MULTILINE), name
        assert re.search(r"severity: (critical|warning)", text), name
    assert {heading for heading in headings if heading.startswith("Civicsky")} == set(found)


def test_alerts_dashboard_and_pages_use_metrics_that_there_are() -> None:
    for name in (ALERTS, TESTS, DASHBOARD):
        assert len(used(page(name))) > 5
        assert used(page(name)) <= SERIES, name
    told = {word for word in used(page(OPERATIONS)) if not word.endswith("_")}
    assert told <= SERIES


def test_the_dashboard_shows_every_metric() -> None:
    shown: Any = json.loads(page(DASHBOARD))
    text = json.dumps(shown)
    bare = {name.removesuffix("_bucket") for name in used(text)}
    assert bare == NAMES
    expressions = [target["expr"] for panel in shown["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 20
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])
    assert all('job="$job"' in expression for expression in expressions)


def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    panels = json.loads(page(DASHBOARD))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    rules = [{"record": f"x:{n}", "expr": expression} for n, expression in enumerate(expressions)]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "x", "rules": rules}]}), encoding="utf-8")
    ran = check("check", "rules", file)
    assert f"SUCCESS: {len(rules)} rules found" in ran


def check(*args: str | Path, cwd: Path = ROOT) -> str:
    """What promtool says, which must be that all is well."""
    ran = subprocess.run([promtool(), *args], cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_promtool_takes_rules_and_example(tmp_path: Path) -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in check("check", "rules", ALERTS)
    shutil.copy(ROOT / EXAMPLE, tmp_path / "prometheus.yml")
    shutil.copy(ROOT / ALERTS, tmp_path)
    assert "is valid prometheus config file syntax" in check("check", "config", "prometheus.yml", cwd=tmp_path)


def test_each_alert_fires_and_does_not_fire_as_its_tests_say() -> None:
    looks = re.findall(
        r'ALERTS\{alertname="(\w+)",alertstate="firing"\}\)\', eval_time: \w+, exp_samples: \[(.*)\]\}', page(TESTS)
    )
    for name in alerts():
        assert {bool(expected) for at, expected in looks if at == name} == {True, False}, name
    assert "SUCCESS" in check("test", "rules", TESTS)


def test_the_example_scrapes_the_port_that_the_pages_use_and_holds_no_token() -> None:
    assert 'targets: ["127.0.0.1:9464"]' in page(EXAMPLE)
    assert "--http 9464" in section(OPERATIONS, "Health over HTTP")
    assert "credentials:" not in page(EXAMPLE)
    assert len(rows(section(OPERATIONS, "Health over HTTP"))) >= 4
