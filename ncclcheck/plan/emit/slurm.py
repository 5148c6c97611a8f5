"""A Slurm batch script: `sbatch FILE`."""

from __future__ import annotations

from ncclcheck.plan.emit import Launch, shell


def write(launch: Launch) -> str:
    """One job with one task on each node, which starts that node's servers; the hosts are Slurm's, in its order."""
    told = Launch(launch.layout, launch.each, launch.engine, launch.servers)  # whatever hosts were named: Slurm chooses
    lines = [
        "#!/bin/bash",
        f"# {launch.title()}",
        "#SBATCH --job-name=vllm",
        f"#SBATCH --nodes={launch.nodes}",
        "#SBATCH --ntasks-per-node=1",
        f"#SBATCH --gpus-per-node={launch.each}",
        "#SBATCH --exclusive",
        "set -eu",
        'HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr "\\n" " ")',
        "export HOSTS",
        "srun --kill-on-bad-exit=1 bash -c \"$(cat <<'EACH_NODE'",
        "set -eu",
        *shell.body(told, node='"$SLURM_NODEID"'),
        "EACH_NODE",
        ')"',
    ]
    return "\n".join(lines) + "\n"
