"""Runs the parts of the benchmark. See `part` for what a part is.

PYTHONPATH=.:tests .venv/bin/python -m bench.run [--only decode,label] [--quick] [--scale X] [--rounds N]
"""

import argparse
import importlib
import statistics
import sys

from bench.part import Ask, Ratio, Result, gather, met

PARTS = ("decode", "collect", "memory", "loop", "label", "store", "growth", "seed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    told = parser.parse_args()
    for name in told.only.split(","):
        module = importlib.import_module(f"bench.{name}")
        measured = gather(module.PART, module.rounds(Ask(told.rounds, told.scale, told.quick, print)))
        found: list[Result | Ratio] = [*measured.results.values(), *measured.ratios.values()]
        for one in found:
            print(name, one.name, f"{statistics.median(one.values):.4g}", one.unit, one.bar, met(one))
        print(*measured.left_out, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
