"""Entry point: flags -> config -> train | eval | describe -> exit code.

python -m nin_jax.main --config=experiments/NAME.py[:ARG] [--workdir=DIR] [--mode=train|eval|describe]
                       [--config.KEY=VALUE ...]

--config=DIR is the config of the run in that directory, which is then the --workdir too. With --mode=eval it may also be a
trained network, such as --config=nin.cifar10.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import shlex
import sys
import traceback
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app, flags
from ml_collections import ConfigDict, FieldReference, config_flags

from nin_jax import config as config_lib
from nin_jax import registry, storage
from nin_jax.config import Config
from nin_jax.console import fail, lasting_streams, say
from nin_jax.devices.signals import nothing_to_save
from nin_jax.errors import ExitError, Preempted, StorageFailed, UserError, nearest, one_line, out_of_memory
from nin_jax.schema import help_text
from nin_jax.training import pretrained

MODES = ("train", "eval", "describe")


class Command(NamedTuple):
    """A checked command line."""

    config: Config
    workdir: Path
    mode: str
    ensemble: tuple[Path, ...] = ()
    json: bool = False
    scores: Path | None = None


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags; `parse` replaces --config by the config itself, with a flag for each key."""
    flags.DEFINE_string(
        "config",
        None,
        "The experiment: a file with get_config(arg), then :ARG; or a run directory, or a trained network.",
        flag_values=values,
        allow_override=True,
    )
    flags.DEFINE_string(
        "workdir", None, "Run directory; default runs/NAME. A run in it is resumed.", flag_values=values
    )
    flags.DEFINE_list(
        "ensemble", [], "With --mode=eval: run directories whose networks' softmax is averaged.", flag_values=values
    )
    flags.DEFINE_string(
        "scores", None, "With --mode=eval and task multilabel: a file for the scores of each image.", flag_values=values
    )
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=values)
    flags.DEFINE_bool("json", False, "Print the result as one JSON object, as --mode=eval does.", flag_values=values)


def parse(argv: Sequence[str]) -> Command:
    """Turns a command line into a checked config. Raises `UserError`; executes nothing but the config file."""
    values = flags.FlagValues()
    define_flags(values)
    if any(re.fullmatch(r"--?h(elp(short|full)?)?", word) for word in argv[1:]):
        known = ", ".join(config_lib.experiments())
        print(
            f"{__doc__}\nexperiments: {known}\n{values.get_help()}\n\nkeys of a config, set by --config.KEY=VALUE [default]:\n{help_text(Config)}"
        )
        raise SystemExit(0)
    found = None
    arguments = list(argv[:1])
    rest = iter(argv[1:])
    for word in rest:
        flag = re.fullmatch(r"--?config(?:=(.*))?", word, re.DOTALL)
        if flag is None:
            arguments.append(word)
        elif found is not None:
            raise UserError(f"{word}: --config is given twice; give one")
        else:
            found = find(next(rest, "") if flag[1] is None else flag[1])
    if found is None:
        raise UserError("--config is missing: name an experiment, such as --config=experiments/digits.py")
    file, argument = found
    config = load(file, argument)
    _check_overrides(arguments, config)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        left = values(arguments)
    except flags.Error as error:
        raise UserError(re.sub(r"^flag (--\S+?=)", r"\1", one_line(error))) from error
    except Exception as error:  # ml_collections raises as it likes
        raise UserError(f"--config.KEY=VALUE: {one_line(error)}") from error
    if len(left) > 1:
        raise UserError(f"argument {left[1]!r} is not a flag; write --config.KEY=VALUE")
    if values.mode == "train" and _is_network(file):
        raise UserError(
            f"--config={file} is a trained network and has no run to resume; --mode=eval evaluates it, and a run with "
            f"--config.init_from={file} starts from its weights"
        )
    default = str(file) if file.is_dir() else default_directory(file, argument)
    workdir = local_directory("--workdir", default if values.workdir in (None, "None") else values.workdir)
    ensemble = tuple(local_directory("--ensemble", directory) for directory in values.ensemble)
    if ensemble and values.mode != "eval":
        raise UserError(f"--ensemble={','.join(values.ensemble)}: only with --mode=eval")
    if values.scores and values.mode != "eval":
        raise UserError(f"--scores={values.scores}: only with --mode=eval")
    scores = local_directory("--scores", values.scores) if values.scores else None
    return Command(config_lib.check(values.config), workdir, values.mode, ensemble, values.json, scores)


