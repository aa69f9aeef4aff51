"""The store that the ranks of a job met at.

Checked on torch 2.11 and 2.13: `torch.distributed.distributed_c10d._get_default_store`, `Store.clone`,
`compare_set`, `check`, `get` and `set` of `TCPStore`, `FileStore`, `HashStore` and `PrefixStore`. The
default backend of `TCPStore` breaks the connection at a value of more than 8 MiB.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def job() -> tuple[Any, int, int] | None:
    """The store of the default process group, this process's rank, and how many there are.

    None outside a job, and in a job of one.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return None
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store(), dist.get_rank(), dist.get_world_size()


def connection_of_its_own(store: Any, prefix: str) -> Any:
    """A view of a store whose requests don't wait for those that other threads have in flight."""
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(prefix, store.clone())
