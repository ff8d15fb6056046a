"""Recordings behind URLs that strangers name: only public addresses, looked up once and connected to as looked up."""

import http.client
import ipaddress
import socket
import ssl
import tempfile
import time
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

from fastslm.redaction import redacted

from .problems import Problem

_MOST_REDIRECTS = 5
_BLOCK_BYTES = 1 << 16
#: For one answer of the other side, and for all of it.
_IDLE_SECONDS, _MOST_SECONDS = 15.0, 300.0
_REDIRECTS = (301, 302, 303, 307, 308)
#: IPv6 addresses that stand for IPv4 ones behind a translator.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, and so is every address that it wraps."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        wrapped: list[Address] = [*filter(None, [address.sixtofour]), *(address.teredo or ())]
        if address in _NAT64:
            wrapped.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(inner) for inner in wrapped):
            return False
    return address.is_global and not address.is_multicast


def fetch(url: str, most_bytes: int, go_on: Callable[[], bool]) -> BinaryIO:
    """Return what lies behind a URL, in a temporary file without a name.

    Args:
        url: ``http`` or ``https``.
        most_bytes: more is refused.
        go_on: whether anybody still waits.

    Raises:
        Problem: it is no public address, cannot be fetched, or is too large.
    """
    ends = time.monotonic() + _MOST_SECONDS
    for _ in range(_MOST_REDIRECTS + 1):
        connection = _connected(url)
        try:
            parts = urlsplit(url)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "fastslm", "Accept": "*/*"})
            response = connection.getresponse()
            if response.status in _REDIRECTS and (place := response.getheader("Location")):
                url = urljoin(url, place)
                continue
            if response.status != 200:
                raise _refused(url, f"its server answers {response.status} {response.reason}")
            return _saved(response, url, most_bytes, ends, go_on)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refused(url, f"it cannot be fetched: {error or type(error).__name__}") from error
        finally:
            connection.close()
    raise _refused(url, f"there are more than {_MOST_REDIRECTS} redirects")


def _connected(url: str) -> http.client.HTTPConnection:
    """Return a connection to a public address that the URL's host has now."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise _refused(url, f"it is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused(url, "only http and https are fetched")
    if parts.username is not None or parts.password is not None:
        raise _refused(url, "a URL with a password is not fetched")
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _refused(url, f"its host is not known: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not all(is_public(ipaddress.ip_address(address.partition("%")[0])) for address in addresses):
        raise _refused(url, "its host is no public address")
    if parts.scheme == "https":
        return _PinnedHTTPS(parts.hostname, port, addresses[0])
    return _Pinned(parts.hostname, port, addresses[0])


class _Pinned(http.client.HTTPConnection):
    """Connects to an address that was checked, whatever the name stands for meanwhile."""

    def __init__(self, host: str, port: int, address: str) -> None:
        super().__init__(host, port, timeout=_IDLE_SECONDS)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)


class _PinnedHTTPS(_Pinned):
    default_port = 443

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _saved(
    response: http.client.HTTPResponse, url: str, most_bytes: int, ends: float, go_on: Callable[[], bool]
) -> BinaryIO:
    file: BinaryIO = tempfile.TemporaryFile(prefix="fastslm-")  # noqa: SIM115 -- its reader closes it
    try:
        while block := response.read1(_BLOCK_BYTES):
            file.write(block)
            if file.tell() > most_bytes:
                raise Problem(413, f"{redacted(url)}: is larger than this server takes.", "audio_url", "too_large")
            if time.monotonic() > ends:
                raise _refused(url, f"it takes longer than {_MOST_SECONDS:g} s")
            if not go_on():
                raise _refused(url, "nobody waits for it any more")
        if response.length:
            raise _refused(url, "it ended before its end")
        file.seek(0)
        return file
    except BaseException:
        file.close()
        raise


def _refused(url: str, why: str) -> Problem:
    return Problem(400, f"audio_url: {redacted(url)[:300]}: {why}.", "audio_url", "invalid_url")
