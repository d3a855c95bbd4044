"""The memory of a process tree, against an allocation of known size in a child."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from voxray.commands.peak_memory import peak_memory, tree_memory

HOLD = "import sys; held = bytearray(b'x') * (200 << 20); print('ready', flush=True); sys.stdin.read()"


def test_a_childs_memory_counts_while_it_lives() -> None:
    before = tree_memory(os.getpid())
    command, pipe = [sys.executable, "-c", HOLD], subprocess.PIPE
    with peak_memory(every_s=0.02) as peak, subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        held = tree_memory(os.getpid()) - before
        end = time.monotonic() + 300
        while peak.bytes < before + held - (20 << 20) and time.monotonic() < end:
            time.sleep(0.02)
        child.communicate()
    assert 190 << 20 < held < 400 << 20
    assert peak.bytes >= before + held - (20 << 20)
    assert tree_memory(os.getpid()) < before + (100 << 20)


def test_a_process_that_is_gone_takes_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    assert tree_memory(child.pid) == 0
