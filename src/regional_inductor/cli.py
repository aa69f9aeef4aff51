"""The command line: `regional-inductor demo | explain | verify | bisect | cache | doctor`."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import demo, doctor
from .rendering import show

if TYPE_CHECKING:
    from .disk import Disk
    from .factory import Example


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 it failed or says no, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regional-inductor",
        description="Compile marked regions of a PyTorch model with TorchInductor; run the rest eagerly.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "exit codes: 0 done; 1 it failed, or what it checked isn't right; 2 wrong usage; COMMAND --help says more\n"
            "\n"
            "examples:\n"
            "  regional-inductor doctor\n"
            "  regional-inductor explain model.py:build --mark 'layers.*.mlp'\n"
            "  regional-inductor verify model.py:build --mark 'layers.*.mlp'"
        ),
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_explain(commands)
    _add_verify(commands)
    _add_cache(commands)
    _add_bisect(commands)
    _add_doctor(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = demo.Settings()
    parser = commands.add_parser(
        "demo",
        help="train a small Llama with marked regions and compare it with eager",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Trains a small byte-level Llama on Python's own library sources, on the CPU: eagerly, with\n"
            "PyTorch's regional pass, with torch.compile and with this library. Prints the regions, what\n"
            "each way costs and how far it is from eager."
        ),
        epilog=(
            "exit codes: 0 equal to eager within the printed tolerance; 1 not equal, or a run failed;\n"
            "            2 wrong usage\n"
            "\n"
            "examples:\n"
            "  regional-inductor demo\n"
            "  regional-inductor demo --layers 8 --json demo.json"
        ),
    )
    parser.add_argument(
        "--steps",
        type=_at_least(demo.WARM_UP_STEPS + 1),
        default=defaults.steps,
        help="training steps (%(default)s)",
    )
    parser.add_argument(
        "--layers", type=_at_least(1), default=defaults.layers, help="decoder layers (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=defaults.seed, help="for weights and batches (%(default)s)"
    )
    parser.add_argument(
        "--json", type=_file_to_write, metavar="FILE", help="also write all results to FILE"
    )
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    settings = demo.Settings(steps=arguments.steps, layers=arguments.layers, seed=arguments.seed)
    return demo.run(settings, arguments.json)


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "explain",
        help="say what would be compiled, what not, and why; compiles nothing",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Runs a model once, captures its graphs on the way, and prints the regions that compiling\n"
            "would make of its marks. Nothing is compiled, and no compiler is needed."
        ),
        epilog=(
            "FACTORY is called without arguments and returns (model, args) or (model, args, kwargs).\n"
            "\n"
            "exit codes: 0 explained, whatever was found; 1 the factory or the model raised an error, or\n"
            "            FILE couldn't be written; 2 wrong usage: no such script, module, factory or folder\n"
            "            to write to, or a pattern without a match\n"
            "\n"
            "examples:\n"
            "  regional-inductor explain regional_inductor.demo_worker:example\n"
            "  regional-inductor explain model.py:build --mark 'layers.*.mlp' --mark '**.*norm'\n"
            "  regional-inductor explain package.models:tiny --merge all --json report.json\n"
            "  regional-inductor explain model.py:build --html report.html"
        ),
    )
    parser.add_argument(
        "target", metavar="SCRIPT_OR_MODULE:FACTORY", help="what gives the model and its arguments"
    )
    _add_marks(parser)
    parser.add_argument(
        "--json",
        type=_file_to_write,
        metavar="FILE",
        help="also write the report to FILE; see docs/report-schema.md",
    )
    parser.add_argument(
        "--html",
        type=_file_to_write,
        metavar="FILE",
        help="also write the report to FILE as a web page",
    )
    parser.set_defaults(run=_run_explain)


def _run_explain(arguments: argparse.Namespace) -> int:
    from .explaining import explain

    example = _example(arguments)
    if isinstance(example, int):
        return example
    call = functools.partial(explain, example.model, *example.args, **example.kwargs)
    try:
        report = call(merge=arguments.merge) if arguments.merge else call()
    except Exception as error:  # noqa: BLE001 - so may the model
        return _complain(_raised("the model", error), 1)
    show(report)
    try:
        if arguments.json is not None:
            arguments.json.write_text(report.to_json(indent=2) + "\n")
        if arguments.html is not None:
            report.to_html(arguments.html)
    except OSError as error:
        return _complain(_not_written(error), 1)
    return 0


def _mark(model: Any, patterns: Sequence[str]) -> None:
    """Marks what `--mark` names. A pattern without a match is wrong usage, at no line of any code."""
    from .errors import MarkError, compose
    from .factory import FactoryError
    from .module_marks import mark

    for pattern in patterns:
        try:
            mark(model, pattern)
        except MarkError as error:
            raise FactoryError(compose(f"--mark: {error.what}", hint=error.hint)) from None


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "verify",
        help="compare each compiled region of a model with eager and float64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Runs a model twice, forward and backward, as it is and compiled. Each compiled region is\n"
            "compared with eager on the inputs it gets there, then the whole model's results are."
        ),
        epilog=(
            "FACTORY is called without arguments and returns (model, args) or (model, args, kwargs).\n"
            "\n"
            "exit codes: 0 within the tolerance; 1 beyond it, or the factory or the model raised an error;\n"
            "            2 wrong usage: no such script, module or factory, or a pattern without a match\n"
            "\n"
            "examples:\n"
            "  regional-inductor verify regional_inductor.demo_worker:example\n"
            "  regional-inductor verify model.py:build --mark 'layers.*.mlp' --tolerance 1e-5 1e-6"
        ),
    )
    parser.add_argument(
        "target", metavar="SCRIPT_OR_MODULE:FACTORY", help="what gives the model and its arguments"
    )
    _add_marks(parser)
    _add_tolerance(parser)
    parser.add_argument(
        "--json", type=_file_to_write, metavar="FILE", help="also write the result to FILE"
    )
    parser.set_defaults(run=_run_verify)


def _run_verify(arguments: argparse.Namespace) -> int:
    from .verifying import verify

    example = _example(arguments)
    if isinstance(example, int):
        return example
    call = functools.partial(verify, example.model, *example.args, **example.kwargs)
    try:
        result = call(
            merge=arguments.merge,
            tolerances=arguments.tolerance and tuple(arguments.tolerance),
            show=False,
        )
    except Exception as error:  # noqa: BLE001 - so may the model
        return _complain(_raised("the model", error), 1)
    show(result)
    try:
        if arguments.json is not None:
            arguments.json.write_text(result.to_json(indent=2) + "\n")
    except OSError as error:
        return _complain(_not_written(error), 1)
    return 0 if result.ok else 1


def _add_cache(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "cache",
        help="list, show, check or clear what was compiled and is on disk",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Looks after the store of compiled regions, in REGIONAL_INDUCTOR_CACHE_DIR or the user's cache\n"
            "folder: regions, captured graphs, and what trials of operators found out. Nothing in an entry\n"
            "is run or unpickled."
        ),
        epilog=(
            "exit codes: 0 done; 1 verify found an entry that won't be used; 2 wrong usage, no such entry,\n"
            "            or a store that can't be used\n"
            "\n"
            "examples:\n"
            "  regional-inductor cache ls\n"
            "  regional-inductor cache show 3f2a --code\n"
            "  regional-inductor cache verify --remove"
        ),
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    ls = actions.add_parser("ls", help="one line for each entry, those used last first")
    ls.set_defaults(run=_run_cache, act=_cache_ls)
    show = actions.add_parser("show", help="one entry in full")
    show.add_argument("key", metavar="KEY", help="the beginning of a key, as `ls` shows it")
    show.add_argument("--code", action="store_true", help="also print the generated code")
    show.set_defaults(run=_run_cache, act=_cache_show)
    clear = actions.add_parser("clear", help="remove all entries, or those with these keys")
    clear.add_argument("keys", nargs="*", metavar="KEY", help="the beginning of a key")
    clear.set_defaults(run=_run_cache, act=_cache_clear)
    verify = actions.add_parser("verify", help="read every entry and say which won't be used")
    verify.add_argument("--remove", action="store_true", help="also remove those")
    verify.set_defaults(run=_run_cache, act=_cache_verify)


def _run_cache(arguments: argparse.Namespace) -> int:
    from .errors import RegionError
    from .stored import disk_of_the_user

    try:
        text, code = arguments.act(disk_of_the_user(), arguments)
    except (RegionError, OSError) as error:
        return _complain(str(error), 2)
    print(text)
    return int(code)


def _cache_ls(disk: Disk, arguments: argparse.Namespace) -> tuple[str, int]:
    from .stored import listing

    return listing(disk), 0


def _cache_show(disk: Disk, arguments: argparse.Namespace) -> tuple[str, int]:
    from .stored import details

    return details(disk, arguments.key, code=arguments.code), 0


def _cache_clear(disk: Disk, arguments: argparse.Namespace) -> tuple[str, int]:
    from .stored import cleared

    return cleared(disk, arguments.keys), 0


def _cache_verify(disk: Disk, arguments: argparse.Namespace) -> tuple[str, int]:
    from .stored import verified

    text, bad = verified(disk, remove=arguments.remove)
    return text, 1 if bad else 0


def _add_bisect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bisect",
        help="find the regions, and the operators in them, that break a model or a command",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Runs a model, or a shell command, again and again with fewer regions compiled, until the\n"
            "smallest set is left that still breaks it; then the same with the operators of each. Writes\n"
            "a script that compiles these by themselves."
        ),
        epilog=(
            "FACTORY is called without arguments and returns (model, args) or (model, args, kwargs).\n"
            "COMMAND says by its exit code what a trial showed, as for git bisect run: 0 good, 125 can't\n"
            "tell, else bad, a crash included. It must compile with this package.\n"
            "\n"
            "exit codes: 0 nothing is wrong; 1 regions were found, or no region is to blame, or the factory\n"
            "            raised an error; 2 wrong usage\n"
            "\n"
            "examples:\n"
            "  regional-inductor bisect model.py:build --mark 'layers.*.mlp'\n"
            "  regional-inductor bisect model.py:build --slower-than 1.2\n"
            "  regional-inductor bisect --run 'python train.py --steps 3'"
        ),
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "target",
        nargs="?",
        metavar="SCRIPT_OR_MODULE:FACTORY",
        help="what gives the model and its arguments",
    )
    what.add_argument(
        "--run", dest="command", metavar="COMMAND", help="a shell command in place of a model"
    )
    _add_marks(parser)
    _add_tolerance(parser)
    parser.add_argument(
        "--slower-than",
        type=float,
        metavar="TIMES",
        help="look for what makes a run take more than this many times eager's time",
    )
    parser.add_argument(
        "--script",
        default="bisected_region.py",
        metavar="FILE",
        help="where to write the script (%(default)s), or none",
    )
    parser.set_defaults(run=_run_bisect, complain=parser.error)


def _run_bisect(arguments: argparse.Namespace) -> int:
    from .bisecting import bisect
    from .errors import RegionError

    script = None if arguments.script == "none" else arguments.script
    if arguments.command is not None:
        own = ("mark", "merge", "tolerance", "slower_than")
        given = [f"--{name.replace('_', '-')}" for name in own if getattr(arguments, name)]
        if given:
            arguments.complain(f"{given[0]} is for a model; a command marks and checks by itself")
        call = functools.partial(bisect, check=arguments.command, script=script)
    else:
        example = _example(arguments)
        if isinstance(example, int):
            return example
        call = functools.partial(
            bisect,
            example.model,
            *example.args,
            merge=arguments.merge,
            tolerances=arguments.tolerance and tuple(arguments.tolerance),
            slower_than=arguments.slower_than,
            script=script,
            **example.kwargs,
        )
    try:
        found = call()
    except RegionError as error:
        return _complain(str(error), 1)
    except Exception as error:  # noqa: BLE001 - so may the model, uncompiled
        return _complain(_raised("the model", error), 1)
    return 0 if found.ok else 1


def _add_marks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mark",
        action="append",
        default=[],
        metavar="PATTERN",
        help="mark modules by name before, as regional_inductor.mark does; may be repeated",
    )
    parser.add_argument(
        "--merge", choices=("scope", "all"), help="which marked nodes may share a region"
    )


def _add_tolerance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tolerance",
        nargs=2,
        type=float,
        metavar=("RELATIVE", "ABSOLUTE"),
        help="for all dtypes; by default those of torch.testing.assert_close",
    )


def _example(arguments: argparse.Namespace) -> Example | int:
    """The marked model that the command line names, or the exit code of what was wrong with it."""
    from .errors import MarkError
    from .factory import FactoryError, load

    try:
        example = load(arguments.target)
        _mark(example.model, arguments.mark)
    except (FactoryError, MarkError) as error:
        return _complain(str(error), 2)
    except Exception as error:  # noqa: BLE001 - a factory is the user's code, and may raise anything
        return _complain(_raised(arguments.target, error), 1)
    return example


def _raised(what: str, error: Exception) -> str:
    from .source import raised_at

    at = raised_at(error)
    return f"{what} raised {type(error).__name__}: {error}" + (f"\n  raised at: {at}" if at else "")


def _not_written(error: OSError) -> str:
    return f"{error.filename} can't be written: {error.strerror}"


def _complain(text: str, code: int) -> int:
    print(f"regional-inductor: {text}", file=sys.stderr)
    return code


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check versions, compiler, GPU and caches",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Looks at what compiling regions needs on this machine: versions, the C++ compiler and\n"
            "Python's headers, the GPU and Triton, Inductor's cache, the store of compiled regions, and\n"
            "combinations that are known not to work. Each gets a verdict (ok, note, bad) and, unless it\n"
            "is ok, a way out."
        ),
        epilog=(
            "exit codes: 0 regions can be compiled here, notes or not; 1 something is bad; 2 wrong usage\n"
            "\n"
            "examples:\n"
            "  regional-inductor doctor\n"
            "  regional-inductor doctor && python train.py"
        ),
    )
    parser.set_defaults(run=_run_doctor)


def _run_doctor(arguments: argparse.Namespace) -> int:
    checks = doctor.examine()
    print(doctor.text(checks))
    return doctor.exit_code(checks)


def _file_to_write(text: str) -> Path:
    """An argparse type: a file that may be there or not, in a folder that is."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} to write it into")
    return path


def _at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: an int, `minimum` or more."""

    def parse(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{number} is below {minimum}")
        return number

    parse.__name__ = "int"  # argparse names the type in its message for text that is no number
    return parse


if __name__ == "__main__":
    sys.exit(main())
