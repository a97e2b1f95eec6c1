import asyncio
import contextlib
import datetime as dt
import gzip
import logging
import ssl
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ltx2.errors import LTX2Error, MediaTooLarge, UnsupportedMedia, UrlNotAllowed
from ltx2.media import fetch as client
from ltx2.media.fetch import Network, Unreachable, check_target, check_url, fetch, send

NOWHERE: frozenset[str] = frozenset()
PUBLIC = "93.184.215.14"
"""An address no test connects to: where it is used, `Nat` leads back here."""


def answer(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return answer(b"moved", f"Location: {location}", status=f"{status} Moved")


@dataclass(frozen=True)
class Drip:
    """An answer that never ends: it says ``head``, and from then on one ``drop`` after the other."""

    head: bytes
    drop: bytes = b"a"
    pause: float = 0.05


class Site:
    """A server on the loopback. It counts who comes, keeps what it is asked, and answers by path."""

    def __init__(self, answers: dict[str, bytes | Drip], tls: ssl.SSLContext | None = None) -> None:
        self.answers = answers
        self.tls = tls
        self.visitors = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    async def __aenter__(self) -> Self:
        self._over = asyncio.Event()
        self._visits: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}
        self._servers = [await asyncio.start_server(self._visit, "127.0.0.1", 0, ssl=self.tls)]
        self.port = self._servers[0].sockets[0].getsockname()[1]
        with contextlib.suppress(OSError):  # not every machine has IPv6
            self._servers.append(await asyncio.start_server(self._visit, "::1", self.port, ssl=self.tls))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        for server in self._servers:
            server.close()
        for writer in self._visits:
            writer.transport.abort()
        await asyncio.gather(*filter(None, self._visits.values()))

    @property
    def place(self) -> str:
        return f"localhost:{self.port}"

    @property
    def allow(self) -> frozenset[str]:
        return frozenset({self.place})

    @property
    def url(self) -> str:
        return f"http://{self.place}"

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visitors += 1
        self._visits[writer] = asyncio.current_task()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                await self._talk(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((first, headers, body))
        told = self.answers[first.split(" ")[1].partition("?")[0]]
        writer.write(told if isinstance(told, bytes) else told.head)
        await writer.drain()
        while isinstance(told, Drip):
            await asyncio.sleep(told.pause)
            writer.write(told.drop)
            await writer.drain()


class Names(Network):
    """Names that mean what the test says, one meaning after the other."""

    def __init__(self, *meanings: list[str]) -> None:
        super().__init__()
        self.meanings = list(meanings)
        self.lookups = 0
        self.went_to: list[str] = []

    async def resolve(self, _host: str, _port: int) -> list[str]:
        self.lookups += 1
        return self.meanings.pop(0)

    async def connect_tcp(self, host: str, port: int, *options: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        self.went_to.append(host)
        return await super().connect_tcp(host, port, *options, **more)


class Nat(Names):
    """The whole internet, at home: whatever address is gone to, the connection comes out at the loopback."""

    async def connect_tcp(self, host: str, port: int, *options: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        self.went_to.append(host)
        return await Network.connect_tcp(self, "127.0.0.1", port, *options, **more)


async def got(url: str, allow: frozenset[str] = NOWHERE, **more: Any) -> bytes:
    return await fetch(url, **{"field": "image", "limit": 1000, "allow": allow, "seconds": 5} | more)


async def refused(url: str, allow: frozenset[str] = NOWHERE, **more: Any) -> LTX2Error:
    """The error of fetching it, with a query that the error must not repeat."""
    with pytest.raises(LTX2Error) as caught:
        await got(f"{url}?token=secret", allow, **more)
    assert caught.value.field == "image"
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value


async def within(least: float, most: float, work: Awaitable[Any]) -> Any:
    start = time.monotonic()
    done = await work
    assert least <= time.monotonic() - start <= most
    return done


INTERNAL = [
    *("127.0.0.1", "127.1", "127.0.1", "127.0.0.1.", "127.127.127.127", "127.0.0.01", "00000177.0.0.1"),
    *("2130706433", "0x7f000001", "0X7F.1", "0x7f.0x0.0x0.0x1", "017700000001", "0177.0.0.1", "0177.0x0.1"),
    *("localhost", "LocalHost", "0", "0.0.0.0", "0x0", "0.1.2.3"),
    *("[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::]", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]"),
    *("[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]"),
    *("[fe80::1]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[100::1]", "[2001:db8::1]"),
    *("[2001:0:7f00:1::]", "[2001:20::1]", "[3fff::1]", "[5f00::1]", "[ff0e::1]"),
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.0.0.192", "192.0.0.9", "192.88.99.1"),
    *("169.254.169.254", "0xa9fea9fe", "2852039166", "[::ffff:169.254.169.254]", "168.63.129.16"),
    *("100.100.100.200", "100.64.0.1", "100.127.255.255", "198.18.0.1", "198.19.255.255", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("127。0。0。1", "①②⑦.⓪.⓪.①", "ⓛocalhost", "%6cocalhost", "127.0.0.1%00.example.com", "[::1%25lo]", "[::1%lo]"),
]


def test_no_spelling_of_an_internal_address_is_followed() -> None:
    async def run() -> None:
        async with Site({"/": answer(b"inside")}) as site:
            for host in INTERNAL:
                url = f"http://{host}:{site.port}/"
                assert isinstance(await refused(url), UrlNotAllowed), host
                with pytest.raises(UrlNotAllowed):
                    await check_target(url, field="webhook", allow=NOWHERE)
                with pytest.raises(UrlNotAllowed):
                    await send("POST", url, b"event", {}, allow=NOWHERE, seconds=5)
            assert site.visitors == 0
            assert await got(f"{site.url}/", site.allow) == b"inside"
            assert site.visitors > 0

    asyncio.run(run())


@pytest.mark.parametrize("host", [host for host in INTERNAL if host.lower() != "localhost"])
def test_an_address_that_is_spelled_out_is_refused_without_a_lookup(host: str) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        check_url(f"http://{host}/?token=secret", field="webhook", allow=NOWHERE)
    assert caught.value.field == "webhook"
    assert host not in str(caught.value).split()


@pytest.mark.parametrize(
    "url",
    [
        *("http://93.184.215.14/a", "http://0x5db8d70e", "https://[2606:2800:21f:cb07::1]:8443/", "http://1.1.1.1:1"),
        *("https://example.com", "HTTPS://Example.COM:443/a?b#c", "http://a-b.c_d.example./x?y=/@:"),
        *("http://example.com/é?ü=%20", "http://[::ffff:93.184.215.14]/"),
    ],
)
def test_public_places_pass(url: str) -> None:
    check_url(url, field="image", allow=NOWHERE)


def test_a_url_is_taken_apart() -> None:
    def parts(url: str) -> tuple[str, str, int, str, str]:
        target = check_url(url, field="image", allow=NOWHERE)
        return target.scheme, target.host, target.port, target.path, target.name

    assert parts("HTTP://EXAMPLE.com") == ("http", "example.com", 80, "/", "example.com")
    assert parts("https://e.com:443/a%20b/é?x=y#z") == ("https", "e.com", 443, "/a%20b/%C3%A9?x=y", "e.com")
    assert parts("http://e.com:443?x") == ("http", "e.com", 443, "/?x", "e.com:443")
    assert parts("http://[2606:2800::A]/") == ("http", "2606:2800::a", 80, "/", "[2606:2800::a]")
    assert parts("http://e.com#@localhost/")[1:4] == ("e.com", 80, "/")


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "file://localhost/etc", "ftp://e.com/a", "gopher://e.com/_a", "dict://e.com/a", ""),
        *("data:text/plain,a", "javascript:alert(1)", "ws://e.com", "unix:///run/a", "http\u017f://e.com", "e.com"),
        *("//e.com", "http:e.com", "http:/e.com", "http:///e.com", "http://", "http://?a", "http://:80/", "http://*/"),
        *("http://e.com\\@127.0.0.1/", "http:\\\\e.com", "http://e.com/\\@127.0.0.1", "http://127.0.0.1\\.e.com/"),
        *("http://user@e.com/", "http://user:word@e.com/", "http://e.com@127.0.0.1/", "http://e.com:80@127.0.0.1/"),
        *("http://@e.com/", "http://:word@e.com/", "http://e.com%40127.0.0.1/", "http://e.com:80@", "http://e.com;f/"),
        *(" http://e.com", "http://e.com ", "http://e.com/a b", "http://e.com/\t", "http://e\t.com", "http://e.com\n"),
        *("http://e.com/\r\nHost: a", "http://e.com/\0", "http://e.com/\x7f", "http://e.com/\x85", "ht\ntp://e.com"),
        *("http://e.com#a\n", "http://e.com:", "http://e.com:0", "http://e.com:65536", "http://e.com:-1"),
        *("http://e.com:8a", "http://e.com:\uff18\uff10", "http://e.com:123456", "http://e.com:+80", "http://e.com,f"),
        *("http://.e.com", "http://e..com", "http://e.com../", "http://é.com", "http://\u212a.com", "http://[2606::1"),
        *("http://[1.1.1.1]/", "http://[::g]/", "http://[1::2::3]", "http://2606::1/", "http://[2606::1]a/"),
        *("http://" + 64 * "a" + ".com", "http://e.com/" + 8192 * "a", "http://e.com/\ud800"),
    ],
    ids=ascii,
)
def test_only_plain_urls_are_followed(url: str) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        check_url(url, field="webhook", allow=NOWHERE)
    assert caught.value.field == "webhook"
    assert "http://" in str(caught.value.hint)
    assert "word" not in caught.value.message


def test_what_is_allowed_is_one_place_as_it_is_written() -> None:
    async def run() -> None:
        async with Site({"/": answer(b"inside")}) as site:
            assert await got(f"http://LOCALHOST:{site.port}/", site.allow) == b"inside"
            assert await got(f"http://127.1:{site.port}/", frozenset({f"127.1:{site.port}"})) == b"inside"
            await check_target(site.url, field="webhook", allow=site.allow)
            seen = site.visitors
            for other in ("127.0.0.1", "localhost.", "[::1]", "user@localhost"):
                assert isinstance(await refused(f"http://{other}:{site.port}/", site.allow), UrlNotAllowed)
            assert isinstance(await refused(site.url, frozenset({"localhost:1", "localhost:80"})), UrlNotAllowed)
            assert site.visitors == seen

    asyncio.run(run())


def test_a_name_that_changes_its_mind_is_looked_up_once_and_leads_where_it_was_checked() -> None:
    async def run() -> None:
        async with Site({"/": answer(b"public")}) as site:
            url = f"http://rebind.test:{site.port}/"
            network = Nat([PUBLIC], ["127.0.0.1"])
            assert await got(url, network=network) == b"public"
            assert (network.lookups, network.went_to) == (1, [PUBLIC])
            assert isinstance(await refused(url, network=network), UrlNotAllowed)

            network = Nat([PUBLIC], [PUBLIC], ["127.0.0.1"])
            await check_target(url, field="webhook", allow=NOWHERE, network=network)
            assert await send("POST", url, b"", {}, allow=NOWHERE, seconds=5, network=network) == 200
            with pytest.raises(UrlNotAllowed):
                await send("POST", url, b"", {}, allow=NOWHERE, seconds=5, network=network)
            assert network.went_to == [PUBLIC]
            assert site.visitors == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    "meanings",
    [[PUBLIC, "127.0.0.1"], ["10.0.0.1", PUBLIC], [PUBLIC, "fe80::1%eth0"], [PUBLIC, PUBLIC, "::ffff:169.254.169.254"]],
)
def test_one_internal_address_among_public_ones_spoils_them_all(meanings: list[str]) -> None:
    async def run() -> None:
        network = Nat(meanings, meanings, meanings)
        assert isinstance(await refused("http://mixed.test/", network=network), UrlNotAllowed)
        with pytest.raises(UrlNotAllowed):
            await check_target("http://mixed.test/", field="webhook", allow=NOWHERE, network=network)
        with pytest.raises(UrlNotAllowed):
            await send("PUT", "http://mixed.test/", b"", {}, allow=NOWHERE, seconds=5, network=network)
        assert network.went_to == []

    asyncio.run(run())


