"""Names on the bridge: who is told what, and what an answer opens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from dnslib import EDNS0, QTYPE, RCODE, RR, TXT, A, DNSRecord
from support.inside import inside, reach
from support.outside import OTHER, PUBLIC, world
from support.waiting import run

from agents.drivers.driver import RuntimeFault, Spec
from agents.namefiles import tell_names
from agents.network import ZONE
from agents.network.netns import BridgeNetwork
from agents.network.resolver import Asker, Book, Resolver
from domain.sandboxes.egress import EgressPolicy

quick = pytest.mark.quick
MINE, OTHERS, CLOSED, NOBODY = (IPv4Address(f"127.0.0.{n}") for n in (2, 3, 4, 5))
WALL = EgressPolicy(allow=("example.org",), internet=False)
WORLD = {"example.org": ("93.184.216.34", "10.0.0.1"), "big.example.org": ("1.1.1.1",)}


class Upstream(asyncio.DatagramProtocol):
    """A name server of the world outside. ``lies``: it first answers as if to another question."""

    def __init__(self, world_: dict[str, Sequence[str]], *, lies: bool = False) -> None:
        self.world, self.lies, self.asked = world_, lies, []

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr) -> None:
        question = DNSRecord.parse(data)
        name = str(question.q.qname).rstrip(".")
        self.asked.append(name)
        reply = question.reply()
        reply.header.rcode = RCODE.NOERROR if name in self.world else RCODE.NXDOMAIN
        reply.add_answer(*(RR(question.q.qname, QTYPE.A, ttl=7, rdata=A(address)) for address in self.world.get(name, ())))
        if name.startswith("big"):
            reply.add_answer(*(RR(question.q.qname, QTYPE.TXT, ttl=7, rdata=TXT("x" * 200)) for _ in range(9)))
        if self.lies:
            false = DNSRecord.parse(reply.pack())
            false.header.id ^= 1
            self.transport.sendto(false.pack(), addr)
            self.transport.sendto(b"\xff" * 30, addr)
        self.transport.sendto(reply.pack(), addr)


@asynccontextmanager
async def serving(book: Book, upstream: Upstream, at: str = "127.0.0.1", port: int = 0) -> AsyncIterator[tuple[str, int]]:
    """Resolver and upstream as long as the block lasts: the address of the first."""
    loop = asyncio.get_running_loop()
    far, _ = await loop.create_datagram_endpoint(lambda: upstream, local_addr=("127.0.0.1", 0))
    resolver = Resolver(book, [far.get_extra_info("sockname")])
    near, _ = await loop.create_datagram_endpoint(lambda: resolver, local_addr=(at, port))
    yield near.get_extra_info("sockname")
    resolver.close()
    far.close()


def ask(server: tuple[str, int], question: DNSRecord | bytes, source: IPv4Address | None = None) -> DNSRecord | None:
    """The answer; None when there is none within half a second."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(5 if isinstance(question, DNSRecord) else 0.3)
        if source is not None:
            one.bind((str(source), 0))
        one.sendto(question.pack() if isinstance(question, DNSRecord) else question, server)
        try:
            return DNSRecord.parse(one.recv(4096))
        except TimeoutError:
            return None


def query(name: str, kind: str = "A") -> DNSRecord:
    return DNSRecord.question(name, kind)


def answers(reply: DNSRecord | None) -> tuple[str, set[str]]:
    assert reply is not None
    return RCODE[reply.header.rcode], {str(answer.rdata) for answer in reply.rr if answer.rtype == QTYPE.A}


def book(learn: Callable[..., None] = lambda *_: None, *, lets_out: bool = True) -> Book:
    """Two projects with a sandbox each, and one that may get out to example.org only."""
    askers = {MINE: Asker("mine"), OTHERS: Asker("others"), CLOSED: Asker("mine", WALL)}
    named = {("mine", "web"): [IPv4Address("100.64.0.2"), IPv4Address("100.64.0.3")], ("others", "db"): [IPv4Address("100.64.0.4")]}
    return Book(askers.get, lambda project, host: named.get((project, host), ()), learn, lets_out)


@quick
def test_a_sandbox_is_told_names_of_its_own_project_only() -> None:
    async def scenario() -> None:
        upstream = Upstream(WORLD)
        async with serving(book(), upstream) as server:

            async def told(source: IPv4Address, name: str, kind: str = "A") -> tuple[str, set[str]]:
                return answers(await asyncio.to_thread(ask, server, query(f"{name}.{ZONE}", kind), source))

            assert await told(MINE, "web.mine") == ("NOERROR", {"100.64.0.2", "100.64.0.3"})
            assert await told(MINE, "WEB.mine") == ("NOERROR", {"100.64.0.2", "100.64.0.3"})
            assert await told(MINE, "web.mine", "AAAA") == ("NOERROR", set())
            assert await told(MINE, "db.others") == ("NXDOMAIN", set())
            assert await told(OTHERS, "db.others") == ("NOERROR", {"100.64.0.4"})
            assert await told(NOBODY, "db.others") == ("NOERROR", {"100.64.0.4"}), "the node itself may know"
            assert await told(MINE, "nothing.mine") == ("NXDOMAIN", set())
            assert upstream.asked == [], "such names leave the node never"

    run(scenario())


