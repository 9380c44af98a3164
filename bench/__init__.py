"""Benchmarks: what civicsky does, beside what others do, in ratios. `make bench` runs them; none is installed."""
