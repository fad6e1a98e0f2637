"""The command line: what it accepts, and that each mistake on it ends in one line and exit code 2."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from nin_jax import config as config_lib
from nin_jax import main, schema
from nin_jax.devices.mesh import check_precision
from nin_jax.errors import UserError
from nin_jax.training import build

ROOT = Path(__file__).parents[1]
KEYS = main.key_names(config_lib.experiment("digits"))


def parse(*words: str) -> main.Command:
    return main.parse(["nin_jax", *words])


def mistake(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words)
    assert caught.value.exit_code == 2
    return str(caught.value)


def command(env: dict[str, str], cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in `cwd`, which is not the checkout."""
    env = env | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "nin_jax.main", *words], capture_output=True, text=True, env=env, cwd=cwd, timeout=300
    )


def test_an_experiment_and_its_overrides() -> None:
    """Overrides of every kind reach the config, in any order, as --KEY=VALUE and --KEY VALUE; the rest is the file's."""
    got = parse(
        "--config.optimizer.learning_rate=1e-3", "--config=experiments/digits.py", "--config.epochs", "3", "--mode=eval",
        "--config.preprocess=('gcn(scale=55)', 'zca(eps=0.1)')", "--config.augment=flip()", "--config.data_dir=/x y",
        "--noconfig.model.relu_on_class_maps", "--config.model.widths=((8, 8), (8,), (4,))", "--workdir", "~/r",
    )  # fmt: skip
    wanted = config_lib.experiment("digits")
    wanted.optimizer.learning_rate = 1e-3
    wanted.epochs = 3
    wanted.preprocess = ("gcn(scale=55)", "zca(eps=0.1)")
    wanted.augment = ("flip()",)
    wanted.data_dir = "/x y"
    wanted.model.relu_on_class_maps = False
    wanted.model.widths = ((8, 8), (8,), (4,))
    assert config_lib.to_dict(got.config) == config_lib.to_dict(wanted)
    assert (got.mode, got.workdir) == ("eval", Path.home() / "r")


def test_a_config_does_not_remember_the_command_before() -> None:
    """parse is a function of its argument: neither sys.argv nor an earlier call changes what it returns."""
    first = parse("--config=digits", "--config.epochs=3")
    assert parse("--config=digits").config.epochs == 60
    assert first.config.epochs == 3


@pytest.mark.parametrize("name", ["digits", "digits.py", "experiments/digits", "experiments/digits.py"])
def test_experiments_are_found_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    got = parse(f"--config={name}")
    assert config_lib.to_dict(got.config) == config_lib.to_dict(config_lib.experiment("digits"))
    assert got.workdir == Path("runs/digits")


def test_a_run_directory_is_the_config_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the --workdir, unless another is given; an experiment comes first; nothing that it names is imported."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "digits"):
        Path(name).mkdir()
        plain = config_lib.to_dict(main.parse(["nin_jax", "--config=mnist", "--config.seed=7"]).config)
        Path(name, "config.json").write_text(json.dumps(plain))
    found = main.parse(["nin_jax", "--config=mine"])
    assert (config_lib.to_dict(found.config), found.workdir) == (plain, Path("mine"))
    again = main.parse(["nin_jax", "--config=./digits", "--config.seed=8", "--workdir=other"])
    assert (again.config.dataset.name, again.config.seed, again.workdir) == ("mnist", 8, Path("other"))
    assert main.parse(["nin_jax", "--config=digits"]).config.dataset.name == "digits"
    Path("mine/config.json").write_text(json.dumps(plain | {"dataset": "evil.data"}))
    with pytest.raises(UserError, match=r"--config=mine names modules outside the zoo \(evil.data\)"):
        main.parse(["nin_jax", "--config=mine"])


