"""Salts: what keeps tenants out of each other's cache."""

from __future__ import annotations

import hashlib
import hmac
import secrets


class Isolation:
    """Derives the salt of a request's cache entries: HMAC-SHA256(secret, tenant ‖ user's salt).

    Nobody who does not know the secret can name another tenant's salt, and tenants that choose the
    same salt of their own still get different ones. Where there is neither tenant nor salt the
    result is "": common ground, as on a server without keys.

    Args:
        secret: at least 16 bytes; None draws one, so nothing is shared across restarts.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secrets.token_bytes(32) if secret is None else secret

    def salt(self, tenant: str, user_salt: str = "") -> str:
        """The salt, 64 hexadecimal digits, or "" for common ground."""
        if not tenant and not user_salt:
            return ""
        owner = tenant.encode()
        # The length in front keeps ("ab", "c") and ("a", "bc") apart.
        message = (
            len(owner).to_bytes(8, "big") + owner + user_salt.encode("utf-8", "backslashreplace")
        )
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
