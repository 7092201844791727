#!/usr/bin/env python3
"""Run a Ceph object gateway on this machine: a real S3 server for tests and development.

    infra/dev/ceph/gateway.py start [FOLDER] [--port 7480] [--bucket fmnist]
    infra/dev/ceph/gateway.py stop [FOLDER]

`start` prints shell exports. With `eval "$(… start)"`, every S3 client in your shell uses the gateway. If the gateway
is already running, `start` prints them again. It runs one monitor, one storage daemon that keeps its objects in memory,
and one gateway, all bound to 127.0.0.1, with all state in FOLDER. `stop` ends the three processes and removes their
state, including all buckets. Logs stay in FOLDER/log until the next start.

Exit codes: 0 done, 1 Ceph failed, 2 the request was wrong, 3 Ceph's packages are missing and can't be installed.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

PACKAGES = ("ceph-mon", "ceph-osd", "radosgw")
PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
DEFAULT_PORT = 7480
INSTALL_COMMAND = f"apt-get install --yes --no-install-recommends {' '.join(PACKAGES)}"

STATE = ("ceph.conf", "gateway.json", "keyring", "mon", "monmap", "osd", "pids")
"""Names that `start` creates and `stop` removes. Neither touches anything else in the folder."""

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor_port}
public addr = 127.0.0.1
ms bind ipv6 = false
keyring = {folder}/keyring
log file = {folder}/log/$name.log
admin socket =
run dir = {folder}
crash dir = {folder}/log
mon data = {folder}/mon
mon data avail crit = 1
mon allow pool size one = true
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = false
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 16G
# In pages, so that the memory of deleted objects is reused. Getting memory that a virtual machine never used costs
# more than the rest of an upload.
memstore page set = true
osd pool default size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd class update on start = false

[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
# One index object per bucket, so that listings need no merging, and resharding never pauses a bucket.
rgw override bucket index max shards = 1
rgw dynamic resharding = false
# Deleted objects free their memory after a minute instead of two hours.
rgw gc obj min wait = 60
rgw gc processor period = 60
# The default of 512 threads makes a server with few concurrent requests slower, because each request wakes another one.
rgw thread pool size = 8
"""

KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""Makes the daemons keep freed memory, for the reason at `memstore page set`. See mallopt(3)."""


class GatewayError(Exception):
    """An error for the user, with the exit code of the command."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    port: int
    access_key: str
    secret_key: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make S3 clients and this project use it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "FMNIST_STORE": f"s3://{self.bucket}",
        }


def start(folder: Path, port: int | None, bucket: str) -> Gateway:
    """Start the gateway, or find the one that is running in this folder.

    Args:
        folder: folder for all state.
        port: port of the S3 endpoint on 127.0.0.1. 0 takes a free one. None takes the running gateway's port or the
            default.
        bucket: bucket to create if it doesn't exist.

    Raises:
        GatewayError: Ceph is missing or failed, or the port is in use.
    """
    _require_packages()
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        running = _find_running(folder)
        if running is None:
            _stop(folder)
            shutil.rmtree(folder / "log", ignore_errors=True)
            try:
                running = _start(folder, DEFAULT_PORT if port is None else port or _free_port(), bucket)
            except BaseException:
                _stop(folder)
                raise
        elif port not in (None, 0, running.port):
            raise GatewayError(
                f"A gateway is running in {folder} on port {running.port}. Stop it first, or name another folder.", 2
            )
        _make_bucket(running, bucket)
    return running


def stop(folder: Path) -> None:
    """End the processes of a gateway and remove its state, if there are any."""
    if folder.is_dir():
        with _lock(folder):
            _stop(folder)


