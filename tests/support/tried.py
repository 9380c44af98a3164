"""How many examples a property is tried with, and which, and what tests draw: the only home of hypothesis' settings.

`make test` tries the same ones each time, so that it is a change that makes it fail, never luck. `make long` looks for
new ones, ten times as many; what it finds is written down as an example of its own (`@example`), or as a test.
"""

import os
from random import Random, SystemRandom

from hypothesis import HealthCheck, settings  # noqa: TID251  (this is the home)

SAME, EXPLORE = "same", "explore"
"""The profiles; `--hypothesis-profile` of pytest takes one, and `same` is the one without it."""
_AS_USUAL = 100
_NEVER_WRONG = [HealthCheck.too_slow]
"""How long an example takes is no fault, nor is there a deadline: other processes use the machine too."""


def register() -> None:
    """Both profiles."""
    settings.register_profile(
        SAME,
        max_examples=_AS_USUAL,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=_NEVER_WRONG,
    )
    settings.register_profile(
        EXPLORE,
        max_examples=10 * _AS_USUAL,
        derandomize=False,
        print_blob=True,
        deadline=None,
        suppress_health_check=_NEVER_WRONG,
    )
    settings.load_profile(SAME)


def lots() -> Random:
    """For what a test marked `drawn` draws by itself, the same each time or other; `SEED=7` repeats what failed."""
    seed = int(os.environ.get("SEED") or (1 if settings().derandomize else SystemRandom().randrange(10**6)))
    print("seed", seed)
    return Random(seed)


def tried(n: int, *fine: HealthCheck) -> settings:
    """For a property that wants more or fewer than 100 examples, of which `explore` takes ten times as many too.

    `fine`: what hypothesis would warn of, and is meant.
    """
    return settings(max_examples=n * settings().max_examples // _AS_USUAL, suppress_health_check=[*_NEVER_WRONG, *fine])
