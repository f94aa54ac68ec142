"""Verification of OpenID Connect tokens: good tokens of a real issuer, and bad tokens."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from werkzeug.test import Client

import tenantry.middleware.issuer
from conftest import KEY
from issuers import Issuer, new_key, part, running_issuer
from tenantry.host import Host
from tenantry.middleware.authentication import IssuerDownError, TokenRefusedError
from tenantry.middleware.issuer import IssuerError
from tenantry.middleware.oidc import LEEWAY_S, TokenCheck, parse_keys
from tenantry.tenants.openid import OpenId
from tenantry.tenants.validation import parse_tenant

PLANTED = "planted-by-a-stranger"


@pytest.fixture(name="issuers", scope="module")
def _issuers() -> Iterator[dict[str, Issuer]]:
    """Return two running issuers. Tests must not change the issuers."""
    with ExitStack() as running:
        yield {name: running.enter_context(running_issuer()) for name in ("acme", "globex")}


@pytest.fixture(name="issuer")
def _issuer(issuers: dict[str, Issuer]) -> Issuer:
    """Return acme's issuer."""
    return issuers["acme"]


@pytest.fixture(name="check")
def _check(issuer: Issuer) -> TokenCheck:
    """Return acme's token check, for the audiences `shop` and `shop-2`."""
    return check_of(issuer)


def check_of(issuer: Issuer, **values: Any) -> TokenCheck:
    """Return a check for tokens of an issuer."""
    return TokenCheck(OpenId(issuer.url, ("shop", "shop-2"), **values), "acme")


def refusal(check: TokenCheck, token: str) -> TokenRefusedError:
    """Return the error with which a token is refused."""
    with pytest.raises(TokenRefusedError) as raised:
        check(token)
    return raised.value


KEYS: dict[str, Callable[[], Key]] = {
    "RS256": lambda: RSAKey.generate_key(2048, {"kid": "RS256"}),
    "PS384": lambda: RSAKey.generate_key(2048, {"kid": "PS384", "use": "sig", "alg": "PS384"}),
    "ES256": lambda: ECKey.generate_key("P-256", {"kid": "ES256"}),
    "ES512": lambda: ECKey.generate_key("P-521", {"kid": "ES512"}),
    "EdDSA": lambda: OKPKey.generate_key("Ed25519", {"kid": "EdDSA"}),
    "Ed25519": lambda: OKPKey.generate_key("Ed25519", {"kid": "Ed25519"}),
}


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")  # signing raises the exception
@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_signed_with_each_kind_of_key_is_accepted(algorithm: str) -> None:
    """A token is accepted for each algorithm; the key is read from the issuer over HTTP."""
    with running_issuer() as issuer:
        issuer.keys.append(KEYS[algorithm]())
        token = issuer.token(issuer.keys[1], header={"alg": algorithm})

        assert "ada" == check_of(issuer)(token)["sub"]


def test_variants_that_real_issuers_send_are_accepted(issuer: Issuer, check: TokenCheck) -> None:
    """Several audiences, `at+JWT`, unknown headers and a missing `nbf` are accepted."""
    token = issuer.token(
        header={"typ": "at+JWT", "x5t": "AAAA", "nonce": "n"}, aud=["other", "shop-2"], nbf=None
    )

    assert ["other", "shop-2"] == check(token)["aud"]


