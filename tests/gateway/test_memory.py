"""What is free in one thread's arena is of no use to another."""

import subprocess
import sys

import pytest

_COUNT = """
import ctypes, sys, threading
from gateway.memory import share_one_arena

if sys.argv[1] == "shared":
    share_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
held, at_once = [], threading.Barrier(4)

def work():
    at_once.wait(60)
    held.append(libc.malloc(100_000))
    at_once.wait(60)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc has arenas")
def test_threads_share_one_arena() -> None:
    arenas = {}
    for word in ("shared", "usual"):
        told = subprocess.run([sys.executable, "-c", _COUNT, word], capture_output=True, text=True, check=True)
        arenas[word] = told.stderr.count("Arena ")
    if not arenas["usual"]:
        pytest.skip("this C library is not glibc")
    assert arenas["shared"] == 1 < arenas["usual"]
