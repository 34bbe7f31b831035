"""The launcher's supervision: `core` and `budget` decide, the rest acts. Only `launcher.py` imports it."""
