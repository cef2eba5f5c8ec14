"""Settings of signing in to the dashboard and the admin API: providers of identities, and what their groups may do."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from msgspec import Meta

from gateway.config_parts import Secret
from gateway.sections import Section

RoleName = Literal["owner", "admin", "finance", "team_lead", "developer", "viewer"]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class GrantSettings(Section, frozen=True):
    """Who is in a group holds a role, as long as they are in it."""

    group: Annotated[str, Meta(min_length=1, max_length=255)]
    """As the claim or SCIM's displayName says it."""
    role: RoleName
    scope: Literal["installation", "organisation", "team", "project"] = "installation"
    scope_id: str = ""
    """Of the organisation, team or project."""
    source: str = "*"
    """Whose group: a provider's name, `scim`, or `*` for any."""


class OidcSettings(Section, frozen=True):
    """A provider of identities that speaks OpenID Connect. Register <office address>/admin/v1/auth/oidc/<name>/callback
    there as redirect address."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)]
    issuer: str
    """As the provider's own discovery document says it, to the last character."""
    client_id: str
    client_secret: Secret | None = None
    """None: a public client, which PKCE alone protects."""
    label: str = ""
    """What the button says. Empty: the name."""
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    groups_claim: str = "groups"
    """Of the ID token, or of the userinfo endpoint where the token has none. A dot goes into an object."""
    create: bool = True
    """Who signs in for the first time becomes a person here. False: only who is known already gets in."""
    match: Literal["subject", "email"] = "subject"
    """email: who is known here by a name that is the verified address is taken for the same one. Say so only of a
    provider that you trust with every address."""
    domains: tuple[str, ...] = ()
    """Verified addresses of these domains alone get in. Empty: whoever the provider lets in."""
    trust_email: bool = False
    """Take addresses as verified where the provider says nothing of it (Entra)."""
    default_role: RoleName | None = None
    """Over the installation, for who is in no group that is granted anything. None: they do not get in."""
    session_hours: Annotated[int, Meta(ge=1, le=336)] = 24
    """How long until one has to come by the provider again, where the groups are looked at anew."""
    logout: bool = True
    """Signing out here signs out there too, if the provider can."""
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1)] = ("RS256", "ES256", "PS256", "EdDSA")

    @property
    def source(self) -> str:
        return f"oidc:{self.name}"


class AdminSettings(Section, frozen=True):
    oidc: tuple[OidcSettings, ...] = ()
    grants: tuple[GrantSettings, ...] = ()
    passwords: bool = True
    """False: nobody signs in with one; links that an owner prints still work."""
    passkeys: bool = True


def faults(admin: AdminSettings) -> list[tuple[str, str, str]]:
    """What types cannot say: (dotted name, problem, fix)."""
    found: list[tuple[str, str, str]] = []
    if admin.oidc and find_spec("joserfc") is None:
        found.append(("admin.oidc", "needs a library that is not here", "pip install 'farebox[sso]'"))
    names: set[str] = set()
    for at, each in enumerate(admin.oidc):
        dotted = f"admin.oidc[{at}]"
        if each.name in names:
            found.append((f"{dotted}.name", f"{each.name!r} is there twice", "give each provider a name of its own"))
        names.add(each.name)
        if not is_safe(each.issuer):
            found.append((f"{dotted}.issuer", "is no https address", "begin it with https://"))
        if "openid" not in each.scopes:
            found.append((f"{dotted}.scopes", "lacks openid", "add it: without, a provider sends no ID token"))
    for at, grant in enumerate(admin.grants):
        dotted = f"admin.grants[{at}]"
        if (grant.scope == "installation") is bool(grant.scope_id):
            fix = "name the organisation, team or project; for the installation leave it out"
            found.append((f"{dotted}.scope_id", f"does not go with scope {grant.scope!r}", fix))
        if grant.source not in ("*", "scim", *names):
            found.append((f"{dotted}.source", f"no provider is called {grant.source!r}", "one of them, scim, or *"))
    return found


def can_passkeys(admin: AdminSettings) -> bool:
    return admin.passkeys and find_spec("webauthn") is not None


def is_safe(url: str) -> bool:
    """Whether what goes there cannot be read on the way: TLS, or this machine."""
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0].rpartition("@")[2]
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return (scheme == "https" and bool(name)) or (scheme == "http" and name in ("127.0.0.1", "localhost", "::1"))
