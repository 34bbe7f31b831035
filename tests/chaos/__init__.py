"""Kills, freezes and starves the real system: `system.py` runs it, `cases.py` says what may be done to it."""