def test_a_token_without_kid_is_accepted_if_there_is_one_key(
    issuer: Issuer, check: TokenCheck
) -> None:
    """An issuer with one key may leave out `kid` (OpenID Connect Core §10.1)."""
    assert "ada" == check(issuer.token(header={"kid": None}))["sub"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": -LEEWAY_S}, "expired_token exp"),
        ({"exp": None}, "missing_claim exp"),
        ({"exp": "never"}, "invalid_claim exp"),
        ({"exp": float("nan")}, "invalid_claim exp"),
        ({"nbf": LEEWAY_S + 9}, "invalid_claim nbf"),
        ({"iat": LEEWAY_S + 9}, "invalid_claim iat"),
        ({"aud": "else"}, "invalid_claim aud"),
        ({"aud": ["else"]}, "invalid_claim aud"),
        ({"aud": [["shop"]]}, "invalid_claim aud"),
        ({"aud": None}, "missing_claim aud"),
        ({"iss": "https://else.test"}, "invalid_claim iss"),
        ({"iss": None}, "missing_claim iss"),
        ({"sub": None}, "missing_claim sub"),
        ({"sub": 7}, "invalid_claim sub"),
        ({"sub": "a" * 256}, "its sub is too long"),
        ({"sub": "ada\r\nX: y"}, "its sub has control characters"),
        ({"header": {"typ": "logout+jwt"}}, "its typ is not that of an access token"),
    ],
)
def test_a_token_for_another_purpose_is_refused(
    issuer: Issuer, check: TokenCheck, changes: dict[str, Any], reason: str
) -> None:
    """A signed token is refused if its time, audience, issuer, subject or type is wrong."""
    now = int(time.time())
    times = {
        name: now + value
        for name, value in changes.items()
        if name in ("exp", "nbf", "iat") and isinstance(value, int)
    }

    error = refusal(check, issuer.token(**changes | times))

    subject = changes.get("sub", "ada")
    name = subject[:255] if isinstance(subject, str) else ""
    assert (reason, name, "") == (str(error), error.client, error.claimed)


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_clocks_may_differ_by_less_than_leeway_s(
    issuer: Issuer, check: TokenCheck, claim: str
) -> None:
    """A token is accepted if a time in the token is wrong by less than `LEEWAY_S`."""
    offset = 10 - LEEWAY_S if claim == "exp" else LEEWAY_S - 10

    assert "ada" == check(issuer.token(**{claim: int(time.time()) + offset}))["sub"]


@pytest.mark.parametrize(
    ("found", "is_good"),
    [
        ({"role": "shop", "ok": True}, True),
        ({"role": ["x", "admin"], "ok": [True]}, True),
        ({"role": "shop"}, False),
        ({"role": "shop", "ok": 1}, False),
        ({"role": "Shop", "ok": True}, False),
        ({"role": {"shop": 1}, "ok": True}, False),
        ({"role": [["shop"]], "ok": True}, False),
    ],
)
def test_required_claims_must_be_there(
    issuer: Issuer, found: dict[str, Any], is_good: bool
) -> None:
    """Each required claim must be a required value, or a list that contains a required value."""
    check = check_of(issuer, claims=(("role", ("shop", "admin")), ("ok", (True,))))
    token = issuer.token(**found)

    if is_good:
        assert "ada" == check(token)["sub"]
    else:
        assert "does not have a required value" in str(refusal(check, token))


@pytest.mark.parametrize(
    ("name", "wanted", "found", "is_good"),
    [
        ("scope", ("shop:read",), {"scope": "openid shop:read email"}, True),
        ("scope", ("shop:read",), {"scope": "openid shop:read-all"}, False),
        ("scope", ("b a",), {"scope": "a  b c"}, True),
        ("scope", ("a b",), {"scope": "a c"}, False),
        ("scope", ("a b", "c"), {"scope": "a c"}, True),
        ("scope", ("a",), {"scope": ["a", "b"]}, True),
        ("scp", ("a",), {"scp": "b a"}, True),
        ("scope", (1,), {"scope": "1"}, False),
        ("scope", ("a",), {"scope": {"a": 1}}, False),
        ("group", ("admin",), {"group": "not admin"}, False),
        ("realm_access.roles", ("shop",), {"realm_access": {"roles": ["x", "shop"]}}, True),
        ("realm_access.roles", ("shop",), {"realm_access": {"roles": ["x"]}}, False),
        ("realm_access.roles", ("shop",), {"realm_access": ["roles", "shop"]}, False),
        ("realm_access.roles", ("shop",), {"realm_access": "shop"}, False),
        ("realm_access.scope", ("a",), {"realm_access": {"scope": "b a"}}, True),
        ("access.my.app.roles", ("a",), {"access": {"my.app": {"roles": ["a"]}}}, True),
        ("https://example.org/role", ("a",), {"https://example.org/role": "a"}, True),
        ("a.b", ("x",), {"a.b": "y", "a": {"b": "x"}}, False),
    ],
)
def test_a_required_claim_can_be_words_or_nested(
    issuer: Issuer, name: str, wanted: tuple[Any, ...], found: dict[str, Any], is_good: bool
) -> None:
    """`scope` is a list of words, a dot selects a value inside a claim, and an exact name wins."""
    check = check_of(issuer, claims=((name, wanted),))
    token = issuer.token(**found)

    if is_good:
        assert "ada" == check(token)["sub"]
    else:
        assert "does not have a required value" in str(refusal(check, token))


