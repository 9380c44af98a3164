"""A proportion and how sure it is. Pure."""

from math import sqrt
from typing import Final, NamedTuple

_Z: Final = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Share(NamedTuple):
    """A proportion with its 95 % interval (Wilson's score interval, 1927)."""

    hits: int
    n: int

    def interval(self) -> tuple[float, float]:
        """(lower, upper); (0, 1) without data."""
        if self.n == 0:
            return 0.0, 1.0
        p, z2 = self.hits / self.n, _Z * _Z
        middle = (p + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = _Z / (1 + z2 / self.n) * sqrt(p * (1 - p) / self.n + z2 / (4 * self.n * self.n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        if self.n == 0:
            return "no data"
        low, high = self.interval()
        return f"{self.hits / self.n:.3f}  [{low:.3f}, {high:.3f}]  n = {self.n:,}"
