"""The page's files, and who may ask for them: no other site, no borrowed host name.

A web page anywhere can make a browser connect to a server on its own machine. Two checks keep it
out: the Origin header, which browsers always send with a WebSocket, must be this very server; and
the Host header must be an address or a name that nobody else can point here (a rebound DNS name is
refused), so that a page cannot pretend to come from this server.
"""

import http
import importlib.resources
import ipaddress
import urllib.parse

from websockets.datastructures import Headers, MultipleValuesError
from websockets.http11 import Request, Response

PAGE = importlib.resources.files("experiments") / "play_page"
FILES = {
  "/": ("index.html", "text/html; charset=utf-8"),
  "/play.css": ("play.css", "text/css; charset=utf-8"),
  "/graph.js": ("graph.js", "text/javascript; charset=utf-8"),
  "/play.js": ("play.js", "text/javascript; charset=utf-8"),
}
STREAM = "/stream"


def security_headers(host: str) -> dict[str, str]:
  """Headers of every answer; `host` is "name:port" as the browser knows this server."""
  allowed = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": f"'self' ws://{host}",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
  }
  return {
    "Content-Security-Policy": "; ".join(f"{k} {v}" for k, v in allowed.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
  }


def refusal(request: Request, *, loopback: bool) -> str | None:
  """Why a request is refused, in words; None if it is welcome.

  Args:
    request: the HTTP request.
    loopback: whether the server listens on this machine alone.
  """
  try:
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
  except MultipleValuesError:
    return "Host and Origin may be given once."
  if host is None or not _trusted(host, loopback):
    return "This host name is not this server's: use its address, such as http://127.0.0.1:PORT."
  # Programs send no Origin; browsers always do, and cannot be made to lie about it.
  if origin is not None and origin != f"http://{host}":
    return "Pages of other sites may not use this server."
  return None


def _trusted(host, loopback):
  name = urllib.parse.urlsplit(f"//{host}").hostname
  if name is None:
    return False
  try:
    address = ipaddress.ip_address(name)
  except ValueError:
    return name == "localhost"
  return address.is_loopback or not loopback


def respond(request: Request, *, loopback: bool) -> Response | None:
  """The answer to a request; None lets the WebSocket handshake go on."""
  try:
    refused = refusal(request, loopback=loopback)
  except ValueError:  # a Host that is no host
    refused = "This is no host name."
  if refused:
    return _response(http.HTTPStatus.FORBIDDEN, "text/plain", f"{refused}\n".encode(), "")
  path, host = request.path.partition("?")[0], request.headers["Host"]
  if path == STREAM:
    return None
  if path not in FILES:
    return _response(http.HTTPStatus.NOT_FOUND, "text/plain", b"There is no such page.\n", host)
  name, kind = FILES[path]
  return _response(http.HTTPStatus.OK, kind, (PAGE / name).read_bytes(), host)


def _response(status, kind, body, host):
  headers = {"Content-Type": kind, "Content-Length": str(len(body)), **security_headers(host)}
  return Response(status.value, status.phrase, Headers(headers), body)