def test_where_one_address_is_dead_the_next_is_tried() -> None:
    async def run() -> None:
        async with Site({"/": answer(b"alive")}) as site:
            network = Names(["127.0.0.9", "127.0.0.1"])
            url, allow = f"http://two.test:{site.port}/", frozenset({f"two.test:{site.port}"})
            assert await got(url, allow, network=network) == b"alive"
            assert network.went_to == ["127.0.0.9", "127.0.0.1"]

    asyncio.run(run())


def test_a_host_that_cannot_be_found_sounds_like_an_internal_one() -> None:
    async def run() -> None:
        nowhere = ".".join(200 * ["nowhere"])
        error = await refused(f"http://{nowhere}/")
        assert isinstance(error, UrlNotAllowed)
        assert str(error) == str(await refused("http://localhost/"))
        with pytest.raises(UrlNotAllowed):
            await check_target(f"http://{nowhere}/", field="webhook", allow=NOWHERE)
        with pytest.raises(Unreachable):  # name servers have bad days, and a webhook has more than one try
            await send("POST", f"http://{nowhere}/", b"", {}, allow=NOWHERE, seconds=5)

    asyncio.run(run())


def test_a_name_server_that_does_not_answer_is_waited_for_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Network):
        async def resolve(self, _host: str, _port: int) -> list[str]:
            await asyncio.sleep(60)
            return []

    async def run() -> None:
        error = await within(0.2, 1, refused("http://slow.test/", seconds=0.2, network=Silent()))
        assert isinstance(error, UnsupportedMedia)
        monkeypatch.setattr(client, "_LOOKUP_SECONDS", 0.2)
        with pytest.raises(UrlNotAllowed):
            await check_target("http://slow.test/", field="webhook", allow=NOWHERE, network=Silent())

    asyncio.run(run())


