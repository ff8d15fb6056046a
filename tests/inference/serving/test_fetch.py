"""Recordings by URL: public addresses alone, whatever names, redirects and name servers say."""

import ipaddress
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastslm.serving import fetch as fetching
from fastslm.serving.fetch import fetch, is_public
from fastslm.serving.problems import Problem


class Site(BaseHTTPRequestHandler):
    """Serves what the test put there; notes who asked for what."""

    def do_GET(self):
        self.server.asked.append((self.headers["Host"].partition(":")[0], self.path))
        status, headers, body = self.server.pages[self.path]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.pages = [], {"/talk.wav": (200, {}, b"sound" * 1000)}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def names(monkeypatch):
    """Names and the addresses that a name server gives for each, one list after another; loopback is public here."""
    known = {}
    asked = []

    def look_up(host, port, **_):
        asked.append(host)
        given = known[host]
        addresses = given.pop(0) if len(given) > 1 else given[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(fetching.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(fetching, "is_public", lambda address: str(address) == "127.0.0.1")
    # What connects by name would be caught: every connection goes to an address.
    connect = socket.socket.connect

    def to_addresses(self, address):
        ipaddress.ip_address(address[0])
        return connect(self, address)

    def create(address, timeout):
        made = socket.socket()
        made.settimeout(timeout)
        made.connect(address)
        return made

    monkeypatch.setattr(socket.socket, "connect", to_addresses)
    monkeypatch.setattr(fetching.socket, "create_connection", create)
    known["asked"] = asked
    return known


def go_on():
    return True


def test_a_recording_is_fetched_from_the_address_that_was_looked_up_once(site, names):
    names["talks.example"] = [["127.0.0.1"], ["10.0.0.1"]]  # the second answer is for who asks again
    with fetch(f"http://talks.example:{site.server_port}/talk.wav", 10_000, go_on) as file:
        assert file.read() == b"sound" * 1000
    assert names["asked"] == ["talks.example"]
    assert site.asked == [("talks.example", "/talk.wav")]


@pytest.mark.parametrize("place", ["http://inside.example:{port}/talk.wav", "//inside.example:{port}/talk.wav"])
def test_a_redirect_to_a_private_address_is_not_followed(site, names, place):
    names["talks.example"], names["inside.example"] = [["127.0.0.1"]], [["10.0.0.1"]]
    site.pages["/away"] = (302, {"Location": place.format(port=site.server_port)}, b"")
    with pytest.raises(Problem, match=r"inside.example.*: its host is no public address"):
        fetch(f"http://talks.example:{site.server_port}/away", 10_000, go_on)
    assert site.asked == [("talks.example", "/away")]


def test_a_redirect_to_another_public_address_is_followed_and_a_circle_is_not(site, names):
    names["talks.example"] = [["127.0.0.1"]]
    site.pages["/away"] = (302, {"Location": "/talk.wav"}, b"")
    site.pages["/circle"] = (307, {"Location": "/circle"}, b"")
    base = f"http://talks.example:{site.server_port}"
    with fetch(f"{base}/away", 10_000, go_on) as file:
        assert len(file.read()) == 5000
    with pytest.raises(Problem, match="more than 5 redirects"):
        fetch(f"{base}/circle", 10_000, go_on)
    site.pages["/file"] = (302, {"Location": "file:///etc/passwd"}, b"")
    with pytest.raises(Problem, match="only http and https"):
        fetch(f"{base}/file", 10_000, go_on)


def test_a_name_with_one_private_address_among_public_ones_is_refused(site, names):
    names["talks.example"] = [["127.0.0.1", "192.168.0.1"]]
    with pytest.raises(Problem, match="no public address"):
        fetch(f"http://talks.example:{site.server_port}/talk.wav", 10_000, go_on)
    assert not site.asked


def test_what_is_too_large_broken_off_or_waited_for_by_nobody_is_given_up(site, names):
    names["talks.example"] = [["127.0.0.1"]]
    url = f"http://talks.example:{site.server_port}/talk.wav"
    with pytest.raises(Problem, match="larger than this server takes") as caught:
        fetch(url, 4999, go_on)
    assert caught.value.status == 413
    with pytest.raises(Problem, match="nobody waits"):
        fetch(url, 10_000, lambda: False)
    site.pages["/half"] = (200, {"Content-Length": "9000"}, b"sound")
    with pytest.raises(Problem, match="ended before its end"):
        fetch(url.replace("talk.wav", "half"), 10_000, go_on)
    site.pages["/gone"] = (404, {}, b"")
    with pytest.raises(Problem, match="answers 404"):
        fetch(url.replace("talk.wav", "gone"), 10_000, go_on)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.org/x", "/etc/passwd", "http:///x", "gopher://127.0.0.1/", "",
        "http://localhost/", "http://127.0.0.1:8000/v1/models", "http://[::1]/", "http://0.0.0.0/", "http://[::]/",
        "http://169.254.169.254/latest/meta-data", "http://10.1.2.3/", "http://192.168.1.1/", "http://172.16.0.1/",
        "http://100.64.0.1/", "http://[fe80::1]/", "http://[fd00::1]/", "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://2130706433/", "http://0x7f.1/", "http://127.1/",
        "http://user:password@93.184.216.34/", "http://224.0.0.1/", "http://x:99999/", "http://[::1", "http://a\x00b/",
    ],
)  # fmt: skip
def test_no_file_and_no_private_address_is_reached(url, monkeypatch):
    monkeypatch.setattr(fetching.socket, "create_connection", lambda *_a, **_k: pytest.fail("it was connected to"))
    with pytest.raises(Problem) as caught:
        fetch(url, 1000, go_on)
    assert caught.value.status == 400
    assert "password" not in str(caught.value) or "a URL with a password" in str(caught.value)


def test_addresses_of_the_internet_are_public():
    for address in ("93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert is_public(ipaddress.ip_address(address))