def test_the_commands_to_try_are_those_that_work() -> None:
    """A page computes no whitening."""
    said = main.next_commands(parse("--config=digits", "--workdir=runs/a b"))
    assert said[0] == "try next: nin-jax predict IMAGE --run='runs/a b' --maps='runs/a b'/maps"
    assert [line.split()[1] for line in said[1:]] == ["page", "export"]
    assert [line.split()[1] for line in main.next_commands(parse("--config=cifar10"))[1:]] == ["export"]


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/digits.py").write_text(
        "from nin_jax.config import experiment\ndef get_config(arg=None):\n"
        "    config = experiment('digits')\n    config.seed = int(arg or 0)\n    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    got = parse("--config=experiments/digits.py:7")
    assert (got.config.seed, got.workdir) == (7, Path("runs/digits-7"))


@pytest.mark.parametrize("name", config_lib.experiments())
def test_every_experiment_is_valid(name: str) -> None:
    assert parse(f"--config=experiments/{name}.py").config.model.name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--config is missing"),
        ("--config", "no such file"),
        ("--config=", "no such file"),
        ("--config=experiments/digitz.py", "did you mean 'digits'"),
        ("--config=elsewhere/digits.py", "--config=elsewhere/digits.py: no such file; did you mean 'digits'"),
        ("--config=digits --config=mnist", "given twice"),
        ("--config=cifar10:relase", "ValueError: unknown argument 'relase'"),
        ("--config=digits --wrokdir=x", "Did you mean: workdir"),
        ("--config=digits --mode=trian", "--mode=trian: value should be one of <train|eval|describe>"),
        ("--config=digits --workdir", "Missing value for flag --workdir"),
        ("--config=digits epochs=3", "argument 'epochs=3' is not a flag"),
        ("--config=digits -- x", "argument 'x' is not a flag"),
        ("--config=digits --flagfile=nowhere", "nowhere"),
        ("--config=digits --config.epoch=3", "unknown config key 'epoch': did you mean 'epochs'?"),
        ("--config=digits --config.model.dropuot=0.2", "'model.dropuot': did you mean 'model.dropout'?"),
        ("--config=digits --config.learning_rate=1", "did you mean 'optimizer.learning_rate'?"),
        ("--config=digits --config.=1", "unknown config key ''"),
        ("--config=digits --config.model.kernels[0]=1", "did you mean 'model.kernels'?"),
        ("--config=digits --config.seed.x=1", "unknown config key 'seed.x'"),
        ("--config=digits --config.seed", "Missing value for flag --config.seed"),
        ("--config=digits --config.epochs=many", "--config.epochs=many: invalid literal"),
        ("--config=digits --config.epochs=1.5", "--config.epochs=1.5: invalid literal"),
        ("--config=digits --config.optimizer=3", "--config.optimizer=3: Failed to parse"),
        ("--config=digits --config.optimizer={'learning_rate':1}", "config key 'optimizer.learning_rate_factors' is missing"),
        ("--config=digits --config.epochs=0", "epochs=0: must be 1 or more"),
        ("--config=digits --config.optimizer.learning_rate=-1", "optimizer.learning_rate=-1.0: must be 0 or more, and finite"),
        ("--config=digits --config.schedule.boundaries_epochs=soon", "epochs, each above 0"),
        ("--config=digits --config.optimizer.learning_rate_factors=bias", "'bias' is not 'PATTERN=FACTOR'"),
        ("--config=digits --config.task=clasify", "unknown task 'clasify': did you mean 'classify'?"),
        ("--config=digits --config.model.name=nim", "unknown model 'nim': did you mean 'nin'?"),
        ("--config=digits --config.model.batch_norm=perhaps", "--config.model.batch_norm=perhaps: ('Non-boolean argument to boolean flag', 'perhaps')"),
        ("--config=digits --config.model.num_classes=3", "unknown config key 'model.num_classes'"),
        ("--config=digits --config.model.batchnorm=True", "did you mean 'model.batch_norm'?"),
        ("--config=digits --workdir=gs://bucket/run", "--workdir=gs://bucket/run: gs:// is not supported; name a local"),
        ("--config=digits --mode=eval --ensemble=a,s3://b", "--ensemble=s3://b: s3:// is not supported"),
        ("--config=digits --config.data_dir=file:///x", "data_dir='file:///x': file:// is not supported"),
        ("--config=digits --config.init_from=hf://user/net", "init_from='hf://user/net': hf:// is not supported"),
        ("--config=digits --workdir=", "--workdir=: must name a directory"),
        ("--config=digits --mode=eval --ensemble=a,,b", "--ensemble=: must name a directory"),
        ("--config=digits --config.data_dir=", "data_dir='': must name a directory"),
        ("--config=digits --config.init_from=", "init_from='': must name a directory"),
        ("--config=digits --config.preprocess=3", "preprocess=(3,): must be strings such as 'gcn(scale=55)', not 3"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(words: str, said: str) -> None:
    assert said in mistake(*words.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n\ndef get_config(:\n", "line 3: SyntaxError: invalid syntax"),
        ("x = 1\nimport no_such_module\n", "line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n    x = {}\n    return x['key']\n", "line 3: KeyError: 'key'"),
        ("def get_config():\n\n    open('/no/such/file')\n", "line 3: FileNotFoundError: "),
        ("def get_config():\n    raise SystemExit('bye')\n", "line 2: SystemExit: bye"),
        ("import nin_jax.config as c\ndef get_config():\n    return c.experiment('minst')\n", "'mnist'"),
        (
            "from nin_jax.config import experiment\ndef get_config():\n"
            "    config = experiment('digits')\n    config.epoch = 3\n    return config\n",
            "unknown config key 'epoch': did you mean 'epochs'?",
        ),
        ("x = 1\n", "has no function get_config"),
        ("get_config = 1\n", "has no function get_config"),
        ("def get_config():\n    pass\n", "get_config returned NoneType, not a ConfigDict"),
        ("def get_config():\n    return {'seed': 0}\n", "get_config returned dict, not a ConfigDict"),
        ("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n", "is missing"),
        ("\0", "own.py"),
    ],
)
def test_mistakes_in_a_config_file(text: str, said: str, tmp_path: Path) -> None:
    """The file and the line are named; the file's own message is kept."""
    (tmp_path / "own.py").write_text(text)
    assert said in mistake(f"--config={tmp_path / 'own.py'}")


def test_a_config_file_without_an_argument_refuses_one(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def get_config():\n    pass\n")
    assert "own.py:fast: TypeError: get_config() takes 0 positional" in mistake(f"--config={tmp_path / 'own.py'}:fast")


def test_a_changed_config_file_is_read_again(tmp_path: Path) -> None:
    """Also when it keeps its size and its time of change, as two edits within a second may."""
    for seed in (1, 2):
        (tmp_path / "own.py").write_text(
            f"from nin_jax.config import experiment\ndef get_config():\n"
            f"    c = experiment('digits')\n    c.seed = {seed}\n    return c\n"
        )
        assert parse(f"--config={tmp_path / 'own.py'}").config.seed == seed
    assert [f.name for f in tmp_path.iterdir()] == ["own.py"]


EVIL = "__import__('os').system('touch executed')"
VALUES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "=", "()", "(1,2)", "None", "nan", "-1", "1e999", "true", "'", "((((", "{}", "~x/y", EVIL]),
    st.recursive(st.integers() | st.floats() | st.text(max_size=3), st.lists, max_leaves=4).map(repr),
)
WORDS = st.one_of(
    st.text(max_size=10),
    st.builds("--config.{}={}".format, st.sampled_from(KEYS) | st.text(max_size=8), VALUES),
    st.builds("-config.{}".format, st.sampled_from(KEYS) | st.text(max_size=8)),
    st.builds(
        "--config={}".format, st.sampled_from(["digits", "cifar10:release", "mnist:", "x"]) | st.text(max_size=8)
    ),
    st.builds("--{}={}".format, st.sampled_from(["workdir", "mode", "nomode", "undefok"]), VALUES),
    st.sampled_from(["--config", "--config=digits", "--help", "--", "-", "--mode", "--noconfig.seed", "digits"]),
)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")  # of a regular expression; it is the user's
@settings(max_examples=300)
@given(st.lists(WORDS, max_size=5), st.booleans())
def test_any_command_line_is_a_command_or_a_mistake(words: list[str], valid: bool) -> None:
    if any(word in ("--help", "-h") for word in words):
        with pytest.raises(SystemExit, match="0"):
            parse(*words)
        return
    with contextlib.suppress(UserError):
        assert parse(*(["--config=digits"] if valid else []), *words).mode in main.MODES