def test_a_fetch_asks_plainly_for_what_the_url_says() -> None:
    async def run() -> None:
        async with Site({"/a%20b": answer(b"it", "Content-Encoding: identity")}) as site:
            assert await got(f"{site.url}/a%20b?x=%2F&y={{z}}#part", site.allow) == b"it"
            (first, headers, body), *_ = site.requests
            assert first == "GET /a%20b?x=%2F&y={z} HTTP/1.1"
            assert headers == {
                "host": site.place,
                "user-agent": "ltx2",
                "accept-encoding": "identity",
                "connection": "close",
            }
            assert body == b""

    asyncio.run(run())


def test_redirects_are_followed_a_few_times() -> None:
    async def run() -> None:
        async with Site({"/end": answer(b"here")}) as site:
            site.answers |= {
                "/1/a": redirect("b?x#y", 301),
                "/1/b": redirect("/2", 307),
                "/2": redirect(f"//{site.place}/end", 308),
                "/0": redirect(f"{site.url}/1/a", 303),
                "/round": redirect("round"),
                "/no": answer(b"", status="302 Found"),
            }
            assert await got(f"{site.url}/1/a", site.allow) == b"here"
            assert "3 times" in (await refused(f"{site.url}/0", site.allow)).message
            assert isinstance(await refused(f"{site.url}/round", site.allow), UnsupportedMedia)
            assert len([first for first, *_ in site.requests if "/round" in first]) == 4
            assert "302" in (await refused(f"{site.url}/no", site.allow)).message

    asyncio.run(run())


