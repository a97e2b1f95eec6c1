"""The one HTTP client: it goes where callers say, and never to an internal place.

A host is looked up once, every address it has is checked, and the connection goes to an address that was checked.
So neither a name that changes its mind nor a redirect nor an odd spelling leads anywhere else. TLS still verifies
the name.
"""

import asyncio
import logging
import re
import socket
import string
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import quote, urljoin

import httpcore

from ltx2.errors import MediaTooLarge, StorageFull, UnsupportedMedia, UrlNotAllowed

_LABEL: Final = "[a-z0-9_-]{1,63}"
_HOST: Final = rf"(?:\[([0-9a-f:.]+)\]|({_LABEL}(?:\.{_LABEL})*\.?))(?::([0-9]{{1,5}}))?"
_CHARACTER: Final = r"[^#\\\s\x00-\x1f\x7f-\x9f]"
_URL: Final = re.compile(rf"(https?)://{_HOST}((?:[/?]{_CHARACTER}*)?)(?:#{_CHARACTER}*)?", re.ASCII | re.IGNORECASE)
_PRINTABLE: Final = string.ascii_letters + string.digits + string.punctuation
_PORTS: Final = {"http": 80, "https": 443}
_MOVED: Final = (301, 302, 303, 307, 308)
_REDIRECTS: Final = 3
_LONGEST: Final = 8192
_BLOCK: Final = 2**18
_LOOKUP_SECONDS: Final = 5
_CONNECT_SECONDS: Final = 10
_SMALLER: Final = "send less, or raise LTX2_MAX_BODY_MB"
_PLAIN: Final = "give a plain http:// or https:// URL, without user name, password and spaces"
_PUBLIC: Final = "give a public URL; whoever runs this server opens internal places with LTX2_URL_ALLOW"
# One sentence for both, so that nobody can ask which internal names there are.
_NO_HOST: Final = "the host of this URL is internal or cannot be found"
_BROKEN: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)

# What is_global lets through on some of the Pythons this runs on, and what leads to IPv4 by a way of its own.
_INTERNAL: Final = tuple(
    ip_network(network)
    for network in (
        *("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/3"),
        "168.63.129.16",  # Azure's own, on a public address
        *("::/3", "4000::/2", "8000::/1"),  # all but 2000::/3: NAT64, IPv4-compatible, site-local, whatever comes
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo and other protocols, examples, 6to4
    )
)

# Lookups hang as long as the caller's name server likes. In the loop's own threads they would keep others waiting.
_LOOKUPS: Final = ThreadPoolExecutor(8, thread_name_prefix="lookup")

# At DEBUG it writes hosts and headers down, with the URLs in them.
logging.getLogger("httpcore").setLevel(logging.INFO)

_Take = Callable[[bytes], Awaitable[None]]


class Unreachable(OSError):
    """Nothing could be sent, or no answer came. The message says nothing about the URL."""


@dataclass(frozen=True)
class Target:
    """A URL taken apart: where to go, and what to ask for there. The host has no brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def place(self) -> str:
        """Its ``host:port``."""
        return _place(self.host, self.port)

    @property
    def name(self) -> str:
        """What the ``Host`` header says."""
        name = self.place
        # A signed URL is signed for the host without the port that goes without saying.
        return name.removesuffix(f":{self.port}") if self.port == _PORTS[self.scheme] else name


class Network(httpcore.AnyIOBackend):
    """How names become addresses, and addresses connections."""

    async def resolve(self, host: str, port: int) -> list[str]:
        """Every address of a host. OSError if there is none."""
        look = asyncio.get_running_loop().run_in_executor
        found = await look(_LOOKUPS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


_NETWORK: Final = Network()


class Guard(httpcore.AsyncNetworkBackend):
    """Connects to public addresses, and to the internal places in ``allow``, a set of ``host:port``."""

    def __init__(self, allow: frozenset[str], field: str | None, network: Network) -> None:
        self.allow = allow
        self._field = field
        self._network = network

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, looked up once. One internal address among them, and none may be used."""
        found = await self._network.resolve(host, port)
        if _place(host, port) not in self.allow and any(map(_is_internal, found)):
            raise UrlNotAllowed(_NO_HOST, field=self._field, hint=_PUBLIC)
        return found

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        """What httpcore calls. Of its options none is used here."""
        failure: Exception = httpcore.ConnectError("no address")
        for address in await self.addresses(host, port):
            try:
                return await self._network.connect_tcp(address, port, timeout=_CONNECT_SECONDS)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def check_url(url: str, *, field: str | None, allow: frozenset[str]) -> Target:
    """Take a URL apart, strictly, and refuse an internal address spelled out in it. Nothing is looked up.

    Raises:
        UrlNotAllowed: with ``field``; the message does not repeat the URL.
    """
    parts = _URL.fullmatch(url) if len(url) <= _LONGEST else None
    try:
        if not parts:
            raise ValueError
        scheme, host = parts[1].lower(), (parts[2] or parts[3]).lower()
        address = str(IPv6Address(host)) if parts[2] else _spelled(host)
        port = int(parts[4] or _PORTS[scheme])
        path = quote(parts[5], safe=_PRINTABLE)
        if not 0 < port < 2**16:
            raise ValueError
    except ValueError:
        raise UrlNotAllowed("this is no URL that can be followed", field=field, hint=_PLAIN) from None
    if address and _is_internal(address) and _place(host, port) not in allow:
        raise UrlNotAllowed(_NO_HOST, field=field, hint=_PUBLIC)
    return Target(scheme, host, port, path if path.startswith("/") else f"/{path}")


