"""Salts: what keeps tenants out of each other's cache."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from os import PathLike

from foreword._errors import ParameterError
from foreword.serving.http.guard._private import read_private

MIN_SECRET = 16
"""Bytes of the shortest secret."""


class Isolation:
    """Derives the salt of a request's cache entries: HMAC-SHA256(secret, tenant ‖ user's salt).

    Nobody who does not know the secret can name another tenant's salt, and tenants that choose the
    same salt of their own still get different ones. Where there is neither tenant nor salt the
    result is "": common ground, as on a server without keys.

    Args:
        secret: at least 16 bytes; None draws one, so nothing is shared across restarts.

    Raises:
        ParameterError: the secret is too short.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        if secret is not None and len(secret) < MIN_SECRET:
            raise ParameterError(
                f"the secret has {len(secret)} bytes: give at least {MIN_SECRET} random ones, "
                "such as `openssl rand -hex 32` writes"
            )
        self._secret = secrets.token_bytes(32) if secret is None else secret

    def salt(self, tenant: str, user_salt: str = "") -> str:
        """The salt, 64 hexadecimal digits, or "" for common ground."""
        if not tenant and not user_salt:
            return ""
        # "surrogatepass" gives every text its own bytes, whatever stands in it.
        owner = tenant.encode("utf-8", "surrogatepass")
        # The length in front keeps ("ab", "c") and ("a", "bc") apart.
        message = len(owner).to_bytes(8, "big") + owner + user_salt.encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def load_secret(path: str | PathLike[str]) -> bytes:
    """The secret of a file, without white space around it; what it holds is up to its owner.

    Warns in the log when other users of the machine can read the file.

    Raises:
        ParameterError: the file cannot be read, or holds less than 16 bytes.
    """
    secret = read_private(path, "the file of the salt secret").strip()
    if len(secret) < MIN_SECRET:
        raise ParameterError(
            f"the file of the salt secret {path} holds {len(secret)} bytes: at least {MIN_SECRET} "
            "random ones are needed, such as `openssl rand -hex 32` writes"
        )
    return secret
