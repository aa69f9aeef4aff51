"""The command line: `regional-inductor demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import demo


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 results differ or a run failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regional-inductor",
        description="Compile marked regions of a PyTorch model with TorchInductor; run the rest eagerly.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = demo.Settings()
    parser = commands.add_parser(
        "demo",
        help="train a small Llama with marked regions and compare it with eager",
        description=(
            "Trains a small byte-level Llama on Python's own library sources, on the CPU: eagerly, with "
            "PyTorch's regional pass, with torch.compile and with this library. Prints the regions, what each "
            "way costs and how far it is from eager."
        ),
        epilog=(
            "exit codes: 0 equal to eager within the printed tolerance; 1 not equal, or a run failed; "
            "2 wrong usage. example: regional-inductor demo --layers 8 --json demo.json"
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to FILE")
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    settings = demo.Settings(steps=arguments.steps, layers=arguments.layers, seed=arguments.seed)
    return demo.run(settings, arguments.json)


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