def _unsigned(issuer: Issuer, algorithm: object) -> str:
    return f"{part({'alg': algorithm, 'kid': 'one'})}.{part(issuer.claims(sub=PLANTED))}."


def _signed_with_public_key(issuer: Issuer) -> str:
    """Sign a token with the public key, which everybody has, as with a shared secret."""
    secret = OctKey.import_key(json.dumps(issuer.keys[0].as_dict(private=False)).encode())
    return issuer.token(secret, header={"alg": "HS256", "kid": "one"}, sub=PLANTED)


def _tampered(issuer: Issuer) -> str:
    head, _, signature = issuer.token().split(".")
    return f"{head}.{part(issuer.claims(sub=PLANTED))}.{signature}"


HEADER = {"alg": "ES256", "kid": "one"}


def _claims(issuer: Issuer) -> bytes:
    return json.dumps(issuer.claims(sub=PLANTED)).encode()


FORGED: dict[str, Callable[[Issuer], str]] = {
    "none": lambda issuer: _unsigned(issuer, "none"),
    "None": lambda issuer: _unsigned(issuer, "None"),
    "alg missing": lambda issuer: _unsigned(issuer, None),
    "alg is a list": lambda issuer: _unsigned(issuer, ["ES256"]),
    "signature missing": lambda issuer: _unsigned(issuer, "ES256"),
    "HS256 with the public key": _signed_with_public_key,
    "another kind of key": lambda issuer: _unsigned(issuer, "RS256") + "AAAA",
    "payload replaced": _tampered,
    "another key with a known kid": lambda issuer: issuer.token(new_key("one"), sub=PLANTED),
    "unknown kid": lambda issuer: issuer.token(new_key("else"), sub=PLANTED),
    "key in the header": lambda issuer: issuer.token(
        key := new_key("mine"), header={"jwk": key.as_dict(private=False)}, sub=PLANTED
    ),
    "key URL in the header": lambda issuer: issuer.token(
        new_key("mine"), header={"jku": "http://127.0.0.1:9/keys"}, sub=PLANTED
    ),
    "kid is a list": lambda issuer: issuer.signed(
        {"alg": "ES256", "kid": ["one"]}, _claims(issuer)
    ),
    "crit": lambda issuer: issuer.signed(HEADER | {"crit": ["x"], "x": 1}, _claims(issuer)),
    "crit is empty": lambda issuer: issuer.signed(HEADER | {"crit": []}, _claims(issuer)),
    "crit is null": lambda issuer: issuer.signed(HEADER | {"crit": None}, _claims(issuer)),
    "crit names alg": lambda issuer: issuer.signed(HEADER | {"crit": ["alg"]}, _claims(issuer)),
    "b64 is true": lambda issuer: issuer.signed(
        HEADER | {"crit": ["b64"], "b64": True}, _claims(issuer)
    ),
    "b64": lambda issuer: issuer.signed(HEADER | {"crit": ["b64"], "b64": 0}, _claims(issuer)),
    "typ is a list": lambda issuer: issuer.signed(HEADER | {"typ": []}, _claims(issuer)),
    "header is a string": lambda _: f"{part('alg')}.{part({})}.AAAA",
    "header is a number": lambda _: f"{part(7)}.{part({})}.AAAA",
    "header is not base64": lambda _: "!!!.!!!.!!!",
    "header too large": lambda _: f"{part({'alg': 'ES256', 'x': 'x' * 5000})}.{part({})}.AAAA",
    "header too deep": lambda _: f"{part(b'[' * 1500)}.{part({})}.AAAA",
    "two parts": lambda _: "a.b",
    "five parts": lambda _: "a.b.c.d.e",
    "only dots": lambda _: "..",
    "not ASCII": lambda _: "é.é.é",
    "payload is a list": lambda issuer: issuer.signed(HEADER, b"[1]"),
    "payload is not JSON": lambda issuer: issuer.signed(HEADER, b"\xff"),
    "payload too deep": lambda issuer: issuer.signed(HEADER, b"[" * 90_000),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_token_that_the_issuer_did_not_sign_is_refused(
    issuer: Issuer, check: TokenCheck, kind: str
) -> None:
    """A forged token is refused; only the subject is reported, as claimed."""
    error = refusal(check, FORGED[kind](issuer))

    assert ("", True) == (error.client, error.claimed in ("", "ada", PLANTED))
    assert PLANTED not in str(error)


def test_keys_with_the_same_id_are_told_apart() -> None:
    """Of several keys with the same ID, the matching key is used (RFC 7517 §4.5)."""
    same = {"kid": "same"}
    rsa = RSAKey.generate_key(2048, same)
    keys: list[tuple[Key, str]] = [
        (rsa, "RS256"),
        (rsa, "PS384"),
        (RSAKey.generate_key(2048, same), "RS256"),
        (ECKey.generate_key("P-384", same), "ES384"),
        (ECKey.generate_key("P-256", same), "ES256"),
        (ECKey.generate_key("P-256", same), "ES256"),
        (OKPKey.generate_key("Ed25519", same), "Ed25519"),
    ]
    with running_issuer() as issuer:
        issuer.keys = [key for key, _ in keys]
        check = check_of(issuer)
        names = [check(issuer.token(key, header={"alg": name}))["sub"] for key, name in keys]
        stranger = ECKey.generate_key("P-256", same)

        assert ["ada"] * len(keys) == names
        assert "bad_signature" == str(refusal(check, issuer.token(stranger)))


def test_a_token_without_kid_is_accepted_if_one_key_fits() -> None:
    """A token without `kid` is accepted if only one of the issuer's keys matches its algorithm."""
    with running_issuer() as issuer:
        issuer.keys = [new_key("one"), RSAKey.generate_key(2048, {"kid": "two"})]
        check = check_of(issuer)
        no_kid = {"kid": None}
        names = [
            check(issuer.token(key, header=no_kid | {"alg": name}))["sub"]
            for key, name in zip(issuer.keys, ("ES256", "RS256"), strict=True)
        ]

        assert ["ada", "ada"] == names


def test_a_key_verifies_only_its_own_algorithm() -> None:
    """A key that declares `PS384` does not verify a token with `RS256`."""
    with running_issuer() as issuer:
        issuer.keys = [RSAKey.generate_key(2048, {"kid": "a", "alg": "PS384"})]
        token = issuer.token(
            RSAKey.import_key(issuer.keys[0].as_dict(private=True) | {"alg": "RS256"}),
            header={"alg": "RS256"},
        )

        assert "the issuer has no such key" == str(refusal(check_of(issuer), token))


def test_bad_tokens_cause_no_requests_to_the_issuer(issuer: Issuer, check: TokenCheck) -> None:
    """Twenty tokens with made-up key IDs cause no further request for the issuer's keys."""
    check(issuer.token())
    before = len(issuer.requested_paths)
    for number in range(20):
        refusal(check, issuer.token(new_key(f"made-up-{number}")))
        refusal(check, _unsigned(issuer, "none"))

    assert before == len(issuer.requested_paths)


def test_a_rotated_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a new key are accepted at once, and tokens of an old key until its removal."""
    monkeypatch.setattr(tenantry.middleware.issuer, "UNKNOWN_PAUSE_S", 0.0)
    with running_issuer() as issuer:
        check = check_of(issuer)
        old = issuer.token()
        check(old)
        issuer.keys.append(new_key("two"))
        both = [check(issuer.token(issuer.keys[1]))["sub"], check(old)["sub"]]
        del issuer.keys[0]
        issuer.keys.append(new_key("three"))
        check(issuer.token(issuer.keys[1]))

        assert (["ada", "ada"], "the issuer has no such key") == (both, str(refusal(check, old)))


def test_known_keys_verify_while_the_issuer_is_down() -> None:
    """While the issuer is down, a check with cached keys works; one without says when to retry."""
    with running_issuer() as stopped:
        known, fresh = check_of(stopped), check_of(stopped)
        known(stopped.token())

    assert "ada" == known(stopped.token())["sub"]
    with pytest.raises(IssuerDownError) as raised:
        fresh(stopped.token())
    assert 1 == raised.value.retry_after_s


def test_unusable_keys_are_skipped() -> None:
    """Secrets, encryption keys, weak and unknown keys are skipped; the good key is kept."""
    good = new_key("good").as_dict(private=False)
    weak = {"kty": "RSA", "kid": "weak", "n": base64.urlsafe_b64encode(b"\xff" * 128).decode()}
    others: list[dict[str, Any]] = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        good | {"kid": "encrypts", "use": "enc"},
        weak | {"e": "AQAB"},
        {"kty": "RSA", "n": 7, "e": "AQAB"},
        {"kty": "RSA"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": ["EC"]},
        {"kty": "AKP", "pub": "AAAA"},
        good | {"kid": "signs", "key_ops": ["sign"]},
        OKPKey.generate_key("X25519", {"kid": "agrees"}).as_dict(private=False),
        {},
    ]

    assert ["good"] == [key.kid for key in parse_keys([*others, good]).keys]
    with pytest.raises(IssuerError, match="no public key that can verify"):
        parse_keys(others)


@pytest.mark.live
def test_a_host_without_oidc_does_not_import_joserfc() -> None:
    """Importing the host does not import `joserfc`, which takes 10 MiB in each worker."""
    code = "import sys, tenantry.host; sys.exit('joserfc' in sys.modules)"

    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


# -- in a host ----------------------------------------------------------------------------------

Send = Callable[..., int]


@pytest.fixture(name="send")
def _send(
    issuers: dict[str, Issuer], write_tenant: Callable[..., Path], host: Host, client: Client
) -> Send:
    """Return a function that sends a token to one of two tenants and returns the status."""
    for name, issuer in issuers.items():
        write_tenant(name, OIDC={"issuer": issuer.url, "audience": "shop"})
    write_tenant("initech", OIDC={"issuer": issuers["acme"].url, "audience": "initech"})
    host.load()

    def send(token: str, tenant: str = "acme") -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return client.get(f"/{tenant}/", headers=headers).status_code

    return send


def test_a_token_is_accepted_by_its_own_tenant_only(issuers: dict[str, Issuer], send: Send) -> None:
    """A token is refused by a tenant with another issuer, or with another audience."""
    statuses = {
        (at, of): send(issuer.token(), at)
        for at in ("acme", "globex", "initech")
        for of, issuer in issuers.items()
    }

    good = {("acme", "acme"), ("globex", "globex")}
    assert {pair: 201 if pair in good else 401 for pair in statuses} == statuses


def test_forged_tokens_are_401(issuer: Issuer, send: Send) -> None:
    """Each forged token gets 401 from a host, never 500."""
    tokens = [forge(issuer) for kind, forge in FORGED.items()]

    assert {401} == {send(token) for token in tokens}


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.one_of(
        st.binary(max_size=60).map(lambda data: "".join(chr(33 + byte % 223) for byte in data)),
        st.builds(
            lambda header, payload, end: f"{part(header)}.{part(payload)}.{end}",
            st.dictionaries(
                st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]),
                st.sampled_from(["ES256", "none", "one", [], {}, None, True, 7, ["b64"], "HS256"]),
            ),
            st.recursive(st.none() | st.integers(), st.lists, max_leaves=3),
            st.sampled_from(["", "AAAA", "=", "é"]),
        ),
    )
)
def test_any_text_as_a_token_is_401(send: Send, token: str) -> None:
    """Random text and random headers and payloads get 401, never 500."""
    assert 401 == send(token)


def test_a_rebuilt_tenant_keeps_the_cached_keys(
    write_tenant: Callable[..., Path], host: Host, client: Client
) -> None:
    """After a change of the file while the issuer is down, the tenant still accepts tokens."""
    statuses = []
    with running_issuer() as issuer:
        for name in ("Acme", "Acme Ltd"):
            write_tenant("acme", APP_NAME=name, OIDC={"issuer": issuer.url, "audience": "shop"})
            host.load()
            token = issuer.token()
            headers = {"Authorization": f"Bearer {token}"}
            statuses.append(client.get("/acme/", headers=headers).status_code)
            issuer.replies = dict.fromkeys(
                ("/.well-known/openid-configuration", "/keys?v=1"), (500, {}, b"")
            )
        request_count = len(issuer.requested_paths)

    assert ([201, 201], 2) == (statuses, request_count)


def test_a_required_claim_of_another_type_is_another_check(host: Host, tmp_path: Path) -> None:
    """Tenants that require a claim of 1, 1.0 or True, which are equal, get separate checks."""
    checks = []
    for value in (1, True, 1.0, 1):
        openid = {"issuer": "https://a.example.org", "audience": "shop", "claims": {"a": value}}
        keys = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"], "OIDC": openid}
        checks.append(host.resources.token_check(parse_tenant("acme", keys, data_dir=tmp_path)))

    assert [0, 1, 2, 0] == [checks.index(one) for one in checks]
