"""The image without a container engine: the steps of its Containerfile, into a folder, and what that holds, run there.

COPY and the RUN steps of `install.sh` are done as they stand, with the paths of the image below the folder. What the
steps before them do needs a root file system of its own: Debian's packages and the user's account.
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
"""Of the image's user, as the tests run it where they are root; else they run it as themselves."""

_OF_THE_IMAGE = re.compile(r"(?<![\w./-])(/opt/fmnist|/wheel|/var/lib/fmnist)(?![\w-])")


@dataclass(frozen=True)
class Instruction:
    """A line of a Containerfile, with those that continue it."""

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
    """What is copied from the build's context, and where to."""
    found = [shlex.split(step.value) for step in instructions() if step.word == "COPY" and "--from" not in step.value]
    return [(words[:-1], words[-1]) for words in found]


@dataclass(frozen=True)
class Image:
    """A folder that holds what the image holds under /opt/fmnist, and one for what a container writes."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """As the image sets it."""
        found = dict(
            word.split("=", 1) for step in instructions() if step.word == "ENV" for word in shlex.split(step.value)
        )
        home = {"HOME": "/var/lib/fmnist", "TMPDIR": "/var/lib/fmnist/tmp"}
        return {name: self.inside(value) for name, value in (found | home).items()} | {
            name: value for name, value in os.environ.items() if name in ("CI", "LANG")
        }

    def inside(self, text: str) -> str:
        """Paths of the image, as they are in the folder."""
        return _OF_THE_IMAGE.sub(lambda found: f"{self.root}{found[0]}", text)

    def build(self, variant: str, python: Path) -> None:
        """Do the steps."""
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
        """All that may be written."""
        return Path(self.inside("/var/lib/fmnist"))

    def give(self, folder: Path) -> None:
        """Make the image's user the owner of what lies there."""
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, USER_ID, USER_ID)

    def command(self, *arguments: str) -> list[str]:
        """The entrypoint without tini, which is process 1 of a container, with arguments."""
        return ["sh", self.inside(f"{PREFIX}/entrypoint.sh"), *arguments]

    def start(self, *arguments: str, log: Path | None = None, **variables: str) -> "subprocess.Popen[str]":
        """Start the entrypoint as the image's user; what it prints goes to the log, or a pipe."""
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
    """A Python that the image's user may run: Debian's, as in the image, or this one."""
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
