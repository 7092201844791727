"""Adapt this process's environment to the user's machine."""

import os

import pytest

from infra.environment import adapt_environment


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that what the test sets is removed at its end
        monkeypatch.setenv(name.upper(), "")
        monkeypatch.delenv(name)
        monkeypatch.delenv(name.upper())


def test_without_a_proxy_nothing_changes() -> None:
    before = dict(os.environ)
    adapt_environment()
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_servers_on_this_machine_bypass_the_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intra.example, 10.0.0.0/8")
    adapt_environment()
    assert os.environ[name] == "http://proxy.example:3128"
    for bypassed in ("no_proxy", "NO_PROXY"):
        hosts = os.environ[bypassed].split(",")
        assert {"intra.example", "10.0.0.0/8", "localhost", "127.0.0.1"} <= set(hosts)
        assert len(hosts) == len(set(hosts))


def test_socks_proxy_does_not_break_the_http_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    monkeypatch.setenv("ALL_PROXY", "socks5h://proxy.example:1080")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    adapt_environment()
    httpx.Client().close()
    assert os.environ["https_proxy"] == "http://proxy.example:3128"


def test_user_id_without_an_entry_gets_a_name_and_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    from pathlib import Path

    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    adapt_environment()
    assert getpass.getuser() == str(os.getuid())
    assert Path.home().is_absolute()