async def check_target(url: str, *, field: str | None, allow: frozenset[str], network: Network = _NETWORK) -> None:
    """Refuse a URL that leads to an internal place today. It is checked again when it is used.

    Raises:
        UrlNotAllowed: as by ``check_url``, or the host is internal or cannot be found.
    """
    target = check_url(url, field=field, allow=allow)
    try:
        async with asyncio.timeout(_LOOKUP_SECONDS):
            await Guard(allow, field, network).addresses(target.host, target.port)
    except OSError:
        raise UrlNotAllowed(_NO_HOST, field=field, hint=_PUBLIC) from None


async def fetch(
    url: str, *, field: str, limit: int, allow: frozenset[str], seconds: float, network: Network = _NETWORK
) -> bytes:
    """The bytes behind a URL that a caller gave.

    Raises:
        UrlNotAllowed: the URL, or one it redirects to, leads where nobody may go.
        MediaTooLarge: more than ``limit`` bytes.
        UnsupportedMedia: no answer, another than 200, an empty or a compressed one, or not in ``seconds``.
    """
    data = bytearray()

    async def take(part: bytes) -> None:
        data.extend(part)

    await _fetch(url, take, field, limit, Guard(allow, field, network), seconds)
    return bytes(data)


async def download(url: str, target: Path, *, field: str, limit: int, allow: frozenset[str], seconds: float) -> None:
    """Write the bytes behind a URL to a file as they come. Where this raises, there may be some of them.

    Raises:
        StorageFull: they could not be written; and all that :func:`fetch` raises.
    """
    with _written(), await asyncio.to_thread(target.open, "wb") as file:  # closing it writes, too

        async def take(part: bytes) -> None:
            with _written():
                await asyncio.to_thread(file.write, part)

        await _fetch(url, take, field, limit, Guard(allow, field, _NETWORK), seconds)


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFull("what was fetched could not be written") from error


async def _fetch(url: str, take: _Take, field: str, limit: int, guard: Guard, seconds: float) -> None:
    """Hand over what is behind a URL, part by part. Raises as :func:`fetch`."""
    try:
        async with asyncio.timeout(seconds):
            await _follow(url, take, field, limit, guard)
    except TimeoutError:
        raise UnsupportedMedia(f"fetching it took longer than {seconds:g} seconds", field=field) from None
    except socket.gaierror:
        raise UrlNotAllowed(_NO_HOST, field=field, hint=_PUBLIC) from None
    except _BROKEN:
        raise UnsupportedMedia("it could not be fetched", field=field) from None


