"""Entry point: flags -> config -> train | eval | describe -> exit code.

python -m nin_jax.main --config=experiments/NAME.py[:ARG] [--workdir=DIR] [--mode=train|eval|describe]
                       [--config.KEY=VALUE ...]
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app, flags
from ml_collections import FrozenConfigDict, config_flags

from nin_jax import config as config_lib
from nin_jax.errors import Ending, Mistake, nearest

MODES = ("train", "eval", "describe")


class Command(NamedTuple):
    """A checked command line."""

    config: FrozenConfigDict
    workdir: Path
    mode: str


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file with get_config(arg), then :ARG.", flag_values=values
    )
    flags.DEFINE_string(
        "workdir", None, "Run directory; default runs/NAME. A run in it is resumed.", flag_values=values
    )
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", flag_values=values)


def parse(argv: Sequence[str]) -> Command:
    """Turns a command line into a checked config. Raises `Mistake`; executes nothing but the config file."""
    values = flags.FlagValues()
    define_flags(values)
    file = argument = None
    arguments = list(argv[:1])
    rest = iter(argv[1:])
    for word in rest:
        if word in ("--help", "-h", "-help", "--helpfull"):
            print(__doc__)
            print(values.main_module_help() or values.get_help())
            raise SystemExit(0)
        name, equals, value = word.lstrip("-").partition("=")
        if name == "config" and word.startswith("-"):
            if not equals:
                value = next(rest, "")
            file, argument = _find(value)
            word = f"--config={file}" + (f":{argument}" if argument is not None else "")
        arguments.append(word)
    if file is None:
        raise Mistake(f"--config is missing: name an experiment, such as --config=experiments/digits.py")
    try:
        left = values(arguments)
        config = values.config
    except flags.Error as error:
        raise Mistake(_flag_error(str(error))) from error
    except Exception as error:  # the config file is code, and ml_collections raises as it likes
        raise Mistake(_config_error(error, file)) from error
    if len(left) > 1:
        raise Mistake(f"argument {left[1]!r} is not a flag; write --config.KEY=VALUE")
    if not hasattr(config, "to_dict"):
        raise Mistake(f"--config={file}: get_config returned {type(config).__name__}, not a ConfigDict")
    name = file.stem + (f"-{re.sub(r'[^A-Za-z0-9_.-]', '_', argument)}" if argument else "")
    return Command(config_lib.check(config), Path(values.workdir or f"runs/{name}").expanduser(), values.mode)


def run(command: Command) -> None:
    """Does what the command says."""
    import jax

    from nin_jax.pipeline.arrays import cache_dir

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    if command.mode == "train":
        from nin_jax.train import train

        train(command.config, command.workdir)
    elif command.mode == "eval":
        from nin_jax.evaluate import evaluate_run

        evaluate_run(command.config, command.workdir)
    else:
        from nin_jax.build import Run
        from nin_jax.describe import describe

        describe(Run(command.config))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line; ends the process with the exit code of the contract."""

    def guarded(arguments: list[str]) -> list[str]:
        try:
            command = parse(arguments)
            flags.FLAGS(arguments[:1])  # absl.app wants its own flags parsed; ours are done
            commands.append(command)
        except Ending as ending:
            _leave(ending)
        return arguments[:1]

    def body(_: Sequence[str]) -> None:
        try:
            run(commands[0])
        except Ending as ending:
            _leave(ending)

    commands: list[Command] = []
    app.run(body, argv=list(argv or sys.argv), flags_parser=guarded)


def _leave(ending: Ending) -> None:
    from nin_jax.report import fail

    fail(str(ending))
    raise SystemExit(ending.exit_code) from None


def _find(value: str) -> tuple[Path, str | None]:
    """Splits FILE:ARG and finds FILE: as given, else an experiment of the project of that name."""
    text, _, argument = value.partition(":")
    file = Path(text).expanduser()
    if not file.is_file():
        known = {f.stem: f for f in reversed(config_lib.experiment_files())}
        if text not in (f"experiments/{file.name}", file.name) or file.stem not in known:
            raise Mistake(f"--config={value}: no such file; {nearest(file.stem, known)}")
        file = known[file.stem]
    return file.absolute(), argument if ":" in value else None


def _flag_error(message: str) -> str:
    """absl's message, with ml_collections' repetition taken away."""
    line = " ".join(message.split())
    return re.sub(r"^flag (--\S+?)=", r"\1=", line)


def _config_error(error: Exception, file: Path) -> str:
    trace, line = error.__traceback__, None
    while trace:
        if Path(trace.tb_frame.f_code.co_filename) == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno
    text = " ".join(str(error).split())
    if line:
        return (
            f"--config={file}, line {line}: {type(error).__name__}: {text}" if not isinstance(error, Mistake) else text
        )
    return f"--config.KEY=VALUE: {text}"


if __name__ == "__main__":
    main()
