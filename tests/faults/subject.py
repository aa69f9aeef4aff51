"""The program that the faults are done to: compiles a model, trains a step, compares with eager.

Prints one line of JSON. Run as `python -m tests.faults.subject`, with what is to happen as options.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import traceback
import warnings

import torch
from torch import nn

import regional_inductor as ri


class Model(nn.Module):
    """Three different regions and what lies between them."""

    def __init__(self, compile_timeout: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm = nn.LayerNorm(16)
        self.compile_timeout = compile_timeout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with ri.region("norm", compile_timeout=self.compile_timeout):
            x = self.norm(x)
        x = self.first(x)
        with ri.region("gelu", compile_timeout=self.compile_timeout):
            x = nn.functional.gelu(x) * 1.5
        x = self.second(x)
        with ri.region("tail", compile_timeout=self.compile_timeout):
            return (x.sin() + 2).tanh()


def step(model: nn.Module, call, rows: int = 8) -> list[torch.Tensor]:
    """Outputs and gradients of one training step."""
    x = torch.linspace(-2, 2, rows * 16).reshape(rows, 16)
    model.zero_grad(set_to_none=True)
    out = call(x)
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]


def equal(ours, theirs) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, theirs, strict=True)
    )


def run(options: argparse.Namespace) -> dict[str, object]:
    model = Model(options.compile_timeout)
    expected = step(model, model.forward)
    compiled = ri.compile(Model(options.compile_timeout))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        interrupted = False
        try:
            actual = step(compiled, compiled)
        except KeyboardInterrupt:
            if not options.go_on:
                raise
            interrupted = True
            os.environ.pop("FAULT", None)
            torch._dynamo.reset()
            actual = step(compiled, compiled)
    return {
        "equal": equal(actual, expected),
        "statuses": [region.status for region in compiled.report.regions],
        "reasons": [region.reason for region in compiled.report.regions if region.reason],
        "warnings": [str(w.message) for w in caught if issubclass(w.category, ri.RegionWarning)],
        "interrupted": interrupted,
        "children": _children(),
    }


def _children() -> list[str]:
    """Processes that are left over; zombies that nobody waited for don't count."""
    found = []
    for thread in os.listdir("/proc/self/task") if sys.platform == "linux" else ():
        with open(f"/proc/self/task/{thread}/children") as file:
            for child in file.read().split():
                with contextlib.suppress(OSError), open(f"/proc/{child}/stat") as stat:
                    name, state = stat.read().split("(", 1)[1].rsplit(")", 1)
                    if state.split()[0] != "Z":
                        found.append(name)
    return found


def threads(count: int) -> dict[str, object]:
    """Many threads compile and run the same model, each a copy of its own."""
    model = Model()
    expected = step(model, model.forward)
    results: list[bool] = []
    errors: list[str] = []
    together = threading.Barrier(count)

    def work(mine: Model) -> None:
        try:
            ri.compile(mine)
            together.wait(120)
            for _ in range(3):
                results.append(equal(step(mine, mine), expected))
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append("".join(traceback.format_exception(error)))

    # Made here: they draw from one generator, whose seed all set.
    started = [threading.Thread(target=work, args=(Model(),)) for _ in range(count)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return {"equal": all(results), "runs": len(results), "errors": errors}


def fork() -> dict[str, object]:
    """A child of a process that has compiled runs what was compiled, and compiles something new."""
    torch.set_num_threads(
        1
    )  # as in workers of a data loader: OpenMP's threads don't survive a fork
    model, x = Model(), torch.randn(8, 16)
    with torch.no_grad():
        expected = model(x)
        compiled = ri.compile(Model())
        compiled(x)

        @ri.region("new")
        def new(x):
            return (x.cos() * 3 + 1).tanh()

        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            fine = [torch.allclose(compiled(x), expected, atol=1e-5)]
            fine.append(torch.allclose(ri.compile(new)(x), new(x), atol=1e-5))
            os.write(write, json.dumps(fine).encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as file:
            told = json.loads(file.read() or "[]")
        after = torch.allclose(compiled(x), expected, atol=1e-5)
    return {"equal": after and told == [True, True], "child": told, "status": status}


def warm() -> dict[str, object]:
    """Compile something else, which leaves the precompiled headers that every compile needs."""

    @ri.region("other")
    def other(x):
        return x.cos() * 7 - 3

    x = torch.randn(64)
    return {"equal": torch.allclose(ri.compile(other, on_error="raise")(x), other(x), atol=1e-5)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--warm", action="store_true", help="compile something else")
    parser.add_argument("--compile-timeout", type=float)
    parser.add_argument("--go-on", action="store_true", help="compile again after Ctrl-C")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--file-size", type=int, help="bytes that a file can have at most")
    options = parser.parse_args()
    if options.file_size is not None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_size, options.file_size))
    if options.warm:
        result = warm()
    elif options.threads:
        result = threads(options.threads)
    elif options.fork:
        result = fork()
    else:
        result = run(options)
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    # Jobs that a shell runs in the background, and what they start, ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
