"""Launchers whose engines are not here: their commands pass a shell's check and their manifest the published schemas.

Job and Pod are checked against the types of Kubernetes' own Python client, which are made from its OpenAPI description. That
of JobSet is transcribed below from the reference of jobset.x-k8s.io/v1alpha2: fields, their types, the required ones.
"""

import re
import subprocess
import sys

import pytest
import yaml
from kubernetes import client

from launch import tpu
from launch.kubernetes import __main__ as kubernetes
from nin_jax import main
from nin_jax.errors import UserError
from tests.launch.runs import ROOT

JOBSET = {
    "JobSet": {"apiVersion": "str", "kind": "str", "metadata": "V1ObjectMeta", "spec": "Spec"},
    "Spec": {
        "replicatedJobs": "list[ReplicatedJob]",
        "network": "Network",
        "failurePolicy": "FailurePolicy",
        "suspend": "bool",
        "ttlSecondsAfterFinished": "int",
    },
    "Network": {"enableDNSHostnames": "bool", "subdomain": "str", "publishNotReadyAddresses": "bool"},
    "FailurePolicy": {"maxRestarts": "int", "restartStrategy": "str", "rules": "list[Rule]"},
    "Rule": {"name": "str", "action": "str", "onJobFailureReasons": "list[str]", "targetReplicatedJobs": "list[str]"},
    "ReplicatedJob": {"name": "str", "groupName": "str", "template": "V1JobTemplateSpec", "replicas": "int"},
}
REQUIRED = {
    "JobSet": {"apiVersion", "kind", "metadata", "spec"},
    "Spec": {"replicatedJobs"},
    "Rule": {"name", "action"},
}
REQUIRED |= {"ReplicatedJob": {"name", "template"}}
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
PLAIN = {"str": str, "int": int, "bool": bool}