def test_a_redirect_leads_to_no_place_that_a_url_may_not_name() -> None:
    async def run() -> None:
        async with Site({"/": answer(b"inside")}) as inside, Site({}) as site:
            places = [f"http://{host}:{inside.port}/" for host in INTERNAL if host.isascii()]
            places += [f"//127.0.0.1:{inside.port}/", f"http://user@{inside.place}/", f"\\\\{inside.place}/"]
            places += [
                f"/\\{inside.place}/",
                f"http://{site.place}\\@{inside.place}/",
                "file:///etc/passwd",
                "http://[",
            ]
            places += ["javascript:alert(1)", "data:,a", "gopher://localhost/", "http://e.com:99999/"]
            for place in places:
                site.answers["/"] = redirect(place.replace("/?", "/secret?"))
                assert isinstance(await refused(f"{site.url}/", site.allow), UrlNotAllowed), place
            assert inside.visitors == 0

    asyncio.run(run())


def test_a_redirect_is_looked_up_anew() -> None:
    async def run() -> None:
        async with Site({"/": redirect("/next"), "/next": answer(b"inside")}) as site:
            network = Nat([PUBLIC], ["127.0.0.1"])
            assert isinstance(await refused(f"http://rebind.test:{site.port}/", network=network), UrlNotAllowed)
            assert (network.went_to, site.visitors) == ([PUBLIC], 1)

    asyncio.run(run())


