"""What `devices.cpu_memory` sets for the process; the replicas themselves are tested with the step."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json
from pathlib import Path
from nin_jax.devices.cpu_memory import await_dispatches, reuse_memory
await_dispatches()
reuse_memory()
import jax
import jax.numpy as jnp
import numpy as np

def resident():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024  # what the kernel takes back are pages of files

before = resident()
array = np.ones(2**28, np.uint8)
del array
left = resident() - before
x = jnp.ones((8192, 16))
compiled = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x).lower(x).compile()
print(json.dumps({"left": left, "done": [compiled(x).is_ready() for _ in range(5)]}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere memory is given back")
def test_on_a_cpu_a_dispatch_is_done_when_it_returns_and_freed_memory_stays() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True, timeout=600)
    seen = json.loads(ran.stdout)
    assert all(seen["done"])
    assert seen["left"] > 0.95 * 2**28  # Linux counts a little late
