"""Scripts that several processes run together: how they start, and how they end."""

import gc
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing

forks = multiprocessing.get_context("forkserver")
"""Forks of a server that has everything imported and has never trained: what autograd started does
not survive a fork."""
forks.set_forkserver_preload(["torch._dynamo", "pytest", "tests.integration.small_run"])

FORKS = """
import sys
from pathlib import Path
import torch._dynamo  # which the first optimizer would import, in each process
import {script} as script
from tests.processes import fork

fork(script.main, Path(sys.argv[1]), int(sys.argv[2]))
"""


def run_together(script, folder, size):
    """Runs a script's `main(folder)` in so many processes, forks of one that has imported it.

    The imports of `transformers` take longer than most scripts, so they are paid for once. What
    the processes find in their environment is what `torchrun` puts there.
    """
    here = os.pathsep.join((str(Path.cwd()), str(Path.cwd() / "src")))  # this code, not another's
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": here,
    }  # fmt: skip
    command = [sys.executable, "-c", FORKS.format(script=script.__name__), str(folder), str(size)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert done.returncode == 0, "\n".join(lines)[-6000:]


def fork(main, folder, size):
    """`main(folder)` in so many forks of this process, which has not trained anything."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gc.collect()
    gc.freeze()  # what was imported is not looked through, nor copied for it, in each of them
    torch.multiprocessing.start_processes(
        _of_several, (main, folder, size, port), size, start_method="fork"
    )


def _of_several(rank, main, folder, size, port):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    main(folder)


def leave_together():
    """Ends the process group when all have come so far and no wrapped model is alive.

    PyTorch 2.13 aborts the process ("terminate called without an active exception") in about every
    second run where a DistributedDataParallel or FSDP2 model outlives its gloo group, whatever
    else the script does.
    """
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
