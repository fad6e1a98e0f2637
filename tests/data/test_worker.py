"""Processes that work for this one: their ends."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nin_jax.data import worker
from nin_jax.errors import UserError

LARGE = functools.partial(np.zeros, 200_000_000, np.uint8)  # far more than a pipe holds


@pytest.fixture
def pool():
    pool = worker.Processes(2, "--flag")
    pool.submit(int).result()
    yield pool
    pool.shutdown(cancel_futures=True)


class KilledSoon:
    """Kills the process that pickles it, a moment later."""

    def __reduce__(self):
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return int, ()


def half_an_answer():
    return LARGE(), KilledSoon()


def test_a_process_that_is_killed_in_the_middle_of_an_answer(pool):
    with pytest.raises(UserError, match="a worker process was killed; if memory ran out, set --flag to less than 2"):
        pool.submit(half_an_answer).result()


def test_a_pool_ends_whatever_its_processes_are_doing(pool):
    for _ in range(4):
        pool.submit(LARGE)
    pool.submit(time.sleep, 600)
    pool.shutdown(cancel_futures=True)
    assert not multiprocessing.active_children()


def test_an_error_comes_back_with_its_place(pool):
    with pytest.raises(ZeroDivisionError) as caught:
        pool.submit(divmod, 1, 0).result()
    assert "_serve" in "".join(caught.value.__notes__)


LEFT_OPEN = """
from nin_jax.data import worker
if __name__ == "__main__":
    pool = worker.Processes(2, "--flag")
    print(pool.submit(abs, -3).result())
"""


def test_a_pool_that_nobody_closes_does_not_keep_the_program(tmp_path, clean_env):
    (tmp_path / "left_open.py").write_text(LEFT_OPEN)
    done = subprocess.run([sys.executable, tmp_path / "left_open.py"], env=clean_env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
