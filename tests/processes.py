"""Scripts that several processes run together: how they start, and how they end."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist


def run_together(script, folder, size):
    """Runs a script's `main` in so many processes, with a folder as its one argument."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={size}", script.__file__, str(folder)]
    here = os.pathsep.join((str(Path.cwd()), str(Path.cwd() / "src")))  # this code, not another's
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert done.returncode == 0, "\n".join(lines)[:6000]


def leave_together():
    """Ends the process group when all have come so far and no wrapped model is alive.

    PyTorch 2.13 aborts the process ("terminate called without an active exception") in about every
    second run where a DistributedDataParallel or FSDP2 model outlives its gloo group, whatever
    else the script does.
    """
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
