"""Protects the server of `evaluate human`: the origin, size and duration of requests are limited."""

import ipaddress
import re
import secrets
import socket
from collections.abc import Set

from flask import Flask, Response, abort, g, request
from waitress import create_server
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer

LIMIT = 8192  # most bytes of a request's headers, and of its form
TIMEOUT = 10  # seconds for a complete request to arrive, and for an idle connection
CONNECTIONS = 200  # open at a time; further connections wait
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
    """Limits the application to small requests from its own pages, and adds a Content-Security-Policy.

    Styles and scripts of a page run only with the attribute nonce="{{ nonce }}", from `flask.g.nonce`.

    Args:
      app: the application to protect.
      hosts: host names that requests may use for the server, with any port; empty: all names.
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
    """Host names of a server that listens at `host` and that only this machine reaches; otherwise the empty set.

    Other names are refused, because a foreign page whose name points to 127.0.0.1 (DNS rebinding) would count as the
    server's own page. For a server that other machines reach, the names are unknown.
    """
    address = _resolve(host)
    if not ipaddress.ip_address(address).is_loopback:
        return set()
    return {"localhost", "127.0.0.1", "::1", address, host.lower()}


def listen(app: Flask, host: str, port: int) -> BaseWSGIServer:
    """A server of the application that listens at host and port; `run` starts serving.

    Raises:
      OSError: the server cannot listen there.
    """
    server = create_server(
        app,
        host=_resolve(host),
        port=port,
        threads=8,
        ident=None,  # no header that names the server software
        connection_limit=CONNECTIONS,
        channel_timeout=TIMEOUT,
        cleanup_interval=TIMEOUT / 5,
        max_request_header_size=LIMIT,
        max_request_body_size=LIMIT,
    )
    server.channel_class = _Channel
    return server


class _Channel(HTTPChannel):
    """A connection whose timeout counts from the first byte of a request, so that sending slowly does not extend it."""

    def handle_read(self) -> None:
        before, arriving = self.last_activity, self.request is not None
        super().handle_read()
        if arriving:
            self.last_activity = before


def _resolve(host: str) -> str:
    """The first address of a host: a name like localhost has two, and each would get a port of its own."""
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]


def _from_here() -> bool:
    """Whether a form comes from a page of this server. Clients other than browsers send neither header."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site in ("same-origin", "none")  # none: the reload button
    origin = request.headers.get("Origin")
    return origin is None or origin.partition("://")[2] == request.host
