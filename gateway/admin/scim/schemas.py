"""What this server says of itself: ServiceProviderConfig, ResourceTypes, Schemas (RFC 7643, sections 5 to 7)."""

from __future__ import annotations

from typing import Any, Final

from gateway.admin.scim.wire import ENTERPRISE, GROUP, USER

_CONFIG: Final = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"
_TYPE: Final = "urn:ietf:params:scim:schemas:core:2.0:ResourceType"
_SCHEMA: Final = "urn:ietf:params:scim:schemas:core:2.0:Schema"


def config(at: str, count_max: int) -> dict[str, Any]:
    off = {"supported": False}
    return {
        "schemas": [_CONFIG],
        "patch": {"supported": True},
        "bulk": {"supported": False, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": True, "maxResults": count_max},
        "changePassword": off,
        "sort": off,
        "etag": off,
        "authenticationSchemes": [
            {
                "type": "oauthbearertoken",
                "name": "SCIM token",
                "description": "A token that an owner or admin makes for provisioning, sent as Bearer.",
                "primary": True,
            }
        ],
        "meta": {"resourceType": "ServiceProviderConfig", "location": f"{at}/ServiceProviderConfig"},
    }


def types(at: str) -> list[dict[str, Any]]:
    return [
        {
            "schemas": [_TYPE],
            "id": name,
            "name": name,
            "endpoint": f"/{name}s",
            "schema": schema,
            "schemaExtensions": [{"schema": each, "required": False} for each in more],
            "meta": {"resourceType": "ResourceType", "location": f"{at}/ResourceTypes/{name}"},
        }
        for name, schema, more in (("User", USER, [ENTERPRISE]), ("Group", GROUP, []))
    ]


def all_of(at: str) -> list[dict[str, Any]]:
    parts = [_text("value"), _text("type"), _text("display"), _field("primary", "boolean")]
    person = [
        _text("userName", required=True, uniqueness="server"),
        _text("externalId", exact=True),
        _complex("name", [_text("formatted"), _text("familyName"), _text("givenName")]),
        _text("displayName"),
        _text("title"),
        _text("userType"),
        _text("preferredLanguage"),
        _text("locale"),
        _text("timezone"),
        _field("active", "boolean"),
        _complex("emails", parts, several=True),
        _complex("phoneNumbers", parts, several=True),
        _complex("groups", [_text("value"), _text("display"), _text("$ref")], several=True, writable=False),
    ]
    group = [
        _text("displayName", required=True, uniqueness="server"),
        _text("externalId", exact=True),
        _complex("members", [_text("value"), _text("display"), _text("$ref")], several=True),
    ]
    enterprise = [_text("employeeNumber"), _text("costCenter"), _text("organization"), _text("division"),
                  _text("department"), _complex("manager", [_text("value"), _text("displayName")])]  # fmt: skip
    return [
        {
            "schemas": [_SCHEMA],
            "id": urn,
            "name": name,
            "description": about,
            "attributes": attributes,
            "meta": {"resourceType": "Schema", "location": f"{at}/Schemas/{urn}"},
        }
        for urn, name, about, attributes in (
            (USER, "User", "A person who may sign in", person),
            (GROUP, "Group", "People whose roles are granted together", group),
            (ENTERPRISE, "EnterpriseUser", "Kept as given", enterprise),
        )
    ]


def _field(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "multiValued": False, "required": False, "mutability": "readWrite",
            "returned": "default", **more}  # fmt: skip


def _text(name: str, *, required: bool = False, exact: bool = False, uniqueness: str = "none") -> dict[str, Any]:
    return _field(name, "string", required=required, caseExact=exact, uniqueness=uniqueness)


def _complex(
    name: str, inside: list[dict[str, Any]], *, several: bool = False, writable: bool = True
) -> dict[str, Any]:
    mutability = "readWrite" if writable else "readOnly"
    return _field(name, "complex", multiValued=several, mutability=mutability, subAttributes=inside)
