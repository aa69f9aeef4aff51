"""What trials of operators found out, across processes: a warm start compiles no operator to try it again.

Kept is what a comparison with eager said. That an operator couldn't be compiled is not: the next process may
have the compiler that this one lacked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import Any

from torch.fx.node import Node

from . import region_store
from ._torch import exact_trials, machine
from ._torch.exact_trials import Verdict
from .disk import Disk
from .entry import SCHEMA, Entry
from .identity import times_asked
from .own_code import package_digest
from .region_key import environment_key

log = logging.getLogger("regional_inductor")

_PART = "verdict"


class TrialStore:
    """The store on disk, as trials of operators use it; it holds nothing if there is none.

    What a verdict depends on besides the operator, its types and constants is asked for once: what a compile
    depends on, this package, torch's build, the CPU, and the GPUs.
    """

    def __init__(self) -> None:
        self._disk: Disk | None = None if region_store.forbidden() else region_store.disk()
        self._surroundings = ""
        if self._disk is not None:
            asked = times_asked()
            self._surroundings = environment_key()
            if times_asked() != asked:
                log.info("trials are not stored: their environment holds objects of this process")
                self._disk = None

    def taken(self, node: Node) -> Verdict | None:
        """What an earlier process found out about an operator like this; None if nothing is kept."""
        if self._disk is None:
            return None
        key = self._key(node)
        entry = self._disk.get(key)
        if entry is None:
            return None
        try:
            kept = json.loads(entry.parts[_PART])
            return Verdict(str(kept["reason"]), int(kept["choice"]))
        except (KeyError, TypeError, ValueError) as error:
            self._disk.reject(key, f"{type(error).__name__}: {error}")
            return None

    def keep(self, node: Node, found: Verdict, seconds: float) -> None:
        """Keep what a comparison said.

        Args:
            node: The operator.
            found: What its trial found out.
            seconds: How long the trial took, which may have been of several operators together.
        """
        if self._disk is None:
            return
        verdict = json.dumps({"reason": found.reason, "choice": found.choice}).encode()
        about = _about(node, found, seconds)
        self._disk.put(Entry(self._key(node), about, {_PART: verdict}))

    def _key(self, node: Node) -> str:
        text = json.dumps(
            {
                "trial": repr(exact_trials.signature(node)),
                "environment": self._surroundings,
                "schema": SCHEMA,
                "package": package_digest(),
                "build": machine.build(),
                "devices": machine.devices(_devices(node)),
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()


def _devices(node: Node) -> frozenset[str]:
    return frozenset(operand.meta["val"].device.type for operand in node.all_input_nodes)


def _about(node: Node, found: Verdict, seconds: float) -> dict[str, Any]:
    """What `regional-inductor cache` shows."""
    return {
        "name": f"(trial) {node.target}",
        "direction": "",
        "nodes": 1,
        "ops": [],
        "options": {},
        "verdict": found.reason or "equals eager bit for bit",
        "seconds": round(seconds, 3),
        "made": time.time(),
        "build": machine.build(),
        "devices": machine.devices(_devices(node)),
    }
