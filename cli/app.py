"""The commands, and what happens when one of them fails.

Exit codes: 0 fine, 1 the analysis failed, 2 usage, 3 unsafe or corrupt input refused, 130 interrupted. Results on stdout, everything else on stderr.
`--help` imports no torch: the commands import what they need when they run.
"""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cyclopts
import yaml

from landscape.cli import (
    bounding,
    clouding,
    condensing,
    diffusing,
    embedding,
    looking,
    making,
    measuring,
    plateauing,
    pruning,
    reducing,
)
from landscape.errors import LandscapeError, UsageError, unknown, users_lines


def _version() -> str:
    from importlib.metadata import version

    return version("landscape-geometry")


app = cyclopts.App(
    name="landscape",
    help="Measure the geometry of neural-network loss landscapes, on your own checkpoints or on runs trained here.",
    version=_version,
    suppress_keyboard_interrupt=False,  # main says what is kept
    help_format="plaintext",
    help_epilogue="A RUN is a folder; RUN@step=500, RUN@init and RUN@last are points in it. Start with: landscape demo --out landscape-demo",
)
for place, (group, commands) in enumerate(
    {
        "Make a run": (making.train, making.import_),
        "Measure": (
            measuring.check,
            measuring.spectrum,
            measuring.sharpness,
            measuring.dimensions,
            measuring.barrier,
            measuring.surface,
        ),
        "How few dimensions": (reducing.threshold, reducing.dldr),
        "How wide": (bounding.width, bounding.well, bounding.explore),
        "What manifold SGD traces": (diffusing.diffuse, clouding.cloud, clouding.tiny),
        "What a narrower network explains": (
            embedding.split,
            condensing.condensation,
            condensing.reduce,
            plateauing.plateaus,
        ),
        "What a ticket's mask encodes": (
            pruning.imp,
            pruning.spawn,
            pruning.robustness,
            pruning.limit,
            pruning.retraining,
        ),
        "Look": (looking.tasks, looking.show, looking.plot, looking.report, looking.demo),
    }.items()
):
    shelf = cyclopts.Group(group, sort_key=place)
    for order, command in enumerate(commands):
        app.command(command, name=command.__name__.rstrip("_"), group=shelf, sort_key=order)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, config = _config(arguments)
        app.config = config
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return 0
    except cyclopts.CycloptsError as error:
        return _complain(f"{error}\nSee: landscape {_command(arguments)}--help", UsageError.exit_code)
    except LandscapeError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain(
            "interrupted. What was committed is kept, and a training goes on from there with the same command.", 130
        )
    except BrokenPipeError:
        # the reader (head, less) has what it wanted: end quietly, and keep Python from flushing into the closed pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return 0  # the same, of what rich prints (help), which has silenced stdout itself
    except OSError as error:
        from landscape.runs import describe_failure

        return _complain(str(describe_failure(error)), LandscapeError.exit_code)
    except MemoryError:
        return _complain(
            "not enough memory. Use fewer rows (--rows), fewer eigenvalues, or float32.", LandscapeError.exit_code
        )
    except Exception as error:
        if isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error)):
            return _complain(
                f"not enough memory ({str(error).splitlines()[0]}). Use fewer rows (--rows), fewer eigenvalues, or float32.",
                LandscapeError.exit_code,
            )
        if not (lines := users_lines(error)):
            raise
        return _complain(f"your code failed:\n{lines}", LandscapeError.exit_code)


def _complain(message: str, code: int) -> int:
    print(f"landscape: {message}", file=sys.stderr)
    return code


def _command(arguments: Sequence[str]) -> str:
    known = arguments[0] if arguments and arguments[0] in app else ""
    return f"{known} " if known else ""


def _config(arguments: list[str]) -> tuple[list[str], tuple[Any, ...]]:
    """Take `--config FILE` (repeatable, the later wins; flags win over all) out of the arguments; a `--preset NAME` is a file of options beneath them all."""
    rest: list[str] = []
    found: list[tuple[Path, dict[str, Any]]] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, given, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        path = Path(value if given else next(waiting, ""))
        found.append((path, _options(path)))
    if found and rest and rest[0] in app:
        flags = {name for argument in app[rest[0]].assemble_argument_collection() for name in argument.names}
        allowed = {flag.removeprefix("--") for flag in flags if flag.startswith("--")} - {"config"}
        for path, options in found:
            for key in options:
                if key not in allowed:
                    raise unknown(f"option in {path}:", key, allowed)
    presets = _preset(rest)
    return rest, tuple(
        # under its command: at the top, cyclopts would take an option that bears a command's name (width, spectrum) for that command, and leave it out
        cyclopts.config.Dict({rest[0]: options} if rest else options, source=str(path))
        for path, options in [*reversed(found), *presets]
    )


def _preset(arguments: list[str]) -> list[tuple[Path, dict[str, Any]]]:
    """The options of the preset that is asked for, those that the command has."""
    named = [after for flag, after in itertools.pairwise(arguments) if flag == "--preset"]
    named += [argument.removeprefix("--preset=") for argument in arguments if argument.startswith("--preset=")]
    if not named or arguments[0] not in app:
        return []
    from landscape.presets import find

    options = {name.replace("_", "-"): value for name, value in find(named[-1]).options.items()}
    # levels of other commands are those of a run
    flags = {name for argument in app[arguments[0]].assemble_argument_collection() for name in argument.names} - (
        {"--levels"} if arguments[0] != "imp" else set()
    )
    return [(Path(f"preset {named[-1]}"), {name: value for name, value in options.items() if f"--{name}" in flags})]


def _options(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if len(text) > 2**20:
            raise ValueError(f"{len(text):,} characters, more than any file of options has")
        options = yaml.load(text, Loader=_Strict)  # a SafeLoader: no objects, no code
    except OSError as error:
        raise UsageError(f"cannot read the options of --config {str(path)!r}: {error.strerror}.") from None
    # a value with a wrong tag or an impossible date raises whatever its constructor raises
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UsageError(
            f"{path} must map option names to values, such as `steps: 2000`; got {type(options).__name__}."
        )
    return {key.replace("_", "-"): value for key, value in options.items()}


class _Strict(yaml.SafeLoader):
    """YAML's safe subset, refusing what it would pass over in silence: a key given twice, and aliases (which can grow without bound)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for name in (str(self.construct_object(key, deep=True)) for key, _ in node.value):
            if name in known:
                raise yaml.YAMLError(f"the key {name!r} is given twice")
            known.add(name)
        return super().construct_mapping(node, deep)


def entry() -> None:
    """The console script."""
    # waiting threads sleep instead of spinning: on a machine with other work to do, small models ran 4 times faster so (before torch is imported)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    raise SystemExit(main())


if __name__ == "__main__":
    entry()