HEAD = b"HTTP/1.1 200 OK\r\n"


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "/status": Drip(b"HTTP/1.1 2"),
    "/header": Drip(HEAD + b"X-Slow: "),
    "/headers": Drip(HEAD, b"X-Slow: a\r\n"),
    "/body": Drip(HEAD + b"Content-Length: 900\r\n\r\n"),
    "/endless": Drip(HEAD + b"\r\n"),
    "/chunks": Drip(CHUNKED, b"1\r\na\r\n"),
    "/chunk": Drip(CHUNKED + b"1f4\r\n"),
    "/size": Drip(CHUNKED + b"1;", b"x"),
}


def test_a_drip_ends_at_the_deadline() -> None:
    async def run() -> None:
        async with Site({**DRIPS}) as site:
            drips = (refused(f"{site.url}{path}", site.allow, seconds=0.5) for path in DRIPS)
            for error in await within(0.5, 2, asyncio.gather(*drips)):
                assert isinstance(error, UnsupportedMedia)
                assert "0.5 seconds" in error.message

    asyncio.run(run())


@pytest.mark.parametrize(
    "flood",
    [Drip(CHUNKED, 10_000 * b"1\r\na\r\n", 0), Drip(b"", 3000 * b"HTTP/1.1 100 Continue\r\n\r\n", 0)],
    ids=["chunks", "continues"],
)
def test_a_flood_of_crumbs_ends_at_the_deadline(flood: Drip) -> None:
    async def run() -> None:
        async with Site({"/": flood}) as site:
            error = await within(0.3, 1, refused(f"{site.url}/", site.allow, seconds=0.3, limit=2**30))
            assert "0.3 seconds" in error.message

    asyncio.run(run())


def test_all_redirects_share_one_deadline() -> None:
    class Tired(Site):
        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.2)
            await super()._talk(reader, writer)

    async def run() -> None:
        async with Tired({"/": redirect("/")}) as site:
            error = await within(0.3, 0.7, refused(f"{site.url}/", site.allow, seconds=0.3))
            assert "0.3 seconds" in error.message

    asyncio.run(run())


@pytest.mark.parametrize(
    "told",
    [
        HEAD + b"Content-Length: 1001\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
        HEAD + b"\r\n" + 1001 * b"a",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + 1001 * b"1\r\na\r\n" + b"0\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + 1001 * b"a" + b"\r\n0\r\n\r\n",
    ],
    ids=["announced", "announced beyond all bounds", "until the end", "chunks", "announced less"],
)
def test_what_is_too_large_is_not_read_to_the_end(told: bytes) -> None:
    async def run() -> None:
        async with Site({"/": Drip(told)}) as site:
            error = await within(0, 1, refused(f"{site.url}/", site.allow))
            assert isinstance(error, MediaTooLarge)
            assert "LTX2_MAX_BODY_MB" in str(error.hint)

    asyncio.run(run())


def test_exactly_the_limit_is_taken() -> None:
    async def run() -> None:
        chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n" + 500 * b"a" + b"\r\n1f4\r\n" + 500 * b"b"
        answers = {"/a": answer(1000 * b"a"), "/b": chunked + b"\r\n0\r\n\r\n", "/c": HEAD + b"\r\n" + 1000 * b"c"}
        async with Site({**answers}) as site:
            assert await got(f"{site.url}/a", site.allow) == 1000 * b"a"
            assert await got(f"{site.url}/b", site.allow) == 500 * b"a" + 500 * b"b"
            assert await got(f"{site.url}/c", site.allow) == 1000 * b"c"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (answer(gzip.compress(10**6 * b"a")[:900], "Content-Encoding: gzip"), "compressed"),
        (answer(b"a", "Content-Encoding: identity", "content-encoding: BR"), "compressed"),
        (answer(b"a", "Content-Encoding: identity, deflate"), "compressed"),
        (answer(b"lost", status="404 Not Found"), "404"),
        (answer(b"broken", status="500 Oops"), "500"),
        (answer(b"some", "Content-Range: bytes 0-3/9", status="206 Partial"), "206"),
        (answer(status="204 No Content").replace(b"Content-Length: 0\r\n", b""), "204"),
        (answer(), "empty"),
        (HEAD + b"\r\n", "empty"),
        (HEAD + b"Content-Length: 9\r\n\r\nhalf", "fetched"),
        (HEAD + b"Content-Length: 9\r\nContent-Length: 8\r\n\r\nhalf of it", "fetched"),
        (HEAD + b"Content-Length: " + 5000 * b"9" + b"\r\n\r\na", "fetched"),
        (HEAD + b"Content-Length: -1\r\n\r\na", "fetched"),
        (HEAD + b"X: " + 200_000 * b"a" + b"\r\n\r\na", "fetched"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "fetched"),
        (b"", "fetched"),
    ],
)
def test_an_answer_that_is_of_no_use(told: bytes, said: str) -> None:
    async def run() -> None:
        async with Site({"/": told}) as site:
            error = await refused(f"{site.url}/", site.allow)
            assert isinstance(error, UnsupportedMedia)
            assert said in error.message

    asyncio.run(run())