async def send(
    method: str,
    url: str,
    body: bytes | Path,
    headers: Mapping[str, str],
    *,
    allow: frozenset[str],
    seconds: float,
    network: Network = _NETWORK,
) -> int:
    """Send bytes, or a file from disk, and return the status of the answer. Redirects are not followed.

    Raises:
        UrlNotAllowed: the URL leads where nobody may go.
        Unreachable: nothing could be sent, or no answer came in ``seconds``.
    """
    target = check_url(url, field=None, allow=allow)
    length = len(body) if isinstance(body, bytes) else (await asyncio.to_thread(body.stat)).st_size
    # Two opinions on where a body ends are one too many.
    kept = {name.lower(): value for name, value in headers.items() if name.lower() != "transfer-encoding"}
    kept["content-length"] = str(length)
    try:
        # What is in the answer is of no interest, so its body is not waited for.
        async with (
            asyncio.timeout(seconds),
            aclosing(_blocks(body, length)) as blocks,
            _answer(method, target, kept, blocks, Guard(allow, None, network)) as answer,
        ):
            return answer.status
    except TimeoutError:
        raise Unreachable(f"there was no answer in {round(seconds, 1):g} seconds") from None
    except _BROKEN:
        raise Unreachable("it could not be sent") from None


async def _blocks(body: bytes | Path, size: int) -> AsyncGenerator[bytes, None]:
    """So many bytes of it, even if the file grows meanwhile."""
    with BytesIO(body) if isinstance(body, bytes) else await asyncio.to_thread(body.open, "rb") as file:
        while size:
            block = await asyncio.to_thread(file.read, min(_BLOCK, size))
            if not block:
                raise OSError("the file became shorter")
            size -= len(block)
            yield block


async def _follow(url: str, take: _Take, field: str, limit: int, guard: Guard) -> None:
    target = check_url(url, field=field, allow=guard.allow)
    for _ in range(1 + _REDIRECTS):
        async with _answer("GET", target, {}, None, guard) as answer:
            location = next((value for name, value in answer.headers if name.lower() == b"location"), b"")
            if answer.status not in _MOVED or not location:
                return await _body(answer, take, field, limit)
        here = f"{target.scheme}://{target.name}{target.path}"
        try:
            there = urljoin(here, quote(location, safe=_PRINTABLE))
        except ValueError:
            raise UrlNotAllowed("it redirects to what is no URL", field=field) from None
        before, target = target.scheme, check_url(there, field=field, allow=guard.allow)
        if (before, target.scheme) == ("https", "http"):
            raise UrlNotAllowed("it redirects from https to http", field=field)
    raise UnsupportedMedia(f"it redirects more than {_REDIRECTS} times", field=field)


async def _body(answer: httpcore.Response, take: _Take, field: str, limit: int) -> None:
    if answer.status != 200:
        raise UnsupportedMedia(f"the answer was {answer.status} instead of 200", field=field)
    too_large = MediaTooLarge(f"more than the {limit / 2**20:g} MiB allowed here", field=field, hint=_SMALLER)
    for name, value in answer.headers:
        if name.lower() == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMedia("the answer is compressed, which was not asked for", field=field)
        if name.lower() == b"content-length" and int(value) > limit:
            raise too_large
    size = 0
    async for part in answer.aiter_stream():
        size += len(part)
        if size > limit:
            raise too_large
        await take(part)
        # Of an answer in chunks of one byte, thousands arrive at once. The others get their turn all the same.
        await asyncio.sleep(0)
    if not size:
        raise UnsupportedMedia("it is empty", field=field)


@asynccontextmanager
async def _answer(
    method: str, target: Target, headers: Mapping[str, str], content: AsyncIterator[bytes] | None, guard: Guard
) -> AsyncIterator[httpcore.Response]:
    """One request on one connection. The answer's body is still to come."""
    ours = {"host": target.name, "user-agent": "ltx2", "accept-encoding": "identity", "connection": "close"}
    lines = [
        (name.encode(errors="replace"), text.encode(errors="replace")) for name, text in ({**headers} | ours).items()
    ]
    url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    tls = _tls() if target.scheme == "https" else None
    async with (
        httpcore.AsyncHTTPConnection(url.origin, ssl_context=tls, network_backend=guard) as connection,
        connection.stream(method, url, headers=lines, content=content) as answer,
    ):
        yield answer


@cache
def _tls() -> SSLContext:
    """Reading the certificates takes a while, so that it is done once."""
    return httpcore.default_ssl_context()


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _spelled(host: str) -> str | None:
    """The IPv4 address a host is, if it is one, in any of the ways that resolvers read."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host.removesuffix(".")))
    except OSError:
        return None


def _is_internal(address: str) -> bool:
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return not ip.is_global or any(ip in network for network in _INTERNAL)