@pytest.mark.parametrize("key", KEYS)
def test_values_are_never_executed(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (EVIL, f"({EVIL},)", f"('gcn({EVIL})',)", f"gcn(scale={EVIL})", f"{EVIL}=1"):
        with contextlib.suppress(UserError):
            build.Run(parse("--config=digits", f"--config.{key}={value}").config)
        assert not list(tmp_path.iterdir())


def test_help_that_cannot_be_written_is_one_line(clean_env: dict[str, str], tmp_path: Path) -> None:
    env = clean_env | {"PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nin_jax.main", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, env=env
        )
    assert done.returncode == 74
    assert re.fullmatch(r"nin_jax: .*No space left on device\n", done.stderr), done.stderr


def test_help(clean_env: dict[str, str], tmp_path: Path) -> None:
    """The synopsis, the flags and the experiments, in a moment: without jax, and whatever else is on the line."""
    code = """if True:
        import sys
        from nin_jax import main, schema
        try:
            main.main(["nin_jax", "--config=nothing", "--help"])
        finally:
            assert "jax" not in sys.modules
    """
    env = clean_env | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for wanted in ("python -m nin_jax.main --config=experiments/NAME.py[:ARG]", "--mode: <train|eval|describe>",
                   "--workdir:", "--config:", f"experiments: {', '.join(config_lib.experiments())}"):  # fmt: skip
        assert wanted in done.stdout
    said = " ".join(done.stdout.split())
    for key, declared in schema.leaves(config_lib.Config):
        assert f"{key} [{declared.shown}]: {' '.join(declared.text.split())}" in said


@pytest.mark.parametrize(
    ("words", "differences"),
    [
        ("--config=digits --config.init_from=None --config.data_dir=None", []),
        ("--config=digits --config.init_from=none", ["init_from: None, now 'none'"]),
        ("--config=digits --config.model.batch_norm", ["model.batch_norm: None, now True"]),
        ("--config=digits --noconfig.model.batch_norm", ["model.batch_norm: None, now False"]),
        ("--config=digits --config.model.pool_start=-1", ["model.pool_start: None, now -1"]),
        ("--config=digits --config.model.class_map_bias 1.5", ["model.class_map_bias: None, now 1.5"]),
        ("--config=convnet --config.model.local_maps=None", ["model.local_maps: 10, now None"]),
        ("--config=convnet --config.model.local_maps=7", ["model.local_maps: 10, now 7"]),
        ("--config=alexnet --config.model.hidden_deviation=he", ["model.hidden_deviation: None, now 'he'"]),
        ("--config=alexnet --config.model.hidden=(8,9)", ["model.hidden: None, now [8, 9]"]),
    ],
)
def test_none_and_arguments_of_the_model_that_the_experiment_does_not_set(words: str, differences: list[str]) -> None:
    """The rest is the experiment's."""
    config, *changes = words.split()
    plain = config_lib.to_dict(config_lib.experiment(config.removeprefix("--config=")))
    assert config_lib.differences(plain, config_lib.to_dict(parse(config, *changes).config)) == differences


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ("--config.model.name=convnet --config.model.local_maps=3", {"name": "convnet", "local_maps": 3}),
        ("--config.model.dense_width=5 --config.model.name maxout", {"name": "maxout", "dense_width": 5}),
    ],
)
def test_another_model_has_its_own_arguments(words: str, model: dict[str, object]) -> None:
    """Those that the experiment sets are of its own model."""
    assert parse("--config=digits", *words.split()).config.model.source == model