def _require_packages() -> None:
    if find_spec("boto3") is None:
        raise GatewayError(f"{sys.executable} has no boto3. Run this with the project's own .venv/bin/python.", 2)
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise GatewayError(f"Ceph is not installed ({', '.join(missing)} missing): sudo {INSTALL_COMMAND}", 3)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    # An old package list names files that are gone. So if the first try fails, update the list and try again.
    for command in (INSTALL_COMMAND, "apt-get update", INSTALL_COMMAND):
        done = subprocess.run(shlex.split(command), env=environment, stdout=sys.stderr, check=False)
        if done.returncode == 0 and command == INSTALL_COMMAND:
            return
    raise GatewayError(f"Ceph could not be installed (see above): {INSTALL_COMMAND}", 3)


def _start(folder: Path, port: int, bucket: str) -> Gateway:
    if _answers(port):
        raise GatewayError(f"Port {port} of 127.0.0.1 is in use. Free it, or choose another one with --port.", 2)
    for name in ("log", "mon", "osd", "pids"):
        (folder / name).mkdir()
    fsid, storage_id = str(uuid4()), str(uuid4())
    monitor_port = _free_port()
    configuration = folder / "ceph.conf"
    configuration.write_text(
        CONFIGURATION.format(fsid=fsid, folder=folder.absolute(), port=port, monitor_port=monitor_port)
    )
    ceph = _Ceph(folder, configuration)

    _make_keyring(ceph, folder / "keyring")
    monitor_map = str(folder / "monmap")
    ceph.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor_port}]", monitor_map)
    ceph.run("ceph-mon", "--mkfs", "--id", "a", "--monmap", monitor_map, "--keyring", str(folder / "keyring"))
    ceph.spawn("ceph-mon", "--id", "a")
    ceph.run("ceph", "--connect-timeout", "30", "osd", "new", storage_id)
    ceph.run("ceph-osd", "--mkfs", "--id", "0", "--osd-uuid", storage_id)
    ceph.spawn("ceph-osd", "--id", "0")
    ceph.spawn("radosgw", "--name", "client.rgw.a")
    # Ceph creates the keys, so no command line shows them.
    user = json.loads(ceph.run("radosgw-admin", "user", "create", "--uid", "fmnist", "--display-name", "fmnist"))
    _await_gateway(ceph, port)

    keys = user["keys"][0]
    gateway = Gateway(port, keys["access_key"], keys["secret_key"], bucket)
    with _private_file(folder / "gateway.json") as descriptor:
        os.write(descriptor, json.dumps(asdict(gateway)).encode())
    return gateway


def _make_keyring(ceph: "_Ceph", keyring: Path) -> None:
    capabilities = {
        "mon.": {"mon": "allow *"},
        "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
        "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
        "client.rgw.a": {"mon": "allow rw", "osd": "allow rwx"},
    }
    with _private_file(keyring):
        pass
    for name, allowed in capabilities.items():
        options = [word for service, capability in allowed.items() for word in ("--cap", service, capability)]
        ceph.run("ceph-authtool", str(keyring), "--gen-key", "--name", name, *options)


