"""The restart budget: at most so many charged restarts in a rolling period (restart intensity, OTP supervisor.erl).

A charge is the monotonic time, in this boot, of a restart that was charged; charges are kept oldest first. A charge
that another boot left has no monotonic time here: `age_s` gives it an age instead, and ``now - age`` is its time (which
may be below zero).
"""

from dataclasses import dataclass

Charges = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """Restart intensity of one process: at most `restart_max` within any `period_s`."""

    restart_max: int
    period_s: float

    def recent(self, charges: Charges, now: float) -> Charges:
        """Return the charges that still count."""
        return tuple(charge for charge in charges if charge + self.period_s > now)

    def allows(self, charges: Charges, now: float) -> bool:
        """Tell whether one more restart may be charged now."""
        return len(self.recent(charges, now)) < self.restart_max

    def left(self, charges: Charges, now: float) -> int:
        """Return how many restarts may still be charged now."""
        return max(0, self.restart_max - len(self.recent(charges, now)))

    def add(self, charges: Charges, now: float) -> Charges:
        """Charge one restart.

        Raises:
            RuntimeError: the budget does not allow it; that is a defect of the caller.
        """
        recent = self.recent(charges, now)
        if len(recent) >= self.restart_max:
            raise RuntimeError(f"a restart was charged beyond {self.restart_max} in {self.period_s:g} s")
        return (*recent, now)

    def free_at(self, charges: Charges, now: float) -> float | None:
        """Return when the next restart may be charged: `now`, or when enough charges have aged out; None for never."""
        recent = self.recent(charges, now)
        if len(recent) < self.restart_max:
            return now
        return recent[len(recent) - self.restart_max] + self.period_s if self.restart_max else None


def age_s(wall_then_s: float, wall_now_s: float, period_s: float) -> float:
    """Return the age of a charge of another boot, by wall clocks that may have been set in between.

    A clock that went back makes it young (it counts for a whole period more), one that went ahead at most makes it as
    old as the period (it counts no more): neither can stop restarts for longer than one period.
    """
    return min(max(wall_now_s - wall_then_s, 0.0), period_s)
