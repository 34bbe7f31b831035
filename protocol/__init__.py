"""What peers must agree on: names, limits, errors, messages and their encoding. No I/O, no clock."""
