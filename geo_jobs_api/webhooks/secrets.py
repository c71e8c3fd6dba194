"""Encryption of webhook secrets in the database, and signatures made with them."""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from geo_jobs_api.errors import ApiError


class DecryptionError(ApiError):
    """The secret was encrypted with another key."""


class SecretCipher:
    """Encrypts small texts with Fernet.

    Args:
        key: at least 32 random bytes. The encryption key is derived from it.
    """

    def __init__(self, key: bytes) -> None:
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"geo-jobs webhook secrets").derive(key)
        self._fernet = Fernet(base64.urlsafe_b64encode(derived))

    def encrypt(self, text: str) -> bytes:
        """Encrypt a text."""
        return self._fernet.encrypt(text.encode())

    def decrypt(self, token: bytes) -> str:
        """Return the text.

        Raises:
            DecryptionError: it was altered, or encrypted with another key.
        """
        try:
            return self._fernet.decrypt(token).decode()
        except InvalidToken as error:
            raise DecryptionError(
                "The secret was encrypted with another STORAGE_SECRET. Give the webhook a new one."
            ) from error


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a delivery: HMAC-SHA256 of `timestamp.body`, in hexadecimal."""
    return hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()
