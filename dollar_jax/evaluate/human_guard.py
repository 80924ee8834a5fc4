"""What stands between the page of `evaluate human` and strangers: whose requests are taken, how long and how large."""

import ipaddress
import re
import secrets
import socket
from collections.abc import Set

from flask import Flask, Response, abort, g, request
from waitress import create_server
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer

LIMIT = 8192  # bytes of a request's head, and of its form
TIMEOUT = 10  # seconds for a request to arrive whole, and for an idle connection
CONNECTIONS = 200  # at a time; more wait for one of these to end
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer, browsers would send the page's own form with `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; media-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def protect(app: Flask, hosts: Set[str]) -> None:
    """Lets the application take small requests from its own page only, and tell browsers what the page may do.

    The styles and scripts of a page run if they have the attribute nonce="{{ nonce }}", from `flask.g.nonce`.

    Args:
      hosts: the names that requests may call the server by, whatever the port; none: all.
    """
    app.config.update(MAX_CONTENT_LENGTH=LIMIT, MAX_FORM_MEMORY_SIZE=LIMIT, MAX_FORM_PARTS=16)

    @app.before_request
    def refuse() -> None:
        g.nonce = secrets.token_urlsafe(16)
        if hosts and re.sub(r":\d+$", "", request.host).strip("[]").lower() not in hosts:
            abort(403, "This is no address of the page.")
        if request.method == "POST" and not _from_here():
            abort(403, "This form was not sent by the page itself.")

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        response.headers["Content-Security-Policy"] = POLICY.format(nonce=g.nonce)
        return response


def own_names(host: str) -> set[str]:
    """The names of a server that listens at `host`, if only this machine reaches it; otherwise nobody knows them all.

    A page of somebody else's whose name points to 127.0.0.1 (DNS rebinding) would count as the server's own.
    """
    address = _resolve(host)
    if not ipaddress.ip_address(address).is_loopback:
        return set()
    return {"localhost", "127.0.0.1", "::1", address, host.lower()}


def listen(app: Flask, host: str, port: int) -> BaseWSGIServer:
    """A server of the application; its `run` serves.

    Raises:
      OSError: it cannot listen there.
    """
    server = create_server(
        app,
        host=_resolve(host),
        port=port,
        threads=8,
        ident=None,  # no header that says what to attack
        connection_limit=CONNECTIONS,
        channel_timeout=TIMEOUT,
        cleanup_interval=TIMEOUT / 5,
        max_request_header_size=LIMIT,
        max_request_body_size=LIMIT,
    )
    server.channel_class = _Channel
    return server


class _Channel(HTTPChannel):
    """A connection whose time-out counts from the first byte of a request: one more now and then wins no time."""

    def handle_read(self) -> None:
        before, arriving = self.last_activity, self.request is not None
        super().handle_read()
        if arriving:
            self.last_activity = before


def _resolve(host: str) -> str:
    """One address, where a name like localhost has two: each would get a port of its own."""
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]


def _from_here() -> bool:
    """Whether a form comes from a page of this server; what is no browser sends neither header."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site in ("same-origin", "none")  # none: the reload button
    origin = request.headers.get("Origin")
    return origin is None or origin.partition("://")[2] == request.host