def check(value, kind, where=""):
    """Raises ValueError where a value is not of a type: unknown field, missing field, wrong type."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            raise ValueError(f"{where}: not a list")
        for i, one in enumerate(value):
            check(one, inner[1], f"{where}[{i}]")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (kind == "int" and isinstance(value, bool)):
            raise ValueError(f"{where}: {value!r} is not of type {kind}")
    elif kind in JOBSET:
        for key, one in value.items():
            if key not in JOBSET[kind]:
                raise ValueError(f"{where}.{key}: {kind} has no such field")
            check(one, JOBSET[kind][key], f"{where}.{key}")
        if missing := REQUIRED.get(kind, set()) - value.keys():
            raise ValueError(f"{where}: {missing} missing")
    else:  # the client's model raises for types and what is missing, and drops what it does not know
        model = getattr(client, kind).model_validate(value)
        if (known := model.model_dump(by_alias=True, exclude_none=True)) != value:
            raise ValueError(f"{where}: not known: {value}, known: {known}")


LINE = ["--config=digits", "--workdir=/runs/a", "--config.augment=('crop(pad=4)',)"]


def manifest(capsys, *own):
    assert kubernetes.launch(["--dry_run", *own, "--", *LINE]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_the_manifest_passes_the_schemas(capsys):
    """Every field is known and of its type; the processes find each other; the command is a legal one."""
    found = manifest(capsys, "--name=digits-1")
    check(found, "JobSet")
    assert all(rule["action"] in ACTIONS for rule in found["spec"]["failurePolicy"]["rules"])
    job = found["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    assert env["JAX_COORDINATOR_ADDRESS"] == f"digits-1-{job['name']}-0-0.digits-1:8476"
    assert int(env["JAX_NUM_PROCESSES"]) == job["template"]["spec"]["completions"] == 2
    assert [str(op) for op in main.parse(pod["containers"][0]["command"][2:]).config.augment] == ["crop(pad=4)"]
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in pod["containers"][0]["volumeMounts"]}


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "sepc", {}),
        (("spec",), "failurePolicy", {"maxRestarts": "3"}),
        (("spec", "replicatedJobs", 0), "replica", 1),
        (("spec", "replicatedJobs", 0, "template", "spec"), "completionmode", "Indexed"),
        (("spec", "replicatedJobs", 0, "template", "spec"), "template", None),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0), "comand", []),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0), "image", 3),
        (
            ("spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0),
            "onExitCodes",
            {"operator": "In"},
        ),
    ],
)
def test_the_check_of_the_manifest_can_fail(place, key, value, capsys):
    """A field misspelt, of another type, or missing."""
    found = here = manifest(capsys)
    for step in place:
        here = here[step]
    here[key] = value
    with pytest.raises(ValueError, match=r"\w"):
        check(found, "JobSet")


def test_a_tpu_in_the_values(tmp_path, capsys):
    """A file with some of the values; the others are those of the project."""
    values = tmp_path / "values.yaml"
    values.write_text("resources: {google.com/tpu: 4}\nnode_selector: {cloud.google.com/gke-tpu-topology: 2x4}\n")
    found = manifest(capsys, f"--values={values}")
    check(found, "JobSet")
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-topology": "2x4"}
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}


TPU = ["--name=nin", "--zone=us-central1-a"]


@pytest.mark.parametrize(
    "own", [(), ("--spot", "--project=mine", "--setup=sudo mount 10.0.0.2:/runs /runs"), ("--keep",)]
)
def test_a_dry_run_shows_every_command_of_a_pod(own, tmp_path, capsys):
    """Created, prepared, run, deleted; a shell understands the commands, on this side and on the workers'."""
    assert tpu.launch([*TPU, *own, "--dry_run", "--", *LINE]) == 0
    lines = capsys.readouterr().out
    verbs = re.findall(r"^gcloud compute tpus tpu-vm (\w+) ", lines, re.MULTILINE)
    expected = ["create", "scp", "ssh", *(["ssh"] if any("setup" in o for o in own) else []), "ssh", "delete"]
    assert verbs == (expected[:-1] if "--keep" in own else expected)
    assert ("--spot" in lines) == ("--spot" in own)
    script = tmp_path / "commands.sh"
    script.write_text(f"#!/bin/bash\n{lines}")
    remote = [
        word for line in tpu.steps(LINE)[1:3] for part in line for word in ([part] if isinstance(part, str) else part)
    ]
    (tmp_path / "remote.sh").write_text(
        "#!/bin/bash\n" + "\n".join(w.removeprefix("--command=") for w in remote if w.startswith("--command=")) + "\n"
    )
    for file in (script, tmp_path / "remote.sh"):
        checked = subprocess.run(["shellcheck", file], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("launch", "line", "said"),
    [
        (tpu.launch, "--zone=a -- --config=digits --workdir=/a", "--name="),
        (tpu.launch, "--name=a --zone=b -- --config=digits", "absolute path"),
        (tpu.launch, "--name=a --zone=b -- --config=nowhere --workdir=/a", "no such file"),
        (kubernetes.launch, "-- --config=digits", "must be a path in the pods"),
        (kubernetes.launch, "--name=A_b -- --config=digits --workdir=/runs/a", "name 'A_b'"),
        (kubernetes.launch, "--values=nowhere -- --config=digits --workdir=/runs/a", "cannot be read"),
    ],
)
def test_a_mistake_costs_one_line(launch, line, said):
    """Before anything is started."""
    with pytest.raises(UserError, match=said):
        launch(line.split())


def test_values_that_are_no_values(tmp_path):
    """A misspelt one is named with the nearest that there is."""
    values = tmp_path / "values.yaml"
    values.write_text("proceses: 3\n")
    with pytest.raises(UserError, match="did you mean 'processes'"):
        kubernetes.read(values)
    with pytest.raises(UserError, match="processes: 0"):
        kubernetes.manifest(kubernetes.read(kubernetes.HERE / "values.yaml") | {"processes": 0}, LINE)


def test_an_engine_that_is_not_here(tmp_path, monkeypatch):
    """One line, and nothing is left behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for launch, own in ((tpu.launch, TPU), (kubernetes.launch, [])):
        with pytest.raises(UserError, match="is not on this machine"):
            launch([*own, "--", *LINE])


def test_each_launcher_is_a_command():
    """`--help` shows what it is for, and needs no accelerator and no engine."""
    for name in ("local", "slurm", "sweep", "tpu", "kubernetes"):
        done = subprocess.run(
            [sys.executable, "-m", f"launch.{name}", "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"python -m launch.{name}" in done.stdout
