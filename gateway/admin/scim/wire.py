"""SCIM's own little languages, without I/O: filters, paths, patches and errors.

Source: RFC 7643 and RFC 7644, read 2026-11; what Entra and Okta send beyond them is marked where it is let pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

USER: Final = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP: Final = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE: Final = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
LIST: Final = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
PATCH: Final = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
ERROR: Final = "urn:ietf:params:scim:api:messages:2.0:Error"

FILTER_CHARS: Final = 2_000
OPERATIONS_MAX: Final = 1_000
_EXACT: Final = frozenset({"id", "externalid"})
"""Attributes that are compared to the letter; every other text is compared without case."""


class ScimError(Exception):
    """kind: RFC 7644's scimType, where it has a word for it."""

    def __init__(self, status: int, detail: str, kind: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind

    def body(self) -> dict[str, Any]:
        kind = {} if self.kind is None else {"scimType": self.kind}
        return {"schemas": [ERROR], "status": str(self.status), "detail": self.detail, **kind}


class Test(Struct, frozen=True):
    """`attribute op value`. path: lower-case names."""

    path: tuple[str, ...]
    op: str
    value: Any

    @property
    def only(self) -> str | None:
        """The text that the attribute has to be, if this says so."""
        return self.value if self.op == "eq" and isinstance(self.value, str) else None

    def holds(self, resource: Any) -> bool:
        found = _reach(resource, self.path)
        if self.op == "pr":
            return any(value not in (None, "", [], {}) for value in found)
        same = self.path[-1] in _EXACT
        return any(_compare(self.op, value, self.value, exact=same) for value in found)


_TOKEN: Final = re.compile(r'\s*(?:(\()|(\))|("(?:[^"\\]|\\.)*")|([^\s()"]+))')
_OPS: Final = ("eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le")


def parse_filter(text: str) -> tuple[Test, ...]:
    """Comparisons joined by `and`. Raises: ScimError (invalidFilter) for anything else."""
    if len(text) > FILTER_CHARS:
        raise _bad_filter("too long")
    words = _words(text)
    tests, at = [], 0
    while True:
        if at + 1 >= len(words):
            raise _bad_filter("a comparison is `attribute op value`")
        path, op = _path_of(words[at]), words[at + 1].lower()
        at += 2
        if op == "pr":
            tests.append(Test(path, op, None))
        elif op in _OPS and at < len(words):
            tests.append(Test(path, op, _value(words[at])))
            at += 1
        else:
            raise _bad_filter(f"{op!r} is no operator here")
        if at == len(words):
            return tuple(tests)
        if words[at].lower() != "and":
            raise _bad_filter("comparisons are joined by `and` alone")
        at += 1


def _words(text: str) -> list[str]:
    words, at = [], 0
    while at < len(text.rstrip()):
        found = _TOKEN.match(text, at)
        if found is None or found[1] or found[2]:
            raise _bad_filter("no groups, no broken text")
        words.append(found[3] or found[4])
        at = found.end()
    return words


def _path_of(word: str) -> tuple[str, ...]:
    for urn in (USER, GROUP):
        if word.lower().startswith(f"{urn.lower()}:"):
            word = word[len(urn) + 1 :]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9$_-]*(\.[A-Za-z$][A-Za-z0-9_-]*)?", word):
        raise _bad_filter(f"{word[:100]!r} is no attribute")
    return tuple(word.lower().split("."))


def _value(word: str) -> Any:
    try:
        return msgspec.json.decode(word)
    except msgspec.DecodeError as error:
        raise _bad_filter(f"{word[:100]!r} is no value; text stands in quotes") from error


def _bad_filter(why: str) -> ScimError:
    return ScimError(400, f"the filter cannot be read: {why}", "invalidFilter")


def _reach(resource: Any, path: Sequence[str]) -> list[Any]:
    """Every value at a path; a list of objects without a sub-attribute means their `value`."""
    found = [resource]
    for name in path:
        below = []
        for each in found:
            if isinstance(each, dict):
                below += [value for key, value in each.items() if key.lower() == name]
        found = [value for each in below for value in (each if isinstance(each, list) else [each])]
    return [each.get("value") if isinstance(each, dict) and "value" in each else each for each in found]


def _compare(op: str, have: Any, want: Any, *, exact: bool) -> bool:
    if isinstance(have, str) and isinstance(want, str) and not exact:
        have, want = have.casefold(), want.casefold()
    match op:
        case "eq":
            return bool(have == want)
        case "ne":
            return bool(have != want)
    if not (isinstance(have, str) and isinstance(want, str)):
        return False
    return {"co": want in have, "sw": have.startswith(want), "ew": have.endswith(want), "gt": have > want,
            "ge": have >= want, "lt": have < want, "le": have <= want}[op]  # fmt: skip


class Operation(Struct, frozen=True):
    """One step of a PATCH. path: None, an attribute, or attribute, tests, sub-attribute."""

    op: str
    attribute: str | None
    tests: tuple[Test, ...]
    sub: str | None
    value: Any


_PATCH_PATH: Final = re.compile(r"([A-Za-z$][\w$-]*)(?:\[(.*)\])?(?:\.([A-Za-z$][\w-]*))?", re.DOTALL)


def parse_patch(body: Any) -> list[Operation]:
    """Raises: ScimError."""
    operations = _member(body, "Operations")
    if not isinstance(operations, list) or not 0 < len(operations) <= OPERATIONS_MAX:
        raise ScimError(400, f"Operations is a list of 1 to {OPERATIONS_MAX}", "invalidSyntax")
    return [_operation(each) for each in operations]


