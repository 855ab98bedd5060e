"""Shards made and asked by Ray workers that share this machine's files."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradatim.inference.search.errors import IndexDamagedError, SearchError
from gradatim.inference.search.files import Manifest
from gradatim.inference.search.settings import IndexSettings, Progress
from gradatim.inference.search.shard import Shard
from gradatim.inference.search.shard_building import ShardReport, ShardTask, build_shard


def start_ray(address: str | None = None) -> Any:
    """Ray, connected. Raises SearchError with one line where it is missing or does not answer."""
    try:
        import ray
    except ImportError as error:
        raise SearchError("--engine ray needs Ray; install it with: pip install 'gradatim[ray]'") from error
    if ray.is_initialized():
        return ray
    if address:
        _reach(address)
    where: dict[str, Any] = (
        {"address": address}
        if address
        else {"address": "local", "num_cpus": os.cpu_count() or 1, "include_dashboard": False}
    )
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SearchError(f"no Ray cluster at {where['address']}: {str(error).splitlines()[0]}") from error
    return ray


def _reach(address: str) -> None:
    """Ask the port first: Ray itself would try a dead address for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise SearchError(f"no Ray cluster at {address}: {error.strerror or error}") from error


def build_on_ray(
    tasks: Sequence[ShardTask], settings: IndexSettings, on_progress: Progress
) -> list[ShardReport]:
    """Make shards as Ray tasks; one whose worker or machine is lost is made again."""
    ray = start_ray(settings.ray_address)
    remote = ray.remote(build_shard).options(num_cpus=1, max_retries=2)
    waiting = {remote.remote(task): task.number for task in tasks}
    reports: dict[int, ShardReport] = {}
    on_progress("making shards", 0, len(tasks))
    try:
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(ready)
            try:
                reports[number] = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, SearchError):
                    raise error.cause from error
                raise SearchError(f"shard {number}: {_last_line(error)}") from error
            except ray.exceptions.RayError as error:
                raise SearchError(f"shard {number}: Ray could not make it ({_last_line(error)})") from error
            on_progress("making shards", len(reports), len(tasks))
    finally:
        for task in waiting:
            with contextlib.suppress(Exception):
                ray.cancel(task, force=True)
    return [reports[task.number] for task in tasks]


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__


class RayShards:
    """The shards of an index, each in a Ray worker of its own that keeps it open."""

    def __init__(self, index: Path, manifest: Manifest, address: str | None = None) -> None:
        self._ray = start_ray(address)
        remote = self._ray.remote(Shard).options(num_cpus=0)
        self._shards = [remote.remote(index, manifest, number) for number in range(manifest.shards)]

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """The answers of all shards to a call, in their order."""
        calls = [getattr(shard, method).remote(*arguments) for shard in self._shards]
        try:
            return list(self._ray.get(calls))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SearchError):
                raise error.cause from error
            raise IndexDamagedError(f"a shard failed: {_last_line(error)}") from error
        except self._ray.exceptions.RayError as error:
            raise SearchError(f"a Ray worker was lost ({_last_line(error)}); ask again") from error

    def close(self) -> None:
        """End the workers."""
        for shard in self._shards:
            self._ray.kill(shard)
