"""One run on several processes: the same as on one, whatever happens to them. Every process here is a real one."""

import json
import os
import signal

import pytest

from launch import local
from nin_jax.data.datasets import cifar10
from nin_jax.data.tfds import tfds_folder
from nin_jax.errors import UserError
from tests.launch.runs import (
    CIFAR10,
    PHOTOGRAPHS,
    SYNTHETIC,
    children,
    equal,
    hurry,
    params,
    rows,
    run,
    start,
    start_slowly,
    wait_for_row,
)


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path, clean_env):
    """Two processes of two devices, one of them preempted, end as one process of four does; each row stands once."""
    alone = run(tmp_path / "alone", clean_env, "--processes=1", "--cpu_devices=4", **SYNTHETIC)
    pair = start_slowly(tmp_path / "pair", clean_env, "--cpu_devices=2", **SYNTHETIC, mapper="shard_map")
    both = children(pair)
    os.kill(both[1], signal.SIGTERM)
    hurry(tmp_path / "pair", *both)
    _, err = pair.communicate(timeout=900)
    assert pair.returncode == 0, err
    assert "restarting, 3 restarts left" in err
    equal(params(tmp_path / "pair"), alone, 1e-6)
    assert (
        rows(tmp_path / "pair") == rows(tmp_path / "alone") == [(s, n) for s in (10, 20, 30) for n in ("train", "test")]
    )
    assert (tmp_path / "pair" / "logs" / "process-1.log").exists()


@pytest.mark.slow
@pytest.mark.skipif(not tfds_folder(cifar10.INFO, None).exists(), reason="CIFAR-10 is not prepared")
def test_two_processes_train_cifar10_as_one_does(tmp_path, clean_env):
    """Real pictures, both mappers: 2 x 2 devices end as 1 x 4 do; preempted and resumed, bit for bit as undisturbed."""
    alone = run(tmp_path / "alone", clean_env, "--processes=1", "--cpu_devices=4", **CIFAR10)
    pairs = {}
    for mapper in ("pmap", "shard_map"):
        pairs[mapper] = run(tmp_path / mapper, clean_env, "--cpu_devices=2", **CIFAR10, mapper=mapper)
        equal(pairs[mapper], alone, 1e-6)
    pair = start_slowly(tmp_path / "again", clean_env, "--cpu_devices=2", **CIFAR10)
    both = children(pair)
    os.kill(both[0], signal.SIGTERM)
    hurry(tmp_path / "again", *both)
    _, err = pair.communicate(timeout=900)
    assert "restarting" in err
    equal(params(tmp_path / "again"), pairs["pmap"], 0)


@pytest.mark.slow
@pytest.mark.skipif(not (PHOTOGRAPHS / "imagenet2012").is_dir(), reason=f"no imagenet2012 in {PHOTOGRAPHS}")
def test_two_processes_stream_what_one_does(tmp_path, clean_env):
    """Each decodes only its own devices' pictures; the parameters and the evaluation are those of one process of four."""
    facts = {"dataset": "imagenet(size=32, short=40)", "data_dir": PHOTOGRAPHS, "eval_split": "validation"}
    facts |= {"preprocess": ("mean(per='channel')",), "augment": ("flip()",), "batch_size": 8, "epochs": 2}
    alone = run(tmp_path / "alone", clean_env, "--processes=1", "--cpu_devices=4", **facts)
    equal(run(tmp_path / "pair", clean_env, "--cpu_devices=2", **facts), alone, 1e-6)
    wanted, got = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "pair")
    )
    assert got == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_a_killed_process_is_an_interruption(tmp_path, clean_env):
    """kill -9 to one of two: the launcher ends the other, and both start again from the newest checkpoint."""
    calm = run(tmp_path / "calm", clean_env, **SYNTHETIC)
    pair = start_slowly(tmp_path / "run", clean_env, **SYNTHETIC)
    both = children(pair)
    os.kill(both[1], signal.SIGKILL)
    hurry(tmp_path / "run", *both)
    _, err = pair.communicate(timeout=900)
    assert pair.returncode == 0, err
    assert "process 1 exited with -9" in err
    assert "restarting, 3 restarts left" in err
    assert "resuming from step 10 of 30" in err
    equal(params(tmp_path / "run"), calm, 0)
    assert rows(tmp_path / "run") == rows(tmp_path / "calm")


@pytest.mark.slow
def test_a_stopped_launcher_stops_its_run(tmp_path, clean_env):
    """SIGTERM to the launcher is passed on: both processes save the same step and all leave with 75; one can go on alone."""
    pair = start(tmp_path / "run", clean_env, **SYNTHETIC, epochs=1000)
    wait_for_row(tmp_path / "run")
    pair.terminate()
    _, err = pair.communicate(timeout=900)
    assert pair.returncode == 75, err
    assert err.count("SIGTERM: saved step") == 1
    assert "restarting" not in err
    step = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert f"saved step {step} " in err
    alone = start(tmp_path / "run", clean_env, "--processes=1", **SYNTHETIC, epochs=1000)
    while f"resuming from step {step} of" not in (line := alone.stderr.readline()):
        assert line
    alone.terminate()
    alone.communicate(timeout=900)
    assert alone.returncode == 75


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-- --config=nowhere", "--config=nowhere: no such file"),
        ("--processes=0 -- --config=digits", "--processes"),
        ("--config=digits", "flags of nin_jax.main come after --"),
        ("--processes=2", "--config is missing"),
        ("digits", "argument 'digits'"),
    ],
)
def test_a_mistake_costs_one_line(line, said):
    """Before any process is started."""
    with pytest.raises(UserError, match=said):
        local.launch(line.split())


def test_gpus_are_shared_evenly(monkeypatch):
    """Each process sees its own, in order; those that cannot be shared are a mistake."""
    seen = [env["CUDA_VISIBLE_DEVICES"] for env in local.environments(2, 1, ["0", "1", "2", "5"])]
    assert seen == ["0,1", "2,5"]
    with pytest.raises(UserError, match="3 GPUs cannot be shared evenly"):
        local.environments(2, 1, ["0", "1", "2"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert local.gpus() == ["4", "6"]


def test_the_exit_code_of_a_run(tmp_path, capsys):
    """A known ending of any process counts most; a killed process is an interruption."""
    log = tmp_path / "process-1.log"
    log.write_text("one\ntwo\n")
    for codes, expected in (((0, 0), 0), ((75, 75), 75), ((1, 70), 70), ((-6, 74), 74), ((1, -9), 75), ((0, 1), 1)):
        assert local.outcome(codes, [None, log]) == expected
    assert "two" in capsys.readouterr().err
