"""Writes docs/scale.md and its plots. See the package."""

from bench import results
from bench.run import ROOT
from bench.scaling import page

page.write(ROOT / "docs", results.read(ROOT / "bench" / "results.json"))
