"""A secret by reference, and the error of a bad setting that stops the start. Which settings there are: config.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

REMOTE: Final = ("aws-secretsmanager", "gcp-secret-manager", "azure-key-vault", "vault")
"""Schemes that gateway.references reads."""
SCHEMES: Final = ("env", "file", *REMOTE)


class ConfigError(Exception):
    """One bad setting. path: dotted name; source: file, variable or flag that said it; fix: what to do about it."""

    def __init__(self, path: str, problem: str, *, source: str = "", fix: str = "") -> None:
        where = f" (from {source})" if source else ""
        hint = f"\n  fix: {fix}" if fix else ""
        super().__init__(f"{path}{where}: {problem}{hint}")
        self.path = path
        self.problem = problem
        self.source = source
        self.fix = fix


class Secret:
    """A credential by reference (`env:VAR`, `file:/path`, `vault:...` and the other managers of gateway.references), or
    the value itself. `repr` and `str` never show a value."""

    __slots__ = ("_environ", "reference")

    def __init__(self, reference: str, environ: Mapping[str, str]) -> None:
        self.reference = reference
        self._environ = environ

    @property
    def shown(self) -> str:
        """The reference, or `hidden` for a value."""
        return self.reference if is_reference(self.reference) else "hidden"

    def reveal(self) -> str:
        """Returns: the value. Of a variable or file it is read now, so that a rotated file is felt by the next reader;
        a secret manager is asked by the first reader, who waits, and then in the background.

        Raises: ConfigError when it cannot be had."""
        scheme, _, rest = self.reference.partition(":")
        if scheme == "env":
            value = self._environ.get(rest, "")
            if not value:
                raise ConfigError(rest, "the variable is not set", fix=f"export {rest}=... or remove the reference")
            return value
        if scheme == "file":
            path = Path(rest).expanduser()
            try:
                return path.read_text(encoding="utf-8").strip()
            except OSError as error:
                problem = f"cannot be read: {error.strerror}"
                raise ConfigError(str(path), problem, fix="check the path and its permissions") from error
            except UnicodeDecodeError:
                raise ConfigError(str(path), "is no text", fix="name a file that holds the secret alone") from None
        if scheme in REMOTE:
            from gateway.references import VALUES, NotHad

            try:
                return VALUES.get(self.reference, self._environ)
            except NotHad as error:
                raise ConfigError(self.reference, error.problem, fix=error.fix) from error
        return self.reference

    def __repr__(self) -> str:
        return f"Secret({self.shown})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def __reduce__(self) -> tuple[type[Secret], tuple[str, dict[str, str]]]:
        # Worker processes get their settings pickled; each carries only the one variable that it names, or those that
        # say where its manager is.
        scheme, _, name = self.reference.partition(":")
        named = {name: self._environ[name]} if scheme == "env" and name in self._environ else {}
        if scheme in REMOTE:
            from gateway.references import VARIABLES

            named = {name: value for name, value in self._environ.items() if name.startswith(VARIABLES)}
        return Secret, (self.reference, named)


def is_reference(text: str) -> bool:
    """Whether it says where a secret is, and is none itself."""
    return text.partition(":")[0] in SCHEMES and ":" in text
