"""What the image tests share: images made in a few lines, a real registry, and readers of finished file systems."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from agents.images import Built, build
from agents.images.blocking import Stop
from agents.images.contents import Contents
from agents.images.decode import Budget, Layer
from agents.images.manifest import digest_of
from agents.images.options import BuildLimits
from agents.images.progress import Meter
from agents.images.source import Blob
from agents.images.tools import find
from agents.images.tree import Kind, Node, Tree
from agents.images.unpack import Unpacker
from agents.images.writer import LayerTar, LayoutWriter, Packed, packed

Fill = Callable[[LayerTar], None]


def tar(fill: Fill, mtime: int = 0) -> bytes:
    layer = LayerTar(mtime)
    fill(layer)
    return layer.bytes()


def layout(folder: Path, *fills: Fill, tag: str = "t", config: dict[str, Any] | None = None) -> str:
    """An image with one gzip layer per function: its reference."""
    LayoutWriter(folder).image([packed(tar(fill)) for fill in fills], config or {"Cmd": ["/bin/sh"]}, tag, created="2024-05-06T07:08:09Z")
    return f"oci:{folder}:{tag}"


def layout_of(folder: Path, *layers: Packed, tag: str = "t") -> str:
    LayoutWriter(folder).image(layers, {}, tag)
    return f"oci:{folder}:{tag}"


@dataclass
class Bench:
    """A place to build in, which knows what has to be left of it."""

    folder: Path

    def build(self, image: str, **options: Any) -> Built:
        return asyncio.run(self.building(image, **options))

    async def building(self, image: str, **options: Any) -> Built:
        arguments = {"digest": None, "disk_mb": 64, "work": self.folder / "work", "out": self.folder / "out" / "a.ext4", **options}
        return await build(image, **arguments)

    def leftovers(self) -> list[Path]:
        """Everything that a failed build has left, however deep."""
        return [path for name in ("work", "out") for path in (self.folder / name).rglob("*")]


def union(folder: Path, *tars: bytes, limits: BuildLimits | None = None) -> tuple[Tree, Contents]:
    """The tree of some layers, without a file system made of it. ``folder`` must not exist."""
    folder.mkdir()
    contents = Contents(folder / "contents")
    budget = Budget(limits or BuildLimits())
    tree = Tree(contents.release, budget.entry)
    for number, data in enumerate(tars):
        path = folder / f"layer-{number}"
        path.write_bytes(data)
        layer = Layer(Blob(path, 0, len(data), digest_of(data)), digest_of(data), budget, Stop())
        Unpacker(tree, contents, budget, Meter(None)).apply(layer, number)
    return tree, contents


def listing(tree: Tree, contents: Contents) -> dict[str, Any]:
    """Paths to what is there: ``"dir"``, ``"fifo"``, the bytes of a file, or ``("->", target)``."""

    def shown(node: Node) -> Any:
        match node.kind:
            case Kind.DIRECTORY:
                return "dir"
            case Kind.SYMLINK:
                return "->", node.target.decode()
            case Kind.FIFO:
                return "fifo"
            case Kind.FILE:
                return contents.read(node.content, 1 << 20)

    return {b"/".join(path).decode(errors="surrogateescape"): shown(node) for path, node in tree.walk()}


def debugfs(image: Path, command: str) -> str:
    done = subprocess.run([find("debugfs"), "-R", command, image], capture_output=True, text=True, errors="surrogateescape", check=True)
    return done.stdout


def stat_of(image: Path, path: str) -> dict[str, str]:
    """The fields that debugfs shows of an inode: ``Type`` ``Mode`` ``User`` ``Group`` ``Size`` ``Links`` ``Inode`` ``mtime`` ..."""
    text = debugfs(image, f'stat "{path}"')
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(\w+):\s+(\S+)", text):
        fields.setdefault(name, value)  # fragments have a size as well
    return fields


def content_of(image: Path, path: str) -> str:
    return debugfs(image, f'cat "{path}"')


def check(image: Path) -> None:
    """The file system is in order, to the last bit."""
    done = subprocess.run([find("e2fsck"), "-fn", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@dataclass(frozen=True)
class Pki:
    """A certificate authority of our own, and a certificate of its for 127.0.0.1 and localhost."""

    ca: Path
    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What a server needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


def make_pki(folder: Path) -> Pki:
    pki = Pki(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    _openssl("req", "-x509", *ec, "-keyout", folder / "ca.key", "-out", pki.ca, "-subj", "/CN=test CA")
    _openssl("req", *ec[:-2], "-keyout", pki.key, "-out", folder / "server.csr", "-subj", "/CN=localhost")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    sign = ["-CA", pki.ca, "-CAkey", folder / "ca.key", "-CAcreateserial", "-extfile", folder / "san", "-days", "2"]
    _openssl("x509", "-req", "-in", folder / "server.csr", *sign, "-out", pki.cert)
    return pki


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Registry:
    """A real ``docker-registry`` on a loopback port, with TLS, basic authentication or tokens as asked for."""

    def __init__(self, folder: Path, pki: Pki | None = None, auth: str = "") -> None:
        tls = f"tls: {{certificate: {pki.cert}, key: {pki.key}}}" if pki else ""
        configuration = folder / "registry.yml"
        configuration.write_text(
            f"version: 0.1\nlog: {{level: info}}\n{auth}\nstorage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\n"
            f'http:\n  addr: "127.0.0.1:0"\n  secret: x\n  {tls}\n'
        )
        self._pki = pki
        self._process = subprocess.Popen(["docker-registry", "serve", configuration], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        for line in self._process.stderr:
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                self.host = found[1]
                break
        else:
            raise AssertionError("the registry did not start")
        self.url = f"http{'s' if pki else ''}://{self.host}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with suppress(ValueError):
            self._process.communicate()

    def push(self, layout_folder: Path, repository: str, tag: str, authorization: str = "") -> str:
        """Push the layout's first image, index or not: the digest of what ``tag`` now means."""
        pusher = _Pusher(self.url, repository, self._pki, authorization)
        index = json.loads((layout_folder / "index.json").read_bytes())["manifests"]
        return pusher.manifest(layout_folder, index[0], tag)


