"""Where the service listens."""

import errno
import ipaddress
import socket

from embedcache.errors import ServiceError


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, and does not listen yet; port 0 is a free one.

    Raises ServiceError where the address is taken, not this machine's, or not for this user.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise ServiceError(
            f"--host {host!r:.80} is no address; use 127.0.0.1 for this machine alone, 0.0.0.0 for"
            " every network that it is in"
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ServiceError(_explained(error, host, port)) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address of a bound socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_open_to_others(listener: socket.socket) -> bool:
    """Whether other machines may reach a bound socket."""
    return not ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _explained(error: OSError, host: str, port: int) -> str:
    """Return why an address cannot be had, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken by another program, perhaps by this service started"
            f" before; stop that, or choose another, e.g. --port {port % 65535 + 1}, or --port 0"
            " for a free one"
        )
    if error.errno == errno.EACCES:
        return f"port {port} is not for this user, as those below 1024; choose e.g. --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all"
    return f"{host}, port {port}, cannot be used: {error.strerror}"
