"""Many runs of cxr_compress, each a process of its own that may be killed, after one import of TensorFlow.

    python -m tests.pipeline.forked_runs

Reads lines of JSON on stdin, {"arguments": [...], "log": FILE}; forks for each a process that runs the command with its
stderr in the file, and answers with its id; on the line "wait ID" with its exit code (-9 for a killed one). A restart
as a shell does it imports TensorFlow every time, which takes longer than most stages of a small run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from tests.conftest import REPOSITORY

POLL_SECONDS = 0.01


class Server:
    """The other end: what tests use."""

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "tests.pipeline.forked_runs"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def start(self, arguments: list[str], log: Path) -> Run:
        """Start one run."""
        log.write_text("")
        return Run(self, int(self.ask(json.dumps({"arguments": arguments, "log": str(log)}))), log)

    def ask(self, line: str) -> str:
        """Send a line and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


class Run:
    """One process."""

    def __init__(self, server: Server, number: int, log: Path) -> None:
        self._server, self.number, self.log = server, number, log

    def said(self, text: str) -> bool:
        """Wait until the run has said something; False when it ends without."""
        while True:
            alive = self.alive()
            if text in self.log.read_text():
                return True
            if not alive:
                return False
            time.sleep(POLL_SECONDS)

    def alive(self) -> bool:
        """Whether it runs; one that ended and was not waited for does not."""
        state = Path(f"/proc/{self.number}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z"

    def wait(self) -> int:
        """Its exit code, when it has one."""
        return int(self._server.ask(f"wait {self.number}"))


def serve() -> None:
    """Answer until stdin ends."""
    import cxr_compress.cli.compress
    import cxr_compress.pipeline  # noqa: F401 - the slow import that all runs share

    for line in sys.stdin:
        if line.startswith("wait "):
            _, status = os.waitpid(int(line.split()[1]), 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork() or run_here(**json.loads(line))
        print(answer, flush=True)


def run_here(arguments: list[str], log: str) -> NoReturn:
    """In the forked process: run the command and end."""
    from cxr_compress.cli.compress import main

    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    code = 70  # of a crash in the test's own machinery
    try:
        code = main(arguments)
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
