"""Runs the page's JavaScript in Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from nin_jax.page.inline import STATIC

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="there is no node to run JavaScript; test_browser.py runs it too")


def run(script: str, expression: str, argument: Any) -> Any:
    """What an expression of `argument`, which may be a promise, gives where `static/SCRIPT` has run."""
    code = f"""
        const argument = JSON.parse(require("fs").readFileSync(0, "utf8"));
        require("vm").runInThisContext({json.dumps((STATIC / script).read_text())});
        (async () => console.log(JSON.stringify(await ({expression}))))();
    """
    done = subprocess.run(
        [str(NODE), "-e", code], input=json.dumps(argument), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