def run(command: Command) -> None:
    """Does what the command says."""
    try:
        import jax  # noqa: F401
    except ValueError as error:  # of a JAX_... in the environment, which it names
        raise UserError(one_line(error)) from error
    from nin_jax.data.cache import cache_dir
    from nin_jax.data.worker import silence_size_warnings
    from nin_jax.devices import processes
    from nin_jax.devices.process import prepare_process

    prepare_process(cache_dir() / "xla")
    silence_size_warnings()
    if command.mode == "train":
        from nin_jax.training.loop import train

        summary = train(command.config, command.workdir)
        if processes.is_first():
            if command.json:
                print(json.dumps(summary))
            for line in next_commands(command):
                say(line)
    elif command.mode == "eval":
        from nin_jax.training.evaluate import evaluate_run

        evaluate_run(command.config, command.workdir, command.ensemble, command.scores)
    else:
        from nin_jax.training.build import Run
        from nin_jax.training.describe import describe

        if processes.is_first():
            describe(Run(command.config), as_json=command.json)


def next_commands(command: Command) -> list[str]:
    """What to try with a run that is done."""
    c, run = command.config, shlex.quote(str(command.workdir))
    trust = " --trust" if config_lib.modules(c) else ""
    page = c.model.name == "nin" and {op.name for op in c.preprocess} <= {"mean", "scale"}  # what a page computes
    return [
        f"try next: nin-jax predict IMAGE --run={run}{trust} --maps={run}/maps",
        *([f"          nin-jax page --run={run}{trust} -o {run}.html"] if page else []),
        f"          nin-jax export --run={run}{trust} --format=onnx -o {run}.onnx",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line; ends the process with the exit code of the contract."""

    def guarded(arguments: list[str]) -> list[str]:
        try:
            registry.search_working_directory()
            command = parse(arguments)
            # absl.app wants its own flags parsed; ours are done. -1: warnings, without the remarks of jax and TFDS.
            flags.FLAGS([*arguments[:1], "--verbosity=-1"])
            if command.mode != "describe":
                from nin_jax.data.tfds import check_prepared

                # Now, and not after seconds of imports.
                check_prepared(command.config.dataset.name, command.config.data_dir)
            commands.append(command)
        except ExitError as ending:
            _leave(ending)
        except OSError as error:  # such as the help to a full disk
            _leave(StorageFailed(one_line(error)))
        return arguments[:1]

    def body(_: Sequence[str]) -> None:
        from nin_jax.devices import processes

        try:
            run(commands[0])
        except ExitError as ending:
            _leave(ending)
        except OSError as error:
            _leave(StorageFailed(one_line(error)))
        except Exception as error:
            if processes.peer_is_gone(error):
                fail(f"another process of this run is gone; start again to resume: {one_line(error)[:300]}")
                os._exit(Preempted.exit_code)  # to part from it in order would be to wait for it
            if not out_of_memory(error):
                raise
            c = commands[0].config
            sizes = f"batch_size={c.batch_size} and eval_batch_size={c.eval_batch_size or c.batch_size}"
            _leave(UserError(f"out of memory with {sizes}; smaller ones need less: {one_line(error)[:300]}"))
        finally:
            processes.leave()

    commands: list[Command] = []
    with lasting_streams(), nothing_to_save(ends=argv is None):
        app.run(body, argv=list(argv or sys.argv), flags_parser=guarded)


def _leave(ending: ExitError) -> None:
    fail(str(ending))
    raise SystemExit(ending.exit_code) from None


def local_directory(flag: str, text: str) -> Path:
    """The directory that a flag names. Raises `UserError` for "", and for "gs://..." and the like."""
    try:
        return Path(os.path.expanduser(storage.local_path(text)))
    except ValueError as error:
        raise UserError(f"{flag}={text}: {error}") from error


def find(value: str, known: Mapping[str, Path] | None = None) -> tuple[Path, str | None]:
    """Splits FILE:ARG and finds FILE: as given, else an experiment of the project of that name, else a run directory.

    The name of a trained network becomes its folder.

    NAME, NAME.py, experiments/NAME and experiments/NAME.py name one of the project's from any working directory.

    Args:
      value: FILE or FILE:ARG.
      known: the experiments of the project by name; None: those that train a network.
    """
    if known is None and (network := pretrained.find_unless_run(value)):
        return network.folder, None
    text, colon, argument = value.partition(":")
    file = Path(os.path.expanduser(text))
    if not os.path.isfile(file):
        runs, known = (True, config_lib.experiments()) if known is None else (False, known)
        name = text.removeprefix("experiments/").removesuffix(".py")
        if name not in known:
            if runs and not colon and os.path.isfile(file / "config.json"):
                return file, None
            choices = [*known, *(pretrained.names() if runs else ())]
            raise UserError(f"--config={value}: no such file; {nearest(name, choices)}")
        file = known[name]
    return file.absolute(), argument if colon else None


def default_directory(file: Path, argument: str | None) -> str:
    """The run directory of FILE:ARG where none is named: "runs/cifar10-fast"."""
    return f"runs/{file.stem}" + (f"-{re.sub(r'[^A-Za-z0-9_.-]', '_', argument)}" if argument else "")


def _is_network(file: Path) -> bool:
    return (file / pretrained.WEIGHTS).is_file()


def load(file: Path, argument: str | None) -> ConfigDict:
    """Runs a config file, or reads the config of a run or of a trained network, which computes in float32.

    Raises `UserError`, with the line of the file where it fails.
    """
    if file.is_dir():
        config = pretrained.config(file) if _is_network(file) else config_lib.read(file / "config.json")
        if outside := config_lib.modules(config):
            raise UserError(
                f"--config={file} names modules outside the zoo ({', '.join(outside)}); name the config file"
            )
        return config
    where = f"--config={file}" + (f":{argument}" if argument is not None else "")
    try:
        get_config = runpy.run_path(str(file), run_name="experiment").get("get_config")
        if not callable(get_config):
            raise UserError(f"{where}: the file has no function get_config")
        config = get_config() if argument is None else get_config(argument)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it is code, and may raise anything
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        if isinstance(error, SyntaxError) and error.filename == str(file):
            lines.append(error.lineno)
        line = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{where}{line}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{where}: get_config returned {type(config).__name__}, not a ConfigDict")
    return ConfigDict(config)  # pyright: ignore[reportArgumentType] - it takes a ConfigDict too, and copies it


def _check_overrides(arguments: Sequence[str], config: ConfigDict) -> None:
    """Raises `UserError` for a --config.KEY that the config does not have.

    Arguments of the model that the experiment does not set, or that may be None, get a place. Those that it sets are of its own
    model: another one begins with its defaults.
    """
    name = _last_value(arguments, "config.model.name")
    if name is not None and isinstance(config.get("model"), ConfigDict) and name != config.model.get("name"):
        registry.find("models", name)
        with config.unlocked():
            config.model = ConfigDict({"name": name})
    known = key_names(config)
    for word in arguments:
        flag = re.fullmatch(r"--?(?:no)?config\.([^=]*)(=.*)?", word, re.DOTALL)
        if not flag:
            continue
        section, _, argument = flag[1].partition(".")
        if section == "model" and argument != "name" and "model.name" in known:
            legal = registry.legal_arguments("models", registry.find("models", str(config.model.name)))
            known += [f"model.{name}" for name in legal]
            if argument in legal and (argument not in config.model or type(None) in typing.get_args(legal[argument])):
                with config.unlocked():
                    config.model[argument] = FieldReference(
                        config.model.get(argument), field_type=registry.literal_type(legal[argument])
                    )
        if flag[1] not in known:
            raise UserError(f"{word}: unknown config key {flag[1]!r}: {nearest(flag[1], {*known})}")


def _last_value(arguments: Sequence[str], flag: str) -> str | None:
    """What a command line gives a flag, as --FLAG=VALUE or --FLAG VALUE; None where it does not."""
    found = None
    for word, after in itertools.pairwise([*arguments, ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == flag:
            found = value if equals else after
    return found


def key_names(config: ConfigDict, where: str = "") -> list[str]:
    """Every key and section of a config, such as "model" and "model.name"."""
    keys = []
    for key, value in config.items():
        keys.append(f"{where}{key}")
        if isinstance(value, ConfigDict):
            keys += key_names(value, f"{where}{key}.")
    return keys


if __name__ == "__main__":
    main()
