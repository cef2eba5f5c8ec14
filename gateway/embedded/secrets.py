"""Secrets of this installation that nobody has to choose: made once, kept in the data folder, readable by its owner.

Losing the pepper makes every virtual key unknown; it belongs in the backup of the data folder, or comes from outside.
"""

from __future__ import annotations

from msgspec import Struct

from gateway.config import ConfigError, Settings
from gateway.kept import kept as kept

PEPPER_CHARS_MIN = 16


class Secrets(Struct, frozen=True):
    """key_pepper: what virtual keys are hashed under. engine_key: bearer token of the local engine."""

    key_pepper: str
    engine_key: str

    def __repr__(self) -> str:
        return "Secrets(hidden)"

    @classmethod
    def load(cls, settings: Settings) -> Secrets:
        """From the settings where they name one, else from the data folder, else new.

        Raises: ConfigError when a named one cannot be had or a kept one cannot be read."""
        pepper = settings.key_pepper.reveal() if settings.key_pepper else kept(settings.data_dir, "key_pepper")
        if len(pepper) < PEPPER_CHARS_MIN:
            problem = f"too short to keep a secret: {len(pepper)} characters"
            fix = f"at least {PEPPER_CHARS_MIN}, for example from `openssl rand -hex 32`"
            raise ConfigError("key_pepper", problem, source="FAREBOX_KEY_PEPPER", fix=fix)
        return cls(
            key_pepper=pepper,
            engine_key=settings.engine_key.reveal() if settings.engine_key else kept(settings.data_dir, "engine_key"),
        )
