"""Run the main job in a terminal, and draw its output as docs/run.svg.

python docs/record_run.py
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
from io import StringIO
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
FMNIST = Path(sys.executable).parent / "fmnist"


def record() -> str:
    """Run the main job, and return its output with colour codes."""
    screen, terminal = pty.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(screen, 65536)
            except OSError:  # the terminal is closed
                return
            if not data:
                return
            pieces.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "FMNIST_STORE": f"{folder}/store",
            "FMNIST_STATE_DIR": f"{folder}/state",
            "TERM": "xterm-256color",
            "COLUMNS": "140",
        }
        # Only the results go to the terminal. On a terminal, the progress would be one line that is rewritten.
        command = [FMNIST, "run", "--preset", "quick"]
        done = subprocess.run(command, env=environment, stdout=terminal, stderr=subprocess.PIPE, text=True, check=True)
        os.close(terminal)
        reader.join()
        results = b"".join(pieces).decode().replace("\r\n", "\n")
        return f"\x1b[1m$ make run\x1b[0m\n{done.stderr}\n{results}".replace(folder, "/home/you/fmnist-jobs/var")


if __name__ == "__main__":
    console = Console(record=True, width=128, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(record()), soft_wrap=False)
    # Remove the fonts, which the reader's browser would download.
    picture_format = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(ROOT / "docs" / "run.svg"), title="make run", code_format=picture_format)
