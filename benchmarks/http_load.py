"""Load for an HTTP server: keep-alive connections, each with one request under way, from one process without a library.

Costs some 15 µs a request, so that the server is what is measured.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Sequence


def run(port: int, make: Callable[[], bytes], *, connections: int, seconds: float) -> tuple[int, Sequence[float]]:
    """Requests answered with 2xx within `seconds`, and the latency of each in seconds; others raise."""
    selector = selectors.DefaultSelector()
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    sent: dict[int, float] = {}
    latencies: list[float] = []
    try:
        for each in sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(each, selectors.EVENT_READ)
            sent[each.fileno()] = time.perf_counter()
            each.sendall(make())
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            for key, _ in selector.select(end - now):
                channel = key.fileobj
                assert isinstance(channel, socket.socket)
                answer = channel.recv(65536)
                while not _whole(answer):
                    more = channel.recv(65536)
                    if not more:
                        raise RuntimeError(f"the server closed the connection after {answer!r}")
                    answer += more
                if answer[9:10] != b"2":
                    raise RuntimeError(f"the server answered {answer!r}")
                now = time.perf_counter()
                latencies.append(now - sent[key.fd])
                sent[key.fd] = now
                channel.sendall(make())
    finally:
        for each in sockets:
            each.close()
        selector.close()
    return len(latencies), latencies


def request(path: str, body: bytes, *, port: int, token: str = "none", media_type: str = "application/json") -> bytes:
    """One POST request."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\nAccept: */*\r\n"
        f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    at = head.lower().find(b"content-length:")
    return at >= 0 and len(body) >= int(head[at + 15 :].split(b"\r\n", 1)[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int) -> None:
    """Until somebody listens there."""
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"nobody listens on port {port}")