class _Pusher:
    def __init__(self, url: str, repository: str, pki: Pki | None, authorization: str) -> None:
        self._base = f"{url}/v2/{repository}"
        self._tls = ssl.create_default_context(cafile=str(pki.ca)) if pki else None
        self._headers = {"Authorization": authorization} if authorization else {}

    def manifest(self, folder: Path, descriptor: dict[str, Any], tag: str) -> str:
        data = _blob(folder, descriptor).read_bytes()
        body = json.loads(data)
        for inner in body.get("manifests", []):
            self.manifest(folder, inner, inner["digest"])
        for blob in [*body.get("layers", []), *([body["config"]] if "config" in body else [])]:
            self._blob(_blob(folder, blob).read_bytes(), blob["digest"])
        self._call("PUT", f"{self._base}/manifests/{tag}", data, {"Content-Type": descriptor["mediaType"]})
        return str(descriptor["digest"])

    def _blob(self, data: bytes, digest: str) -> None:
        location = self._call("POST", f"{self._base}/blobs/uploads/", b"", {})["Location"]
        self._call("PUT", f"{location}&digest={digest}", data, {"Content-Type": "application/octet-stream"})

    def _call(self, method: str, url: str, data: bytes, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(url, data=data, headers={**self._headers, **headers}, method=method)
        with urllib.request.urlopen(request, context=self._tls) as answer:
            return answer.headers


def _blob(folder: Path, descriptor: dict[str, Any]) -> Path:
    return folder / "blobs" / descriptor["digest"].replace(":", "/")


def basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


def htpasswd(path: Path, user: str, secret: str) -> str:
    """The registry's ``auth`` section for one user."""
    done = subprocess.run(["htpasswd", "-Bbn", "-C", "4", user, secret], capture_output=True, text=True, check=True)
    path.write_text(done.stdout)
    return f"auth: {{htpasswd: {{realm: test, path: {path}}}}}"


def as_nobody(work: Callable[[], str]) -> str:
    """Run ``work`` in a forked process without root's rights; its answer."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"!failed"
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            answer = work().encode()
        except BaseException as error:  # noqa: BLE001 - it is told to the parent
            answer = f"!{type(error).__name__}: {error}".encode()
        finally:
            os.write(write, answer)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    assert not answer.startswith("!"), answer
    return answer


def names(items: Sequence[Path]) -> list[str]:
    return sorted(item.name for item in items)
