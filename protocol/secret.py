"""Comparing what must not be guessed."""

# What hmac.compare_digest is. Importing hmac loads OpenSSL: 1.6 MiB and 5 ms in every process, for this one function.
from _operator import _compare_digest as same_secret

__all__ = ["same_secret"]
