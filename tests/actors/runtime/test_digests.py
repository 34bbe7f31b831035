"""Python's own digests: the same as everybody's."""

import hashlib
import hmac

import pytest

from actors.runtime.digests import blake2b, hmac_sha256, new_sha256, sha256


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 40])
def test_digests_are_those_of_hashlib(data: bytes) -> None:
    assert sha256(data) == hashlib.sha256(data).digest()
    assert blake2b(data, 16) == hashlib.blake2b(data, digest_size=16).digest()
    digest = new_sha256(data[:7])
    digest.update(data[7:])
    assert digest.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("key", [b"", b"k" * 32, b"k" * 64])
def test_an_hmac_is_that_of_hmac(key: bytes) -> None:
    assert hmac_sha256(key, b"data") == hmac.digest(key, b"data", "sha256")


def test_a_key_longer_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="65 bytes"):
        hmac_sha256(b"k" * 65, b"data")
