"""Settings of every test: eight CPU devices in this process, strict arithmetic, a cache of the session's own."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# pytest-xdist's workers have the environment of the process that starts them, and so its cache.
CACHE = tempfile.TemporaryDirectory(prefix="nin_jax-tests-") if "PYTEST_XDIST_WORKER" not in os.environ else None
if CACHE:
    os.environ["XDG_CACHE_HOME"] = CACHE.name
# What another process is just writing to that cache is compiled, without a word on the stderr that a test may read.
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry"
# There is a worker for each core. On busy cores the threads of NumPy, SciPy and PyTorch spin: whitening takes 20 times as long.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# On busy cores two processes of a run may begin far apart.
os.environ["NIN_JAX_RENDEZVOUS_SECONDS"] = "600"
os.environ["NPROC"] = "16"  # threads of XLA on a CPU: eight devices that wait for each other need one each
# Most of the time goes into compiling small programs: without LLVM's optimisation and XLA's fusion emitters it is half.
# The commands that tests start by `clean_env` compile as their users' do.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
EMITTERS = version("jaxlib").startswith("0.10.")  # later ones have no such flag, and end a process that sets it
if EMITTERS:
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    # Eight devices on few busy cores wait long for each other; after 40 s XLA would abort.
    os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"

if (
    os.environ.get("JAX_PLATFORMS", "cpu") != "cpu"
):  # on a GPU, most of the time of a compilation goes into trying kernels
    os.environ["XLA_FLAGS"] += " --xla_gpu_autotune_level=0"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from jax.sharding import AxisType  # noqa: E402

if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")  # also where there is an accelerator
jax.config.update("jax_cpu_enable_async_dispatch", False)  # as in a run
# Many tests train the same small networks: each program is compiled once a session, and found where commands look for it.
jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["XDG_CACHE_HOME"], "nin_jax", "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile(
    "nin_jax", deadline=None, derandomize=True, database=None, max_examples=20, print_blob=False
)
hypothesis.settings.load_profile("nin_jax")


def pytest_unconfigure() -> None:
    if CACHE:
        CACHE.cleanup()


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """The runs of a module have one device: where their number does not matter, eight cost time."""
    from nin_jax.devices.mesh import AXIS

    mesh = jax.make_mesh((1,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nin_jax.training.build.make_mesh", lambda: mesh)
        yield


@pytest.fixture(scope="module")
def fused() -> Iterator[None]:
    """Updates are compiled with XLA's own choice of fusions: only so are many a dispatch, to the last bit, those of one."""
    real = jax.stages.Lowered.compile

    def compiled(self: jax.stages.Lowered, options: Any = None, **more: Any) -> jax.stages.Compiled:
        chosen = {"xla_cpu_use_fusion_emitters": True} if EMITTERS else {}
        return real(self, chosen | (options or {}) or None, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", compiled)
        yield


@pytest.fixture
def clean_env() -> dict[str, str]:
    """The environment for a command of its own: one CPU device, as its user has, and the session's cache."""
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP has its default effect, on commands that a test starts too, even where nohup has started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def voc_sample() -> Path:
    """The folder VOC2007 of 320 real pictures that NIN_JAX_VOC names."""
    folder = os.environ.get("NIN_JAX_VOC")
    if not folder:
        pytest.skip("real pictures with boxes: NIN_JAX_VOC=.../VOCdevkit/VOC2007")
    return Path(folder)
