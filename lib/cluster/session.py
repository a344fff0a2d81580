"""Ray: joining or starting a cluster, and what every task needs of it."""

from __future__ import annotations

import os


def start(address: str = "", workers: int = 1, store: int = 1_000_000_000) -> None:
    """Join the Ray cluster at an address, or start one of `workers` processes on this machine.

    store: bytes of shared memory for what is shuffled; more goes to disk. Raises
    ModuleNotFoundError without the extra `cluster`.
    """
    # Read by the cluster that is started. Ray ends a process that is idle for a second and keeps as
    # many as there are processors, but uses several kinds of them, so it started one for every few
    # tasks: two thirds of the time.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "3600000")
    os.environ.setdefault("RAY_num_workers_soft_limit", str(4 * workers))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "engine ray needs the extra: pip install -e '.[cluster]'"
        ) from error

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # else half of the processors wait for the other half's stage
    context.op_resource_reservation_enabled = False
    context.shuffle_compression = "lz4"  # hashes hardly shrink: the default, zstd, takes longer
    if address:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    else:  # reachable from this machine alone
        context.shuffle_input_batch_bytes = 64_000_000  # the default: a gigabyte in one process
        ray.init(
            num_cpus=workers,
            object_store_memory=store,
            ignore_reinit_error=True,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )


def add_options(parser) -> None:
    """What every command of this room takes: tasks of a shuffle, and the cluster to run on."""
    parser.add_argument(
        "--partitions", type=int, help="tasks of a shuffle; more need less memory each; by bytes"
    )
    parser.add_argument(
        "--address", default="", help="of a running cluster; empty starts one on this machine"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes where none runs yet")


def of_batch(chunk: dict) -> dict:
    """A chunk of `shards.chunks` from the batch of one that Ray hands out."""
    return {name: column[0] if name == "path" else int(column[0]) for name, column in chunk.items()}


def held(job):
    """What all tasks of a job share, from Ray's store."""
    import ray

    return ray.get(job) if isinstance(job, ray.ObjectRef) else job
