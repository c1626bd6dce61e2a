"""Addresses that cannot be had are told apart before anything is loaded."""

import errno
import os
import socket

import pytest

from embedcache.errors import ServiceError
from fusionnet.commands import serve
from fusionnet.serving.address import is_open_to_others, open_socket, url_of


def test_a_port_that_is_taken_is_named_with_another() -> None:
    with open_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is taken .*--port 0"):
            open_socket("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "said"), [("no such host", "is no address"), ("192.0.2.1", "not an address of this")]
)
def test_hosts_that_are_none_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, host: str, said: str
) -> None:
    def resolved(name: str, *_: object, **__: object) -> object:
        if " " in name:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (name, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)  # asks no name server
    with pytest.raises(ServiceError, match=said):
        open_socket(host, 0)


def test_a_port_that_is_not_for_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(ServiceError, match="not for this user"):
        open_socket("127.0.0.1", 1)


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_address_that_others_reach_is_known(host: str, is_open: bool) -> None:
    with open_socket(host, 0) as listener:
        assert is_open_to_others(listener) is is_open
        assert url_of(listener) == f"http://{host}:{listener.getsockname()[1]}"


@pytest.mark.parametrize("words", [("--port", "70000"), ("--max-rows", "0"), ("--threads", "x")])
def test_numbers_out_of_range_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, str]
) -> None:
    monkeypatch.setattr("sys.argv", ["serve", "--run", "run", *words])
    with pytest.raises(SystemExit):
        serve.parse_arguments()
    assert "expected a whole number from" in capsys.readouterr().err
