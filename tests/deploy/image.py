"""Build the image into a folder without a container engine, and run its programs there.

`COPY` and the `RUN` steps of `install.sh` are executed unchanged, except that the image's paths are below the folder.
The other steps are left out, because Debian's packages and the user's account need a root file system.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CONTAINERS = REPOSITORY / "infra" / "deploy" / "containers"
PREFIX = "/opt/fmnist"
USER_ID = 10001
"""User id in the image. Tests that run as root use it, others run the image as themselves."""

_IMAGE_PATHS = re.compile(r"(?<![\w./-])(/opt/fmnist|/wheel|/var/lib/fmnist)(?![\w-])")


@dataclass(frozen=True)
class Instruction:
    """An instruction of a Containerfile, with its continuation lines joined."""

    word: str
    value: str
    stage: int


def instructions(file: Path = CONTAINERS / "Containerfile") -> list[Instruction]:
    found = []
    stage = -1
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, value = line.strip().partition(" ")
            stage += word == "FROM"
            found.append(Instruction(word, " ".join(value.split()), stage))
    return found


def copies() -> list[tuple[list[str], str]]:
    """Return the sources and the target of each `COPY` from the build context."""
    found = [shlex.split(step.value) for step in instructions() if step.word == "COPY" and "--from" not in step.value]
    return [(words[:-1], words[-1]) for words in found]


@dataclass(frozen=True)
class Image:
    """A folder with the image's `/opt/fmnist`, and with the folder that a container writes to."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that the image sets."""
        found = dict(
            word.split("=", 1) for step in instructions() if step.word == "ENV" for word in shlex.split(step.value)
        )
        home = {"HOME": "/var/lib/fmnist", "TMPDIR": "/var/lib/fmnist/tmp"}
        return {name: self.inside(value) for name, value in (found | home).items()} | {
            name: value for name, value in os.environ.items() if name in ("CI", "LANG")
        }

    def inside(self, text: str) -> str:
        """Replace the image's paths in a text by paths in the folder."""
        return _IMAGE_PATHS.sub(lambda found: f"{self.root}{found[0]}", text)

    def build(self, variant: str, python: Path) -> None:
        """Run the build steps."""
        folder = self.root / "build"
        folder.mkdir()
        for step in instructions():
            if step.word == "COPY" and "--from" not in step.value:
                *sources, target = shlex.split(step.value)
                _copy(sources, folder, self.inside(target))
            if step.word == "RUN" and "install.sh" in step.value:
                command = self.inside(re.sub(r"--mount=\S+ ", "", step.value))
                settings = {"VARIANT": variant, "PYTHON": str(python)}
                subprocess.run(["sh", "-euc", command], cwd=folder, env=os.environ | settings, check=True, timeout=280)
        shutil.rmtree(folder)
        (self.home / "tmp").mkdir(parents=True)
        self.give(self.home)

    @property
    def home(self) -> Path:
        """Folder that a container can write to."""
        return Path(self.inside("/var/lib/fmnist"))

    def give(self, folder: Path) -> None:
        """Make the image's user the owner of a folder and its contents."""
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, USER_ID, USER_ID)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of the entrypoint, without tini, which is process 1 of a container."""
        return ["sh", self.inside(f"{PREFIX}/entrypoint.sh"), *arguments]

    def start(self, *arguments: str, log: Path | None = None, **variables: str) -> "subprocess.Popen[str]":
        """Start the entrypoint as the image's user. Its output goes to the log file, or to a pipe."""
        output = subprocess.PIPE if log is None else log.open("w")
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.home,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **_as_the_user(),
        )

    def run(self, *arguments: str, timeout: float = 120, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments),
            cwd=self.home,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **_as_the_user(),
        )


def readable_python() -> Path | None:
    """Return a Python that the image's user can run: Debian's, as in the image, or this one."""
    for python in (Path("/usr/bin/python3"), Path(sys.executable).resolve()):
        if python.exists() and _can_run(python):
            return python
    return None


def _can_run(python: Path) -> bool:
    program = "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", program], check=False, cwd="/", **_as_the_user()).returncode == 0
    except PermissionError:
        return False


def _as_the_user() -> dict[str, int | list[int]]:
    return {"user": USER_ID, "group": USER_ID, "extra_groups": []} if os.geteuid() == 0 else {}


def _copy(sources: list[str], folder: Path, target: str) -> None:
    into = folder / target
    for source in sources:
        origin = REPOSITORY / source
        if origin.is_dir():
            shutil.copytree(origin, into, ignore=shutil.ignore_patterns("__pycache__", ".env"))
        else:
            (into if target.endswith("/") else into.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, into)
