"""Requests that are odd, and those that are wrong, against RFC 9110 and RFC 9112.

What is legal leaves the next request on the same connection whole; what is not ends it, and harms no other.
"""

from __future__ import annotations

import asyncio

import pytest
from http_fakes import Server, over_sockets

NEXT = b"POST /next HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\nn"


def head(*lines: bytes, start: bytes = b"POST /a HTTP/1.1") -> bytes:
    return b"\r\n".join((start, b"Host: x", *lines, b"", b""))


CHUNKED = b"Transfer-Encoding: chunked"
# What is sent, and the answer's body.
LEGAL: dict[str, tuple[bytes, bytes]] = {
    "chunks with extensions": (head(CHUNKED) + b'1;x=y\r\na\r\n2;x="y z"\r\nbc\r\n0;last\r\n\r\n', b"POST /a  abc"),
    "trailers": (head(CHUNKED) + b"1\r\na\r\n0\r\nX-Sum: 1\r\nExpect: 100-continue\r\n\r\n", b"POST /a  a"),
    "chunk sizes with zeros and of either case": (
        head(CHUNKED) + b"00a\r\n0123456789\r\n0B\r\n0123456789a\r\n000\r\n\r\n",
        b"POST /a  01234567890123456789a",
    ),
    "headers in capitals": (head(b"TRANSFER-ENCODING: CHUNKED") + b"1\r\na\r\n0\r\n\r\n", b"POST /a  a"),
    "headers in small letters": (head(b"content-length:1") + b"a", b"POST /a  a"),
    "white space around values": (head(b"Content-Length: \t 1 \t ") + b"a", b"POST /a  a"),
    "letters beyond ASCII in a value": (head(b"X: \xe9", b"Content-Length: 0"), b"POST /a  "),
    "an empty value": (head(b"X:", b"Content-Length: 0"), b"POST /a  "),
    "a body of GET": (head(b"Content-Length: 1", start=b"GET /a HTTP/1.1") + b"a", b"GET /a  a"),
    "no body": (head(), b"POST /a  "),
    "line ends before the request": (b"\r\n\r\n" + head(), b"POST /a  "),
    "a whole URL": (head(start=b"GET http://x:8/a?q=1 HTTP/1.1"), b"GET /a q=1 "),
    "a whole URL without a path": (head(start=b"GET http://x HTTP/1.1"), b"GET /  "),
    "a whole URL with a query alone": (head(start=b"GET http://x?q HTTP/1.1"), b"GET / q "),
    "no path": (head(start=b"OPTIONS * HTTP/1.1"), b"OPTIONS *  "),
    "a path of two slashes": (head(start=b"GET //a/b?q HTTP/1.1"), b"GET //a/b q "),
    "question marks in a query": (head(start=b"GET /a?b?c HTTP/1.1"), b"GET /a b?c "),
    "an encoded question mark": (head(start=b"GET /a%3Fb%20c HTTP/1.1"), b"GET /a?b c  "),
    # It separates nothing, whatever guards a path in front of the server (RFC 3986, 2.2).
    "an encoded slash": (head(start=b"GET /a%2Fb%2fc%20 HTTP/1.1"), b"GET /a%2Fb%2fc   "),
    "another expectation": (head(b"Expect: 200-ok", b"Content-Length: 1") + b"a", b"POST /a  a"),
    # As Java's client asks for HTTP/2.
    "an upgrade to HTTP/2 with a body": (
        head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAM", b"Content-Length: 1")
        + b"a",
        b"POST /a  a",
    ),
    "an upgrade in chunks": (
        head(b"Connection: Upgrade", b"Upgrade: h2c", CHUNKED) + b"1\r\na\r\n0\r\n\r\n",
        b"POST /a  a",
    ),
    "an upgrade without a body": (
        head(b"Upgrade: websocket", b"Connection: keep-alive, upgrade", start=b"GET /a HTTP/1.1"),
        b"GET /a  ",
    ),
}
SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
# What is sent, and the status. None of it reaches the application.
WRONG: dict[str, tuple[bytes, int]] = {
    "no host": (b"GET /a HTTP/1.1\r\n\r\n", 400),
    "two hosts": (head(b"Host: y"), 400),
    "a length and chunks": (head(b"Content-Length: 5", CHUNKED) + SMUGGLED, 400),
    "chunks and a length": (head(CHUNKED, b"Content-Length: 5") + SMUGGLED, 400),
    "a length twice": (head(b"Content-Length: 1", b"Content-Length: 1") + b"a", 400),
    "two lengths": (head(b"Content-Length: 1", b"Content-Length: 2") + b"ab", 400),
    "a list of lengths": (head(b"Content-Length: 1, 1") + b"a", 400),
    "a length with a sign": (head(b"Content-Length: +1") + b"a", 400),
    "chunks twice": (head(CHUNKED, CHUNKED) + SMUGGLED, 400),
    "chunks that are not last": (head(b"Transfer-Encoding: chunked, gzip") + SMUGGLED, 400),
    "almost chunks": (head(b"Transfer-Encoding: xchunked") + SMUGGLED, 400),
    "chunks behind a control character": (head(b"Transfer-Encoding: \x0bchunked") + SMUGGLED, 400),
    "a coding nobody knows": (head(b"Transfer-Encoding: identity") + SMUGGLED, 400),
    "white space before a colon": (b"POST /a HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "a folded header": (head(b"X: a\r\n b"), 400),
    "a folded length": (head(b"Content-Length:\r\n 1") + b"a", 400),
    "a lone line feed": (b"GET /a HTTP/1.1\nHost: x\n\n", 400),
    "a lone line feed in a header": (head(b"X: a\nContent-Length: 5") + b"abcde", 400),
    "a lone carriage return": (head(b"X: a\rb"), 400),
    "a NUL in a value": (head(b"X: a\0b"), 400),
    "a NUL in a name": (head(b"X\0: a"), 400),
    "chunks with lone line feeds": (head(CHUNKED) + b"1\na\n0\n\n", 400),
    "a lone line feed in an extension": (head(CHUNKED) + b"1;a\nb\r\na\r\n0\r\n\r\n", 400),
    "letters beyond ASCII in a path": (head(start="GET /é HTTP/1.1".encode()), 400),
    "a tunnel": (head(start=b"CONNECT x:80 HTTP/1.1"), 501),
    "a tunnel of HTTP/1.0": (head(start=b"CONNECT x:80 HTTP/1.0"), 501),
    "HTTP/0.9": (b"GET /a\r\n", 400),
    "HTTP/2.0": (head(start=b"GET /a HTTP/2.0"), 505),
    "HTTP/1.2": (head(start=b"GET /a HTTP/1.2"), 400),
    "100 KiB of one header": (head(b"X: " + b"x" * 100_000), 431),
    "100 KiB of headers": (head(*[b"X: xxxxx"] * 10_000), 431),
    "100 KiB of a path": (head(start=b"GET /" + b"x" * 100_000 + b" HTTP/1.1"), 431),
}


@pytest.mark.parametrize("by_byte", [False, True])
@pytest.mark.parametrize(("sent", "expected"), LEGAL.values(), ids=LEGAL)
def test_what_is_legal_leaves_the_next_request_whole(sent: bytes, expected: bytes, by_byte: bool) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        client = await server.connect()
        if by_byte:
            for at in range(len(sent)):
                client.writer.write(sent[at : at + 1])
                await asyncio.sleep(0)
            assert (await client.answer())[1] == expected
            client.writer.write(NEXT)
        else:
            client.writer.write(sent + NEXT)
            assert (await client.answer())[1] == expected
        assert (await client.answer())[1] == b"POST /next  n"
        assert await client.ended() == b""

    run()


@pytest.mark.parametrize(("sent", "status"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused_and_nothing_is_smuggled_in(sent: bytes, status: int) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        client, other = await server.connect(), await server.connect()
        client.writer.write(sent + NEXT)
        answer = await client.ended()
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.count(b"\r\nconnection: ") == 1
        assert "/next" not in server.app.asked
        assert "/smuggled" not in server.app.asked
        other.writer.write(NEXT)
        assert (await other.answer())[1] == b"POST /next  n"

    run()


@over_sockets
async def test_a_thousand_upgrades_in_one_piece_are_requests_like_any_others(server: Server) -> None:
    client = await server.connect()
    client.writer.write(head(b"Connection: upgrade", b"Upgrade: a") * 1000 + NEXT)
    for _ in range(1000):
        assert (await client.answer())[1] == b"POST /a  "
    assert (await client.answer())[1] == b"POST /next  n"


@pytest.mark.parametrize("frame", [b"0\r\nX: %s", b"1;%s"], ids=["trailers", "extensions"])
def test_what_frames_chunks_is_bounded(frame: bytes) -> None:
    @over_sockets
    async def run(server: Server) -> None:
        client = await server.connect()
        client.writer.write(head(CHUNKED))
        client.writer.write(frame % bytes(0x78 for _ in range(1_000_000)))
        assert (await client.ended()).startswith(b"HTTP/1.1 431 ")

    run()


@over_sockets
async def test_http_1_0_is_never_told_to_continue(server: Server) -> None:
    client = await server.connect()
    client.writer.write(b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na")
    answer = await client.ended()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"POST /a  a")


@over_sockets
async def test_who_is_answered_instead_of_told_to_continue_is_not_kept(server: Server) -> None:
    client = await server.connect()
    client.writer.write(head(b"Expect: 100-Continue", b"Content-Length: 100", start=b"POST /early HTTP/1.1"))
    # Whether the body or another request follows nobody can know.
    await asyncio.sleep(0.02)
    client.writer.write(b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await client.ended()
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(b"POST /early  ")
    assert server.app.asked == ["/early"]


@over_sockets
async def test_an_answer_before_the_end_of_a_long_body_reaches_a_client_that_first_sends_it_all(server: Server) -> None:
    client = await server.connect()
    body = bytes(30_000_000)
    client.writer.write(head(b"Connection: close", b"Content-Length: %d" % len(body), start=b"POST /early HTTP/1.1"))
    for start in range(0, len(body), 1_000_000):
        client.writer.write(body[start : start + 1_000_000])
        await client.writer.drain()
    assert (await client.ended()).endswith(b"POST /early  ")