def test_no_run_directory_is_named_none() -> None:
    assert parse("--config=digits", "--workdir=None").workdir == Path("runs/digits")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--config is missing"),
        ("--config=digitz", "did you mean 'digits'?"),
        ("--config=broken.py", "broken.py, line 2: ZeroDivisionError: division by zero"),
        ("--config=digits --config.epohcs=3", "did you mean 'epochs'?"),
        ("--config=digits --config.dataset=digit", "unknown dataset 'digit': did you mean 'digits'?"),
        ("--config=digits --config.model.kernels=(3,3,3)", "2 widths want as many kernels"),
        ("--config=digits --config.batch_size=30", "cannot be shared by 4 devices; the nearest that can is 32"),
        ("--config=digits --config.train_split=train[:9999] --config.seed=1", "split 'train[:9999]' of digits"),
        ("--config=cifar10 --config.data_dir=nothing", "run `python -m nin_jax.data.prepare cifar10 --data_dir="),
        ("--config=folder --config.data_dir=nothing", "data_dir=nothing: no such folder"),
        ("--config=digits --workdir=broken.py", "--workdir=broken.py is not a directory"),
        ("--config=digits --mode=eval --workdir=nothing", "--workdir=nothing holds no run"),
        ("--config=digits JAX_PLATFORMS=nonsense", "JAX_PLATFORMS=nonsense: JAX finds no such device here"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: str, said: str, clean_env: dict[str, str], tmp_path: Path
) -> None:
    """As the user sees it: nothing on stdout, one line on stderr, no traceback and no remark of jax."""
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    variables = dict(word.split("=") for word in words.split() if word.startswith("JAX_"))
    env = clean_env | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"} | variables
    done = command(env, tmp_path, *(word for word in words.split() if not word.startswith("JAX_")))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"nin_jax: [^\n]*\n", done.stderr), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(5, "Input/output error"), 74, "Input/output error"),
        (MemoryError("no 9 GiB"), 2, "out of memory with batch_size=32"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "smaller ones need less"),
    ],
)
def test_what_a_machine_lacks_is_one_line(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: main.Command) -> None:
        raise error

    monkeypatch.setattr(main, "run", run)
    with pytest.raises(SystemExit) as caught:
        main.main(["nin_jax", "--config=digits", "--config.batch_size=32", "--mode=describe"])
    assert caught.value.code == code
    line = capsys.readouterr().err
    assert re.fullmatch(r"nin_jax: [^\n]*\n", line)
    assert said in line


def test_describe_says_nothing_on_stderr(clean_env: dict[str, str], tmp_path: Path) -> None:
    done = command(clean_env, tmp_path, "--config=digits", "--mode=describe")
    assert (done.returncode, done.stderr) == (0, "")
    assert "parameters: " in done.stdout


class Device:
    """A GPU that is not here."""

    def __init__(self, capability: str | None):
        self.device_kind = "Some GPU"
        if capability:
            self.compute_capability = capability


@pytest.mark.parametrize(("capability", "fine"), [("7.5", False), ("8.0", True), ("12.0", True), (None, True)])
def test_bfloat16_wants_hardware(capability: str | None, fine: bool) -> None:
    devices = [Device("9.0"), Device(capability)]
    check_precision("float32", devices)
    if fine:
        check_precision("bfloat16", devices)
    else:
        with pytest.raises(UserError, match=r"not supported by Some GPU \(compute capability 7\.5"):
            check_precision("bfloat16", devices)
