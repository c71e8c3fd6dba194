"""Secrets that the database keeps for us without being able to read them, and signatures made with them."""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from geo_jobs_api.errors import ApiError


class SealError(ApiError):
    """What was sealed cannot be opened: the key is another one than it was sealed with."""


class Seal:
    """Seals and opens small texts.

    Args:
        key: at least 32 random bytes; another key is derived from it for this purpose alone.
    """

    def __init__(self, key: bytes) -> None:
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"geo-jobs webhook secrets").derive(key)
        self._fernet = Fernet(base64.urlsafe_b64encode(derived))

    def close(self, text: str) -> bytes:
        """Seal a text."""
        return self._fernet.encrypt(text.encode())

    def open(self, sealed: bytes) -> str:
        """What was sealed.

        Raises:
            SealError: it was altered, or sealed with another key.
        """
        try:
            return self._fernet.decrypt(sealed).decode()
        except InvalidToken as error:
            raise SealError("the secret was sealed with another STORAGE_SECRET; give the webhook a new one") from error


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The signature of a delivery: HMAC-SHA256 of `timestamp.body`, in hexadecimal."""
    return hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()
