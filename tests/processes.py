"""Two processes on this machine that compute together."""

import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_two_processes(module, *arguments):
    """What each of two processes of a module writes, that get the arguments, a port and their number."""
    command = [sys.executable, "-m", module, *map(str, arguments), str(free_port())]
    processes = [
        subprocess.Popen([*command, str(i)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    outcomes = [process.communicate(timeout=120) for process in processes]
    for process, (_, complaints) in zip(processes, outcomes, strict=True):
        assert process.returncode == 0, complaints
    return [out for out, _ in outcomes]
