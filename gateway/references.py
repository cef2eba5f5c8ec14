"""Secrets that stay where they are kept: AWS Secrets Manager, GCP Secret Manager, Azure Key Vault, HashiCorp Vault.

Blocking, one HTTPS request each, no SDK but for the machine's own sign-in (botocore, google-auth, azure-identity, each
imported when it is needed). `VALUES` keeps what was read: the first reader waits, a refresh comes from the background,
and while a manager is away the last value stands. Sources, read 2026-11: Secrets Manager API reference, GetSecretValue;
Secret Manager REST v1, versions.access; Key Vault REST 7.4, Get Secret; Vault API, KV version 2 and AppRole.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import structlog

if TYPE_CHECKING:
    import httpx

log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 10.0
TTL_S: Final = 300.0
"""So old a value may be before the background reads it anew."""
RETRY_S: Final = 15.0
"""After a refresh that failed."""
_AZURE_SCOPE: Final = "https://vault.azure.net/.default"


class NotHad(Exception):
    """A reference that gives no value now. fix: what to do about it. Neither shows a secret."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix


Environ = Mapping[str, str]
Fetch = Callable[[str, Environ], str]


def aws_secrets_manager(rest: str, environ: Environ) -> str:
    """`NAME or ARN[?region=...][#field of the JSON in it]`."""
    from providers.auth.sigv4 import sign

    locator, field_ = _split(rest)
    name, _, query = locator.partition("?region=")
    parts = name.split(":")
    region = query or (parts[3] if parts[0] == "arn" and len(parts) > 3 else "")
    region = region or environ.get("AWS_REGION", "") or environ.get("AWS_DEFAULT_REGION", "")
    if not region:
        raise NotHad("no region", "write the whole ARN, ?region=... behind the name, or set AWS_REGION")
    url = environ.get("AWS_ENDPOINT_URL_SECRETS_MANAGER") or f"https://secretsmanager.{region}.amazonaws.com"
    body = json.dumps({"SecretId": name}).encode()
    headers: list[tuple[str, str]] = [
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-target", "secretsmanager.GetSecretValue"),
    ]
    url = url.rstrip("/") + "/"
    signed = sign(
        "POST",
        url,
        headers,
        body,
        keys=_aws_keys(environ),
        region=region,
        service="secretsmanager",
        now_s=time.time(),
    )
    said = _asked("POST", url, [*headers, *signed], body, "AWS Secrets Manager", "secretsmanager:GetSecretValue")
    value = said.get("SecretString")
    if value is None:
        try:
            value = base64.b64decode(said.get("SecretBinary", ""), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise NotHad("the secret is no text", "store a string or a JSON object") from None
    return _field(str(value), field_)


def gcp_secret_manager(rest: str, environ: Environ) -> str:
    """`projects/P/secrets/S[/versions/V][#field]`; without a version the latest."""
    from providers.auth.google import google_token
    from providers.base import Credential

    locator, field_ = _split(rest)
    if not locator.startswith("projects/") or "/secrets/" not in locator:
        raise NotHad("is no secret's name", "write gcp-secret-manager:projects/PROJECT/secrets/NAME")
    if "/versions/" not in locator:
        locator += "/versions/latest"
    key_file = environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    token = _signed_in(lambda: google_token(Credential({"credentials_file": key_file} if key_file else {})).fetch())
    # gcloud's own name for another address.
    root = environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER") or "https://secretmanager.googleapis.com/"
    url = f"{root.rstrip('/')}/v1/{quote(locator, safe='/-_')}:access"
    said = _asked("GET", url, [("authorization", f"Bearer {token}")], b"", "GCP Secret Manager", "secretAccessor")
    try:
        value = base64.b64decode(said["payload"]["data"]).decode()
    except (KeyError, TypeError, binascii.Error, UnicodeDecodeError):
        raise NotHad("the secret is no text", "store a string or a JSON object") from None
    return _field(value, field_)


def azure_key_vault(rest: str, environ: Environ) -> str:
    """`VAULT/NAME[/VERSION][#field]`, or the secret's whole https:// identifier in place of VAULT/NAME."""
    from providers.auth.entra import entra_token
    from providers.base import Credential

    locator, field_ = _split(rest)
    if "://" not in locator:
        vault, _, name = locator.partition("/")
        if not vault or not name:
            raise NotHad("is no secret's name", "write azure-key-vault:VAULT/NAME, or the secret's identifier")
        locator = f"https://{vault}.vault.azure.net/secrets/{name}"
    names = {"tenant_id": "AZURE_TENANT_ID", "client_id": "AZURE_CLIENT_ID", "client_secret": "AZURE_CLIENT_SECRET"}
    said_fields = {name: environ[variable] for name, variable in names.items() if environ.get(variable)}
    fields = said_fields if len(said_fields) == len(names) else {}
    token = _signed_in(lambda: entra_token(Credential(fields), _AZURE_SCOPE).fetch())
    url = f"{locator}?api-version=7.4"
    said = _asked("GET", url, [("authorization", f"Bearer {token}")], b"", "Azure Key Vault", "Key Vault Secrets User")
    return _field(str(said.get("value", "")), field_)


def vault_kv(rest: str, environ: Environ) -> str:
    """`MOUNT/PATH#FIELD` of a KV version 2 engine, as `vault kv get -field=FIELD MOUNT/PATH` has it. Where it is and
    who we are is said by Vault's own variables: VAULT_ADDR, VAULT_NAMESPACE, and VAULT_TOKEN or, for AppRole,
    VAULT_ROLE_ID and VAULT_SECRET_ID."""
    locator, field_ = _split(rest)
    mount, _, path = locator.partition("/")
    if not mount or not path:
        raise NotHad("is no secret's path", "write vault:MOUNT/PATH#FIELD, for instance vault:secret/openai#api_key")
    root = environ.get("VAULT_ADDR", "").rstrip("/")
    if urlsplit(root).scheme not in ("http", "https"):
        raise NotHad("VAULT_ADDR is not set", "export VAULT_ADDR=https://vault.example:8200")
    headers = [("x-vault-namespace", environ["VAULT_NAMESPACE"])] if environ.get("VAULT_NAMESPACE") else []
    token = environ.get("VAULT_TOKEN", "")
    if not token:
        role, secret = environ.get("VAULT_ROLE_ID", ""), environ.get("VAULT_SECRET_ID", "")
        if not role:
            raise NotHad("nobody to sign in to Vault as", "export VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID")
        body = json.dumps({"role_id": role, "secret_id": secret}).encode()
        said = _asked("POST", f"{root}/v1/auth/approle/login", headers, body, "Vault", "the AppRole's ids")
        token = str(said.get("auth", {}).get("client_token", ""))
    url = f"{root}/v1/{quote(mount)}/data/{quote(path, safe='/')}"
    said = _asked("GET", url, [*headers, ("x-vault-token", token)], b"", "Vault", "a policy that reads the path")
    data = (said.get("data") or {}).get("data")
    if not isinstance(data, dict) or not data:
        raise NotHad("the secret has no data", "is the engine KV version 2, and the newest version not deleted?")
    if not field_ and len(data) > 1:
        raise NotHad("the secret has several fields", f"name one: vault:{locator}#{sorted(data)[0]}")
    return _field(json.dumps(data), field_ or next(iter(data)))


SCHEMES: Final[Mapping[str, Fetch]] = {
    "aws-secretsmanager": aws_secrets_manager,
    "gcp-secret-manager": gcp_secret_manager,
    "azure-key-vault": azure_key_vault,
    "vault": vault_kv,
}
# What they read of the environment, so that it can be handed on, or kept from children.
VARIABLES: Final = (
    "AWS_", "VAULT_", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "AZURE_",
)  # fmt: skip


@dataclass
class _Value:
    reference: str
    environ: Environ = field(repr=False)
    value: str = field(repr=False, default="")
    due_s: float = 0.0
    problem: str = ""


class Values:
    """What was read, by reference: process-wide, as the secrets are. clock: monotonic seconds."""

    def __init__(self, ttl_s: float = TTL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._known: dict[str, _Value] = {}
        self._lock = threading.Lock()

    def get(self, reference: str, environ: Environ) -> str:
        """Blocks where nobody has asked for it before. Raises: NotHad."""
        with self._lock:
            known = self._known.get(reference)
        if known is None:
            known = _Value(reference, environ, _fetch(reference, environ), self._clock() + self._ttl_s)
            with self._lock:
                known = self._known.setdefault(reference, known)
        return known.value

    def refresh(self) -> bool:
        """Read anew what is due. Blocks: for a thread of the background. A reader that fails leaves the old value.

        Returns: whether any value is another one now."""
        changed = False
        with self._lock:
            due = [known for known in self._known.values() if known.due_s <= self._clock()]
        for known in due:
            try:
                value = _fetch(known.reference, known.environ)
            except NotHad as error:
                if not known.problem:
                    log.warning("secret not refreshed, the last value stands", reference=known.reference,
                                reason=error.problem, fix=error.fix)  # fmt: skip
                known.problem, known.due_s = error.problem, self._clock() + min(RETRY_S, self._ttl_s)
                continue
            changed = changed or value != known.value
            known.value, known.problem, known.due_s = value, "", self._clock() + self._ttl_s
        return changed

    def problem(self, reference: str) -> str:
        """Why its last refresh failed; empty: it did not."""
        known = self._known.get(reference)
        return known.problem if known is not None else ""

    def forget(self) -> None:
        """The next reader asks the manager again."""
        with self._lock:
            self._known.clear()


VALUES: Final = Values()


def is_remote(reference: str) -> bool:
    return reference.partition(":")[0] in SCHEMES


def _fetch(reference: str, environ: Environ) -> str:
    """Raises: NotHad."""
    scheme, _, rest = reference.partition(":")
    value = SCHEMES[scheme](rest, environ)
    if not value:
        raise NotHad("the secret is empty", "store a value there")
    return value


def _split(rest: str) -> tuple[str, str]:
    """What stands before the last #, and the field's name behind it."""
    locator, mark, name = rest.rpartition("#")
    return (locator, name) if mark else (rest, "")


def _field(value: str, name: str) -> str:
    if not name:
        return value
    try:
        members = json.loads(value)
    except ValueError:
        members = None
    if not isinstance(members, dict):
        raise NotHad("the secret is no JSON object", f"leave #{name} out, or store an object with that field")
    if not isinstance(members.get(name), str | int):
        raise NotHad(f"the secret has no field {name!r}", f"it has {', '.join(sorted(members)) or 'none'}")
    return str(members[name])


def _aws_keys(environ: Environ) -> Any:
    from providers.auth.aws import Chain
    from providers.auth.sigv4 import Keys

    access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if access and secret:
        return Keys(access, secret, environ.get("AWS_SESSION_TOKEN") or None)
    return _signed_in(Chain(environ.get("AWS_PROFILE")))


def _signed_in(sign_in: Callable[[], Any]) -> Any:
    """Raises: NotHad in place of what a sign-in raises."""
    from providers.errors import ProviderError

    try:
        found = sign_in()
    except ProviderError as error:
        raise NotHad(error.message, "sign this machine in, or give it a role") from error
    return getattr(found, "text", found)


def _asked(method: str, url: str, headers: list[tuple[str, str]], body: bytes, who: str, needs: str) -> dict[str, Any]:
    """Raises: NotHad, which quotes no body: managers are known to repeat what they were asked with."""
    import httpx  # Here: most gateways keep no secret elsewhere.

    try:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False) as client:
            answer = client.request(method, url, headers=headers, content=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = f"{who} cannot be reached ({type(error).__name__})"
        raise NotHad(problem, "check its address and the network") from error
    if answer.status_code == 200:
        try:
            said = answer.json()
        except ValueError:
            said = None
        if isinstance(said, dict):
            return said
        raise NotHad(f"{who} answered with something else than JSON", "check its address")
    kind = _kind_of(answer)
    if answer.status_code == 404 or "NotFound" in kind:
        raise NotHad(f"{who} knows no such secret", "check its name, project or region, and version")
    if answer.status_code in (400, 401, 403):
        raise NotHad(f"{who} refuses us ({answer.status_code} {kind})".replace(" )", ")"), f"grant {needs}")
    raise NotHad(f"{who} answered {answer.status_code}", "try again later; the last value stands meanwhile")


def _kind_of(answer: httpx.Response) -> str:
    """AWS tells the kind of its error in `__type`."""
    try:
        kind = answer.json().get("__type", "")
    except (ValueError, AttributeError):
        return ""
    return str(kind).rpartition("#")[2][:64]