@quick
def test_who_may_ask_for_a_name_outside_is_answered_and_nobody_else() -> None:
    async def scenario() -> None:
        upstream = Upstream(WORLD, lies=True)
        async with serving(book(), upstream) as server:

            async def told(source: IPv4Address, name: str) -> tuple[str, set[str]]:
                return answers(await asyncio.to_thread(ask, server, query(name), source))

            assert await told(MINE, "example.org") == ("NOERROR", set(WORLD["example.org"]))
            assert await told(MINE, "no.example.org") == ("NXDOMAIN", set())
            assert await told(CLOSED, "example.org") == ("NOERROR", set(WORLD["example.org"]))
            asked = list(upstream.asked)
            assert await told(CLOSED, "secret.evil.org") == ("REFUSED", set())
            assert await told(NOBODY, "example.org") == ("REFUSED", set())
            assert upstream.asked == asked, "a question is a way out, too"
        async with serving(book(lets_out=False), upstream) as server:
            assert answers(await asyncio.to_thread(ask, server, query("example.org"), MINE)) == ("REFUSED", set())
            assert upstream.asked == asked

    run(scenario())


@quick
def test_an_answer_opens_what_it_names_before_it_is_given_but_nothing_private() -> None:
    async def scenario() -> None:
        learnt = []
        async with serving(book(lambda *what: learnt.append(what)), Upstream(WORLD)) as server:

            def asked() -> list[tuple]:
                ask(server, query("example.org"), CLOSED)
                return list(learnt)

            assert await asyncio.to_thread(asked) == [(CLOSED, "example.org", [IPv4Address("93.184.216.34")], 300)]
            await asyncio.to_thread(ask, server, query("example.org"), MINE)
            assert len(learnt) == 1, "who has no policy needs nothing opened"

    run(scenario())


@quick
def test_an_answer_that_is_too_long_is_cut_off_and_says_so() -> None:
    async def scenario() -> None:
        async with serving(book(), Upstream(WORLD)) as server:
            short = await asyncio.to_thread(ask, server, query("big.example.org"), MINE)
            assert short is not None
            assert (short.header.tc, short.rr) == (1, [])
            wide = query("big.example.org")
            wide.add_ar(EDNS0(udp_len=4096))
            whole = await asyncio.to_thread(ask, server, wide, MINE)
            assert whole is not None
            assert (whole.header.tc, len(whole.rr)) == (0, 10)

    run(scenario())


@quick
@pytest.mark.parametrize("data", [b"", b"x", b"\x00" * 12, b"\xff" * 600, query("a.b").reply().pack()])
def test_what_is_no_question_gets_no_answer_and_harms_nobody(data: bytes) -> None:
    async def scenario() -> None:
        async with serving(book(), Upstream(WORLD)) as server:
            assert await asyncio.to_thread(ask, server, data, MINE) is None
            assert answers(await asyncio.to_thread(ask, server, query("example.org"), MINE))[0] == "NOERROR"

    run(scenario())


@pytest.mark.root
def test_a_domain_is_reached_once_it_was_asked_for_and_still_by_the_next_agent(directory: Path) -> None:
    async def scenario() -> None:
        network = BridgeNetwork(directory, egress=True)
        await network.setup()
        wall = EgressPolicy(allow=("served.example:80", "*.else.example"), internet=False)
        with pytest.raises(RuntimeFault) as refusal:
            await network.attach("sb-1", wall)
        assert refusal.value.code == "sandbox.unsupported", "nobody answers for names yet"
        network.resolves = True
        attached = await network.attach("sb-1", wall)
        told = Book(lambda address: Asker("p", wall) if network.owner(address) else None, lambda *_: (), network.learn, lets_out=True)
        async with serving(told, Upstream({"served.example": [PUBLIC], "other.example": [OTHER]}), str(network.gateway), 53) as server:

            def heard(name: str) -> tuple[str, set[str]]:
                return answers(inside(attached.netns, lambda: ask(server, query(name))))

            assert reached() == {(PUBLIC, 80): False, (PUBLIC, 81): False, (OTHER, 80): False}
            assert await asyncio.to_thread(heard, "served.example") == ("NOERROR", {PUBLIC})
            assert await asyncio.to_thread(heard, "other.example") == ("REFUSED", set())
            assert reached() == {(PUBLIC, 80): True, (PUBLIC, 81): False, (OTHER, 80): False}
        later = BridgeNetwork(directory, egress=True)
        await later.setup()
        assert reached() == {(PUBLIC, 80): True, (PUBLIC, 81): False, (OTHER, 80): False}
        await later.teardown()

    def reached() -> dict[tuple[str, int], bool]:
        netns = directory / "netns" / "sb-1"
        return {place: inside(netns, lambda place=place: reach(*place)) == "open" for place in ((PUBLIC, 80), (PUBLIC, 81), (OTHER, 80))}

    with world(directory) as outside, outside.serving((PUBLIC, 80), (PUBLIC, 81), (OTHER, 80)):
        run(scenario())


@quick
def test_a_sandbox_is_told_its_name_server_in_place_of_whatever_was_there(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "etc").mkdir(parents=True)
    elsewhere.write_text("the host's")
    (root / "etc" / "resolv.conf").symlink_to(elsewhere)
    spec = Spec("sb-1", 0, root, ["x"], {}, tmp_path, hostname="web", address="100.64.0.9/22", gateway="100.64.0.1")
    for _ in range(2):
        tell_names(spec, "mine")
    assert (root / "etc" / "resolv.conf").read_text().splitlines()[:2] == [f"search mine.{ZONE}", "nameserver 100.64.0.1"]
    assert "100.64.0.9 web sb-1" in (root / "etc" / "hosts").read_text()
    assert elsewhere.read_text() == "the host's"
    for bare in (tmp_path / "bare", tmp_path / "disk.qcow2"):
        bare.mkdir() if bare.suffix == "" else bare.touch()
        tell_names(Spec("sb-1", 0, bare, ["x"], {}, tmp_path, address="100.64.0.9/22", gateway="100.64.0.1"), "mine")
    assert list((tmp_path / "bare").iterdir()) == []
