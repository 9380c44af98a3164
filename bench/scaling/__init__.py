"""How far civicsky reaches, reckoned: what one home node can do, how many GPUs, and what breaks first at more traffic.

    make scale          writes docs/scale.md and its plots, from bench/results.json and bench/scale.md.in; seconds

Nothing is measured here. `queues` simulates queues, `needs` reckons, from figures that `make bench` measured, and from
assumptions that the page tells as such. Both are pure and give the same each time; `tests/bench/test_scaling.py`
holds them against queueing theory and sums done by hand. `page` and `plots` write what comes of it.
"""