class _Ceph:
    """Runs Ceph's programs with one configuration."""

    def __init__(self, folder: Path, configuration: Path) -> None:
        self._folder = folder
        self._configuration = str(configuration.absolute())

    def run(self, program: str, *arguments: str) -> str:
        """Run a program to its end, and return its standard output."""
        try:
            done = subprocess.run(
                [*self._command(program), *arguments], capture_output=True, text=True, timeout=120, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise GatewayError(f"{program} did not end within {error.timeout:.0f} s.\n{self.log_tail()}") from None
        if done.returncode != 0:
            raise GatewayError(f"{program} failed with {done.returncode}: {done.stderr.strip()}\n{self.log_tail()}")
        return done.stdout

    def spawn(self, program: str, *arguments: str) -> None:
        """Start a daemon in its own session, so that Ctrl-C in your shell doesn't end it."""
        with (self._folder / "log" / f"{program}.out").open("ab") as output:
            process = subprocess.Popen(
                [*self._command(program), "--foreground", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | KEEP_MEMORY,
            )
        (self._folder / "pids" / program).write_text(str(process.pid))

    def check_alive(self) -> None:
        """Check that all daemons are running.

        Raises:
            GatewayError: one has ended.
        """
        for pid_file in (self._folder / "pids").iterdir():
            if not _is_ours(int(pid_file.read_text()), self._folder):
                raise GatewayError(f"{pid_file.name} ended at once.\n{self.log_tail()}")

    def log_tail(self) -> str:
        """Return the last lines of each log, for error messages."""
        tails = []
        for log in sorted((self._folder / "log").glob("*")):
            if log.is_file() and (lines := log.read_text(errors="replace").splitlines()[-5:]):
                tails.append("\n".join([f"--- {log}", *lines]))
        return "\n".join(tails)

    def _command(self, program: str) -> list[str]:
        if program in ("monmaptool", "ceph-authtool"):
            return [program]
        return [program, "--conf", self._configuration]


def _await_gateway(ceph: _Ceph, port: int) -> None:
    deadline = time.monotonic() + 120
    while not _is_s3(port):
        ceph.check_alive()
        if time.monotonic() > deadline:
            raise GatewayError(f"radosgw did not answer on port {port} within two minutes.\n{ceph.log_tail()}")
        time.sleep(0.1)


def _is_s3(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
            return True
    except urllib.error.HTTPError:
        return False
    except OSError:
        return False


def _make_bucket(gateway: Gateway, bucket: str) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=gateway.environment["AWS_ENDPOINT_URL"],
        region_name=gateway.environment["AWS_REGION"],
        aws_access_key_id=gateway.access_key,
        aws_secret_access_key=gateway.secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "total_max_attempts": 8}),
    )
    try:
        client.create_bucket(Bucket=bucket)  # Ceph answers 200 if the owner's bucket exists
    except (BotoCoreError, ClientError) as error:
        raise GatewayError(f"The bucket {bucket} could not be created: {error}") from None


def _find_running(folder: Path) -> Gateway | None:
    try:
        gateway = Gateway(**json.loads((folder / "gateway.json").read_text()))
        pids = [int((folder / "pids" / name).read_text()) for name in ("ceph-mon", "ceph-osd", "radosgw")]
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return gateway if all(_is_ours(pid, folder) for pid in pids) and _is_s3(gateway.port) else None


def _stop(folder: Path) -> None:
    # The gateway goes first, while it has its storage. The storage daemon is killed, because its data is thrown away.
    for program, ending in (("radosgw", signal.SIGTERM), ("ceph-osd", signal.SIGKILL), ("ceph-mon", signal.SIGTERM)):
        try:
            pid = int((folder / "pids" / program).read_text())
        except (FileNotFoundError, ValueError):
            continue
        _end(pid, folder, ending)
    for name in STATE:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _end(pid: int, folder: Path, ending: signal.Signals) -> None:
    for number, patience_seconds in ((ending, 5.0), (signal.SIGKILL, 10.0)):
        if not _is_ours(pid, folder):
            return
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience_seconds
        while _is_ours(pid, folder) and time.monotonic() < deadline:
            time.sleep(0.02)
    if _is_ours(pid, folder):
        raise GatewayError(f"Process {pid} did not end. Kill it, and run stop again.")


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether a process is alive and belongs to this folder. Its id may have been reused by another process."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return str((folder / "ceph.conf").absolute()) in command  # a zombie has no command line


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _private_file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run a Ceph object gateway on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("start", "start it and print shell exports"), ("stop", "end it and remove its state")):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", nargs="?", type=Path, default=Path("var/ceph"), help="all state (var/ceph)")
        if name == "start":
            command.add_argument("--port", type=int, help=f"port of the endpoint ({DEFAULT_PORT}); 0 takes a free one")
            command.add_argument("--bucket", default="fmnist", help="bucket to create if it doesn't exist (fmnist)")
    arguments = parser.parse_args()
    try:
        if arguments.command == "stop":
            stop(arguments.folder)
        else:
            for name, value in start(arguments.folder, arguments.port, arguments.bucket).environment.items():
                sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    except GatewayError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
