"""Our signatures against botocore's, made at the same moment; and what verification lets through."""

import base64
import datetime
from unittest import mock
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from providers.auth.sigv4 import Keys, host_of, mint_bearer, scope_of, sign, verify

NOW_S = 1_795_000_000.0
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"

SEGMENTS = st.text("abzAZ09-._~%:/+@é", max_size=12)
TOKENS = st.none() | st.text("abcXYZ019+/=", min_size=1, max_size=40)


def at(now_s: float):
    moment = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    return mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment)


def theirs(method, url, headers, body, keys, region, service):
    request = AWSRequest(method=method, url=url, headers=dict(headers), data=body)
    with at(NOW_S):
        SigV4Auth(
            Credentials(keys.access_key_id, keys.secret_access_key, keys.session_token), service, region
        ).add_auth(request)
    return request.headers


def quoted(text: str) -> str:
    return quote(text, safe="/-._~")


@given(
    method=st.sampled_from(["POST", "GET"]),
    path=SEGMENTS,
    query=st.lists(
        st.tuples(st.sampled_from(["a", "b", "Action", "x%20y"]), st.sampled_from(["", "1", "%2F"])), max_size=3
    ),
    body=st.binary(max_size=60),
    port=st.sampled_from(["", ":8443"]),
    token=TOKENS,
    region=st.sampled_from(["us-east-1", "eu-central-1"]),
    service=st.sampled_from(["bedrock", "sagemaker", "bedrock-mantle"]),
    extra=st.sampled_from([(), (("x-amzn-bedrock-trace", "ENABLED"), ("x-amz-meta", "a   b ")), (("accept", "*/*"),)]),
)
def test_signatures_equal_botocores(method, path, query, body, port, token, region, service, extra):
    url = f"https://bedrock-runtime.us-east-1.amazonaws.com{port}/model/{quoted(path)}/converse"
    if query:
        url += "?" + "&".join(f"{name}={value}" for name, value in query)
    keys = Keys("AKIDEXAMPLE", SECRET, token)
    signable = [("content-type", "application/json"), *((n, v) for n, v in extra if n.startswith("x-amz-"))]
    ours = dict(sign(method, url, signable, body, keys=keys, region=region, service=service, now_s=NOW_S))
    expected = theirs(method, url, signable, body, keys, region, service)
    assert ours["authorization"] == expected["Authorization"]
    assert ours.get("x-amz-security-token") == expected.get("X-Amz-Security-Token") == token

    received = dict(signable) | ours | {"host": host_of(url), "user-agent": "some/1"}
    raw_path, _, raw_query = url.split("amazonaws.com" + port, 1)[1].partition("?")
    assert verify(method, raw_path, raw_query, received, body, SECRET, NOW_S + 10)


def signed_by_botocore(body=b'{"a":1}', now_s=NOW_S):
    """What a boto3 client sends to a gateway on loopback."""
    request = AWSRequest(
        method="POST",
        url="http://127.0.0.1:4100/model/anthropic.claude-3%3A0/converse",
        headers={"Content-Type": "application/json", "User-Agent": "Boto3", "X-Amzn-Bedrock-Trace": "ENABLED"},
        data=body,
    )
    with at(now_s):
        SigV4Auth(Credentials("fbx_key", SECRET), "bedrock", "us-east-1").add_auth(request)
    headers = {name.lower(): value for name, value in request.headers.items()} | {"host": "127.0.0.1:4100"}
    return "POST", "/model/anthropic.claude-3%3A0/converse", "", headers, body


def test_a_request_that_boto3_signed_is_verified():
    assert verify(*signed_by_botocore(), SECRET, NOW_S)
    scope = scope_of(signed_by_botocore()[3]["authorization"])
    assert scope is not None
    assert (scope.access_key_id, scope.region, scope.service) == ("fbx_key", "us-east-1", "bedrock")


def edited(**changes):
    method, path, query, headers, body = signed_by_botocore()
    names = {"method": method, "path": path, "query": query, "headers": headers, "body": body}
    for name, change in changes.items():
        names[name] = change(names[name]) if callable(change) else change
    return tuple(names.values())


@pytest.mark.parametrize(
    "request_",
    [
        edited(method="PUT"),
        edited(path="/model/anthropic.claude-3%3A0/invoke"),
        edited(query="a=1"),
        edited(body=b'{"a":2}'),
        edited(headers=lambda h: h | {"host": "evil"}),
        edited(headers=lambda h: h | {"x-amz-date": "20200101T000000Z"}),
        edited(headers=lambda h: h | {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}),
        edited(headers=lambda h: {n: v for n, v in h.items() if n != "x-amz-date"}),
        edited(headers=lambda h: h | {"authorization": h["authorization"].replace("host;", "")}),
        edited(headers=lambda h: h | {"authorization": "Bearer x"}),
        edited(headers=lambda h: h | {"authorization": h["authorization"].replace("us-east-1", "us-west-2")}),
        edited(headers=lambda h: h | {"x-amzn-bedrock-trace": "DISABLED"}),
    ],
)
def test_nothing_signed_may_be_changed(request_):
    assert not verify(*request_, SECRET, NOW_S)


@pytest.mark.parametrize(("skew_s", "good"), [(0, True), (299, True), (-299, True), (301, False), (-301, False)])
def test_an_old_signature_is_not_replayed(skew_s, good):
    assert verify(*signed_by_botocore(), SECRET, NOW_S + skew_s) is good


def test_another_secret_does_not_do():
    assert not verify(*signed_by_botocore(), SECRET + "x", NOW_S)


@given(st.text(max_size=200))
def test_any_authorization_text_is_read_or_refused(text):
    scope_of(text)
    assert not verify(*edited(headers=lambda h: h | {"authorization": text}), SECRET, NOW_S)


@pytest.mark.parametrize("token", [None, "session/token+=="])
@pytest.mark.parametrize("service", ["bedrock", "sagemaker"])
def test_a_minted_bearer_is_the_presigned_url_that_botocore_makes(service, token):
    host = f"{service}.amazonaws.com"
    request = AWSRequest(
        method="POST", url=f"https://{host}/", headers={"host": host}, params={"Action": "CallWithBearerToken"}
    )
    with at(NOW_S):
        SigV4QueryAuth(Credentials("AKID", SECRET, token), service, "us-east-1", expires=43200).add_auth(request)
    minted = mint_bearer(Keys("AKID", SECRET, token), service=service, region="us-east-1", now_s=NOW_S)
    prefix = f"{service}-api-key-"
    assert minted.startswith(prefix)
    assert base64.b64decode(minted.removeprefix(prefix)).decode() == request.url.removeprefix("https://") + "&Version=1"


def test_no_secret_shows():
    assert SECRET not in repr(Keys("AKID", SECRET, "token"))
    assert "token" not in repr(Keys("AKID", SECRET, "token"))