def _operation(said: Any) -> Operation:
    # Entra writes `Add`, `Replace`, `Remove`.
    op, path, value = str(_member(said, "op")).lower(), _member(said, "path"), _member(said, "value")
    if op not in ("add", "replace", "remove"):
        raise ScimError(400, f"{op[:40]!r} is no operation", "invalidSyntax")
    if path is None:
        if op == "remove":
            raise ScimError(400, "remove needs a path", "noTarget")
        if not isinstance(value, dict):
            raise ScimError(400, "without a path the value is an object", "invalidValue")
        return Operation(op, None, (), None, value)
    text = str(path)
    if text.lower().startswith((USER.lower() + ":", GROUP.lower() + ":")):
        text = text[len(USER if text.lower().startswith(USER.lower()) else GROUP) + 1 :]
    if text.lower().startswith(ENTERPRISE.lower()):
        return Operation(op, ENTERPRISE, (), text[len(ENTERPRISE) + 1 :] or None, value)
    found = _PATCH_PATH.fullmatch(text)
    if found is None or len(text) > FILTER_CHARS:
        raise ScimError(400, f"{text[:100]!r} is no path", "invalidPath")
    tests = parse_filter(found[2]) if found[2] is not None else ()
    return Operation(op, found[1], tests, found[3], value)


def apply(resource: dict[str, Any], operation: Operation) -> dict[str, Any]:
    """A resource with one step done. Names are found whatever their case, as RFC 7643 has it."""
    done = dict(resource)
    if operation.attribute is None:
        for name, value in operation.value.items():
            # `name.givenName` as a key comes from Entra.
            attribute, _, sub = (name, "", "") if name.startswith("urn:") else name.partition(".")
            done = apply(done, Operation(operation.op, attribute, (), sub or None, value))
        return done
    name = _known(done, operation.attribute)
    have = done.get(name)
    if operation.tests:
        done[name] = _apply_to_some(have, operation)
    elif operation.sub is not None:
        inner = dict(have) if isinstance(have, dict) else {}
        inner[_known(inner, operation.sub)] = None if operation.op == "remove" else operation.value
        done[name] = {key: value for key, value in inner.items() if value is not None}
    elif operation.op == "remove":
        # With a value, of a list: those alone (Entra).
        gone = _ids(operation.value) if operation.value is not None else None
        left = [] if gone is None else [each for each in _list(have) if not _ids([each]) & gone]
        done[name] = left or None
    elif operation.op == "add" and isinstance(have, list):
        known = _ids(have)
        new = [each for each in _list(operation.value) if not (_ids([each]) and _ids([each]) <= known)]
        done[name] = [*have, *new]
    elif isinstance(have, dict) and isinstance(operation.value, dict):
        done[name] = have | operation.value
    else:
        done[name] = operation.value
    return {key: value for key, value in done.items() if value is not None}


def _apply_to_some(have: Any, operation: Operation) -> list[Any]:
    """The elements of a list that the filter in the path means."""
    left: list[Any] = []
    met = False
    for each in _list(have):
        if not all(test.holds(each) for test in operation.tests):
            left.append(each)
            continue
        met = True
        if operation.op == "remove" and operation.sub is None:
            continue
        element = dict(each) if isinstance(each, dict) else {"value": each}
        if operation.sub is None:
            element |= operation.value if isinstance(operation.value, dict) else {"value": operation.value}
        else:
            element[operation.sub] = None if operation.op == "remove" else operation.value
        left.append({key: value for key, value in element.items() if value is not None})
    if not met and operation.op != "remove":
        # RFC 7644, section 3.5.2.3, would have noTarget for replace; Entra means: make it.
        made = {test.path[-1]: test.value for test in operation.tests if test.only is not None}
        new = operation.value if isinstance(operation.value, dict) else {operation.sub or "value": operation.value}
        left.append(made | new)
    return left


def _ids(value: Any) -> set[str]:
    return {str(each["value"]) for each in _list(value) if isinstance(each, dict) and "value" in each}


def _list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _known(have: dict[str, Any], name: str) -> str:
    return next((key for key in have if key.lower() == name.lower()), canonical(name))


_NAMES: Final = {name.lower(): name for name in (
    "userName", "externalId", "displayName", "givenName", "familyName", "nickName", "profileUrl", "userType",
    "preferredLanguage", "phoneNumbers", "x509Certificates",
)}  # fmt: skip


def canonical(name: str) -> str:
    return _NAMES.get(name.lower(), name)


def _member(body: Any, name: str) -> Any:
    if not isinstance(body, dict):
        raise ScimError(400, "is no JSON object", "invalidSyntax")
    return next((value for key, value in body.items() if key.lower() == name.lower()), None)


def member(body: dict[str, Any], name: str) -> Any:
    """An attribute, whatever its case."""
    return _member(body, name)


def truth(value: Any) -> bool:
    """Raises: ScimError. Entra sends "True" and "False" as text."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ScimError(400, "active is true or false", "invalidValue")
    return value


def text_of(body: dict[str, Any], name: str, most: int, *, needed: bool = False) -> str | None:
    """Raises: ScimError for what is no text of a fitting length."""
    value = _member(body, name)
    if value is None and not needed:
        return None
    if not isinstance(value, str) or not 0 < len(value.strip()) <= most:
        raise ScimError(400, f"{name} is text of 1 to {most} characters", "invalidValue")
    return value.strip()
