"""Pulling from a real docker-registry: schemes, certificates, credentials, manifests of both kinds."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import socket
import subprocess
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from support.gateways import Gateway
from support.images import Registry, basic, content_of, htpasswd, layout, tar

from agents.images import Auth, BuildLimits, ImageFault, Trust, resolve
from agents.images.blocking import Stop
from agents.images.transport import Transport
from agents.images.writer import LayoutWriter, packed

pytestmark = [
    pytest.mark.skipif(not shutil.which("docker-registry"), reason="needs docker-registry"),
]
SECRET = "s3cr3t-of-the-test"
FAST = BuildLimits(retry_delay_s=0.01, attempts=3)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "l"
    layout(path, lambda layer: layer.file("hello", b"hello"), lambda layer: layer.file("big", bytes(range(256)) * 8192))
    return path


def refused(code, image, **options):
    with pytest.raises(ImageFault) as refusal:
        asyncio.run(resolve(image, **{"limits": FAST, **options}))
    assert refusal.value.code == code, refusal.value.message
    assert SECRET not in f"{refusal.value!r} {refusal.value.as_dict()}"
    return refusal.value


def test_a_loopback_registry_may_be_plain(bench, folder, tmp_path):
    with Registry(tmp_path) as registry:
        digest = registry.push(folder, "some/image", "1")
        image = f"docker://{registry.host}/some/image:1"
        found = asyncio.run(resolve(image))
        assert (found.digest, found.layers) == (digest, 2)
        built = bench.build(image, digest=digest)
        assert built.sha256 == bench.build(f"oci:{folder}").sha256, "where it comes from does not matter"
        assert bench.build(f"{registry.host}/some/image@{digest}").sha256 == built.sha256
        refused("image.not-found", f"docker://{registry.host}/some/image:2")
        refused("image.not-found", f"docker://{registry.host}/another:1")
        refused("image.not-found", f"docker://{registry.host}/some/image@sha256:{'0' * 64}")


def test_tls_is_verified_against_the_ca_that_was_configured(bench, folder, tmp_path, pki, monkeypatch):
    with Registry(tmp_path, pki) as registry:
        digest = registry.push(folder, "image", "1")
        image = f"docker://{registry.host}/image:1"
        refusal = refused("image.untrusted-registry", image)
        assert not refusal.retryable
        assert asyncio.run(resolve(image, trust=Trust(ca_file=pki.ca))).digest == digest
        assert content_of(bench.build(image, trust=Trust(ca_file=pki.ca)).path, "/hello") == "hello"
        monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca))
        assert asyncio.run(resolve(image)).digest == digest
    refused("image.untrusted-registry", image, trust=Trust(ca_file=tmp_path / "missing"))


def test_basic_credentials_are_sent_when_asked_for_and_never_shown(bench, folder, tmp_path, pki):
    auth = htpasswd(tmp_path / "htpasswd", "alice", SECRET)
    with Registry(tmp_path, pki, auth) as registry:
        digest = registry.push(folder, "image", "1", basic("alice", SECRET))
        image = f"docker://{registry.host}/image:1"
        trust = Trust(ca_file=pki.ca)
        assert asyncio.run(resolve(image, Auth("alice", SECRET), trust=trust)).digest == digest
        assert bench.build(image, auth=Auth("alice", SECRET), trust=trust).size_bytes > 0
        refused("image.unauthorized", image, trust=trust)
        refused("image.unauthorized", image, auth=Auth("alice", SECRET + "x"), trust=trust)
    assert SECRET not in repr(Auth("alice", SECRET))


class Tokens:
    """A token service: signs what the registry will believe, for one user, or for nobody when ``anonymous``."""

    def __init__(self, folder, *, anonymous=False):
        self.key, self.cert = folder / "token.key", folder / "token.crt"
        req = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"]
        subprocess.run([*req, "-keyout", self.key, "-out", self.cert], check=True, capture_output=True)
        self.anonymous = anonymous

    def configuration(self, host):
        realm = f"https://{host}/token?extra=1"
        return f"auth: {{token: {{realm: '{realm}', service: test, issuer: tokens, rootcertbundle: {self.cert}}}}}"

    def behave(self, request):
        query = parse_qs(urlsplit(request.path).query)
        assert query["extra"] == ["1"]
        authorization = request.headers.get("Authorization", "")
        if authorization != ("" if self.anonymous else basic("alice", SECRET)):
            request.answer(401)
            return
        kind, name, actions = query["scope"][0].split(":")
        now = int(time.time())
        claims = {"iss": "tokens", "aud": query["service"][0], "sub": "alice", "jti": "1", "iat": now, "nbf": now - 60, "exp": now + 300}
        claims["access"] = [{"type": kind, "name": name, "actions": actions.split(",")}]
        request.answer(200, json.dumps({"token": self._sign(claims)}).encode())

    def _sign(self, claims):
        der = subprocess.run(["openssl", "x509", "-in", self.cert, "-outform", "der"], check=True, capture_output=True).stdout
        header = {"alg": "RS256", "typ": "JWT", "x5c": [base64.b64encode(der).decode()]}
        body = ".".join(_b64(json.dumps(part).encode()) for part in (header, claims))
        signed = subprocess.run(["openssl", "dgst", "-sha256", "-sign", self.key], input=body.encode(), check=True, capture_output=True)
        return f"{body}.{_b64(signed.stdout)}"


def _b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("anonymous", [False, True], ids=["alice", "anonymous"])
def test_a_bearer_token_is_fetched_from_the_service_that_the_registry_names(anonymous, bench, folder, tmp_path, pki):
    with Registry(tmp_path) as registry:
        digest = registry.push(folder, "some/image", "1")
    tokens = Tokens(tmp_path, anonymous=anonymous)
    trust = Trust(ca_file=pki.ca)
    auth = None if anonymous else Auth("alice", SECRET)
    with Gateway("", pki, tokens.behave) as service, Registry(tmp_path, pki, tokens.configuration(service.host)) as registry:
        image = f"docker://{registry.host}/some/image:1"
        assert asyncio.run(resolve(image, auth, trust=trust)).digest == digest
        assert len(service.asked) == 1, "one token does for all requests"
        assert "scope=repository%3Asome%2Fimage%3Apull" in service.asked[0].path
        assert bench.build(image, auth=auth, trust=trust).size_bytes > 0
        if not anonymous:
            refused("image.unauthorized", image, trust=trust)
            refused("image.unauthorized", image, auth=Auth("alice", "wrong"), trust=trust)


@pytest.mark.parametrize("realm", ["http://192.0.2.1/token", "http://127.0.0.1:1/token", "file:///etc/passwd", ""])
def test_credentials_never_go_to_a_token_service_in_plain_text(realm, pki):
    def challenge(request):
        request.answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="x"'})

    with Gateway("", pki, challenge) as gateway:
        refused("image.insecure", f"docker://{gateway.host}/image:1", auth=Auth("alice", SECRET), trust=Trust(ca_file=pki.ca))


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
def test_docker_manifests_and_what_another_tool_pushed_are_understood(bench, folder, tmp_path):
    with Registry(tmp_path) as registry:
        for form in ("v2s2", "oci"):
            to = f"docker://{registry.host}/image:{form}"
            copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", "--format", form, f"oci:{folder}:t", to]
            subprocess.run(copy, check=True, capture_output=True)
            assert asyncio.run(resolve(to)).layers == 2
            assert content_of(bench.build(to).path, "/hello") == "hello"


def test_an_index_in_a_registry_gives_the_image_for_this_machine(tmp_path):
    writer = LayoutWriter(tmp_path / "l")
    manifests = []
    for architecture in (None, "s390x"):
        platform = {"architecture": architecture} if architecture else {}
        digest = writer.image([packed(tar(lambda layer, a=architecture: layer.file("a", str(a).encode())))], {}, "x", **platform)
        manifests.append(json.loads((tmp_path / "l/index.json").read_bytes())["manifests"][-1] | {"digest": digest})
    mine = manifests[0]["digest"]
    for media_type in ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"):
        (tmp_path / "l/index.json").unlink()
        index = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
        writer.tag(writer.blob(json.dumps(index).encode(), media_type), "multi")
        repository = media_type.split(".")[1]
        with Registry(tmp_path) as registry:
            digest = registry.push(tmp_path / "l", repository, "1")
            assert digest != mine
            assert asyncio.run(resolve(f"docker://{registry.host}/{repository}:1")).digest == mine
            assert asyncio.run(resolve(f"docker://{registry.host}/{repository}@{digest}")).digest == mine


def test_a_registry_that_is_not_there_may_be_there_later():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert refused("image.unreachable", f"docker://127.0.0.1:{port}/image:1").retryable


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("127.8.9.1:80", True),
        ("[::1]:5000", True),
        ("registry.example", False),
        ("10.0.0.1:5000", False),
        ("localhost.example", False),
        ("allowed.example:5000", True),
        ("allowed.example", False),
    ],
)
def test_only_loopback_and_named_hosts_may_be_spoken_to_in_plain_text(host, plain):
    transport = Transport(Trust(plain_http=frozenset({"allowed.example:5000"})), 1, Stop())
    assert transport.may_be_plain(host) is plain
    if not plain:
        with pytest.raises(ImageFault) as refusal, transport.get(f"http://{host}/v2/", {}):
            pass
        assert refusal.value.code == "image.insecure"


def test_a_tampered_manifest_is_not_believed(folder, tmp_path, pki):
    with Registry(tmp_path) as registry:
        digest = registry.push(folder, "image", "1")
        change = lambda body: body.replace(b"hello", b"jello") + b" "  # noqa: E731
        with Gateway(registry.host, pki, lambda request: request.forward(change=change)) as gateway:
            refused("image.digest-mismatch", f"docker://{gateway.host}/image@{digest}", trust=Trust(ca_file=pki.ca))
    assert digest == "sha256:" + hashlib.sha256((folder / "blobs" / digest.replace(":", "/")).read_bytes()).hexdigest()
