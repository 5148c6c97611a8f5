"""A right is missing: to a file, a device, a namespace, or another host.

Blames
    log node-a.log: [rank1]: PermissionError: [Errno 13] Permission denied: '/data/ckpt/last.pt'
    => 1

Blames
    log a.log: gpu-7: Permission denied (publickey,password).
    => gpu-7

Spares
    log a.log: Error: Permission Denied: Try running again with elevated permissions by going 'sudo env "PATH=$PATH" !!'
"""

from ncclcheck.evidence._reads import Statement

EXPLAINS = ("rank_died_exception",)

READS = (
    Statement(
        r"PermissionError: \[Errno 13?\] (?:Permission denied|Operation not permitted)(?:: '(?P<path>[^']*)')?",
        "{who} may not open {path}",
        "ls -ld {path}; id   # as the user of the job, on that host; then chown or chmod it, or name another place (--run-dir, TMPDIR, HF_HOME)",
        0.85,
    ),
    Statement(
        r"(?:\b(?:\w{1,32}@)?(?P<host>[A-Za-z][\w.-]{0,80}): )?Permission denied \((?:publickey|password|keyboard)",
        "the launcher may not log in to {host}, and starts nothing there",
        "ssh {host} true   # from the launching node, as the user of the job: it must need no password (ssh-copy-id HOST)",
        0.85,
        "nobody",
    ),
)