def test_nobody_there() -> None:
    async def run() -> None:
        async with Site({}) as site:
            pass
        assert isinstance(await refused(site.url, site.allow), UnsupportedMedia)
        with pytest.raises(Unreachable) as caught:
            await send("POST", f"{site.url}/secret", b"", {}, allow=site.allow, seconds=5)
        assert "localhost" not in str(caught.value)
        assert "secret" not in str(caught.value)

    asyncio.run(run())


def certified(folder: Path, *names: str) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS for some names, and the certificate it made for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = folder / "certificate.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*private))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, folder / "key.pem")
    return context, chain


def test_a_certificate_nobody_vouches_for_is_refused_even_where_internal_places_are_allowed(tmp_path: Path) -> None:
    async def run() -> None:
        async with Site({"/": answer(b"inside")}, certified(tmp_path, "localhost")[0]) as site:
            url = f"https://{site.place}/"
            assert isinstance(await refused(url, site.allow), UnsupportedMedia)
            for method, body in (("POST", b"event"), ("PUT", tmp_path / "key.pem")):
                with pytest.raises(Unreachable):
                    await send(method, url, body, {}, allow=site.allow, seconds=5)
            assert site.requests == []

    asyncio.run(run())


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """A server's side of TLS for site.test that this machine trusts, as an operator would have it."""
    context, chain = certified(tmp_path, "site.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    client._tls.cache_clear()
    yield context
    client._tls.cache_clear()


def test_tls_asks_for_the_name_and_checks_the_name_whatever_the_address(trusted: ssl.SSLContext) -> None:
    asked: list[str | None] = []
    trusted.sni_callback = lambda _socket, name, _context: asked.append(name)

    async def run() -> None:
        async with Site({"/": answer(b"safe")}, trusted) as site:
            network = Nat([PUBLIC], [PUBLIC], [PUBLIC])
            assert await got(f"https://site.test:{site.port}/", network=network) == b"safe"
            assert await send(
                "PUT", f"https://site.test:{site.port}/", b"", {}, allow=NOWHERE, seconds=5, network=network
            )
            error = await refused(f"https://other.test:{site.port}/", network=network)
            assert isinstance(error, UnsupportedMedia)
            assert asked == ["site.test", "site.test", "other.test"]
            assert len(site.requests) == 2

    asyncio.run(run())


def test_a_redirect_does_not_leave_tls(trusted: ssl.SSLContext) -> None:
    async def run() -> None:
        async with Site({"/": answer(b"open")}) as plain, Site({"/": redirect(f"{plain.url}/")}, trusted) as site:
            allow = plain.allow | {f"site.test:{site.port}"}
            network = Names(["127.0.0.1"], ["127.0.0.1"])
            error = await refused(f"https://site.test:{site.port}/", allow, network=network)
            assert isinstance(error, UrlNotAllowed)
            assert (len(site.requests), plain.visitors) == (1, 0)

    asyncio.run(run())


def test_a_file_is_put_byte_for_byte_with_its_length(tmp_path: Path) -> None:
    async def run() -> None:
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(bytes(range(256)) * 4000 + b"end")
        async with Site({"/bucket/clip": answer(status="201 Created")}) as site:
            url = f"{site.url}/bucket/clip?X-Signature=a%2Fb"
            headers = {"Content-Type": "video/mp4", "Transfer-Encoding": "chunked", "Content-Length": "1", "HOST": "a"}
            assert await send("PUT", url, clip, headers, allow=site.allow, seconds=5) == 201
            ((first, sent, body),) = site.requests
            assert first == "PUT /bucket/clip?X-Signature=a%2Fb HTTP/1.1"
            assert body == clip.read_bytes()
            assert sent == {
                "content-type": "video/mp4",
                "content-length": "1024003",
                "host": site.place,
                "user-agent": "ltx2",
                "accept-encoding": "identity",
                "connection": "close",
            }
            with pytest.raises(FileNotFoundError):
                await send("PUT", url, tmp_path / "gone.mp4", {}, allow=site.allow, seconds=5)

    asyncio.run(run())


def test_a_post_carries_its_headers_and_its_body() -> None:
    async def run() -> None:
        async with Site({"/hook": answer(b"thanks", status="202 Accepted"), "/": answer()}) as site:
            headers = {"webhook-id": "msg_1", "webhook-signature": "v1,a+b=", "Content-Type": "application/json"}
            assert await send("POST", f"{site.url}/hook", b'{"a":1}', headers, allow=site.allow, seconds=5) == 202
            ((first, sent, body),) = site.requests
            assert first == "POST /hook HTTP/1.1"
            assert {name.lower(): value.lower() for name, value in headers.items()}.items() <= sent.items()
            assert (body, sent["content-length"]) == (b'{"a":1}', "7")
            assert await send("POST", site.url, b"", {}, allow=site.allow, seconds=5) == 200
            assert site.requests[1][1]["content-length"] == "0"
            with pytest.raises(Unreachable):
                await send("POST", site.url, b"", {"X": "a\r\nHost: b"}, allow=site.allow, seconds=5)
            assert len(site.requests) == 2

    asyncio.run(run())


def test_what_is_sent_follows_no_redirect_and_waits_for_no_body() -> None:
    async def run() -> None:
        async with Site({"/": answer(b"inside")}) as inside, Site({}) as site:
            site.answers = {"/307": redirect(f"{inside.url}/", 307), "/slow": Drip(HEAD + b"Content-Length: 9\r\n\r\n")}
            allow = site.allow | inside.allow
            assert await send("POST", f"{site.url}/307", b"event", {}, allow=allow, seconds=5) == 307
            slow = send("POST", f"{site.url}/slow", b"event", {}, allow=allow, seconds=5)
            assert await within(0, 1, slow) == 200
            assert inside.visitors == 0

    asyncio.run(run())


def test_what_is_sent_has_a_deadline(tmp_path: Path) -> None:
    class Full(Site):
        """Reads nothing."""

        async def _talk(self, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await self._over.wait()

    async def run() -> None:
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(bytes(2**25))
        async with Full({}) as full, Site({"/": Drip(b"HTTP/1.1 2")}) as site:
            for url, body in ((full.url, clip), (f"{site.url}/", b"event")):
                work = send("PUT", f"{url}?secret", body, {}, allow=site.allow | full.allow, seconds=0.3)
                with pytest.raises(Unreachable, match=r"0\.3 seconds"):
                    await within(0.3, 1, work)

    asyncio.run(run())


def test_an_answer_before_the_end_of_the_file_counts(tmp_path: Path) -> None:
    class Hasty(Site):
        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(status="403 Forbidden"))
            await writer.drain()
            while await reader.read(2**20):
                pass

    async def run() -> None:
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(bytes(2**22))
        async with Hasty({}) as site:
            assert await send("PUT", site.url, clip, {}, allow=site.allow, seconds=5) == 403

    asyncio.run(run())


def test_a_file_that_changes_while_it_is_sent(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    size = 2**24 + 1  # more than fits between the two, so that the end is not read yet

    class Meddler(Site):
        async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.readuntil(b"\r\n\r\n")
            with clip.open("r+b") as file:
                file.truncate(2 * size if b"/grow" in request else 9)
            await reader.readexactly(size)
            writer.write(answer())
            await writer.drain()
            assert not await reader.read(1)

    async def run() -> None:
        async with Meddler({}) as site:
            clip.write_bytes(bytes(size))
            assert await send("PUT", f"{site.url}/grow", clip, {}, allow=site.allow, seconds=5) == 200
            clip.write_bytes(bytes(size))
            work = send("PUT", f"{site.url}/shrink", clip, {}, allow=site.allow, seconds=5)
            with pytest.raises(Unreachable):
                await within(0, 2, work)

    asyncio.run(run())


def test_no_url_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def run() -> None:
        async with Site({"/": redirect("/next?secret"), "/next": answer(b"the secret", "X: secret")}) as site:
            assert await got(f"{site.url}/?secret", site.allow) == b"the secret"
            await send("POST", f"{site.url}/?secret", b"secret", {"X": "secret"}, allow=site.allow, seconds=5)

    asyncio.run(run())
    assert "secret" not in caplog.text
    assert "localhost" not in caplog.text
