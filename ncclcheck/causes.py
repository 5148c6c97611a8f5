"""Every cause that a finding may name, as data: what it means, how it shows, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause, for somebody who meets it for the first time. What is to be typed stands in backquotes."""

    group: str
    meaning: str  # what went wrong
    shows_as: str  # the lines and signs by which an engineer recognises it
    remedy: str  # what to look at, to type or to change


# group -> cause -> (meaning, shows as, remedy)
_TEXTS: Mapping[str, Mapping[str, tuple[str, str, str]]] = {
    "Wiring and rendezvous": {
        "missing-rank-at-rendezvous": (
            "The ranks find each other at one address (the rendezvous), and fewer came than world_size says. A node was not started, died "
            "early, or was given another address. The others wait there and none of them is at fault.",
            "`1/2 clients joined`, `DistStoreError: Timed out after 601 seconds waiting for clients`, or some ranks have no log at all.",
            "Look at the node or rank that is missing, not at those that complain: is its launcher running, and does its own log name an "
            "error? Start it with its own `--node-rank` and the same `--nnodes` and `--master-addr`; from there `nc -vz MASTER_ADDR "
            "MASTER_PORT` must connect. A rank that only starts late needs a longer timeout.",
        ),
        "world-size-mismatch": (
            "The ranks disagree on how many they are. A group of 4 waits for ranks that nobody started, or a rank with a number outside the "
            "group is refused.",
            "Different `WORLD_SIZE`, `--nnodes` or `--nproc-per-node` per host, different `nranks` in NCCL's `Init START` lines, or Gloo's "
            "`enforce fail ... rank < size`.",
            "Start every node with the same `--nnodes` and `--nproc-per-node`: together they make WORLD_SIZE. For vLLM, "
            "`--tensor-parallel-size` x `--pipeline-parallel-size` must equal the number of processes. Compare with `env | grep -E "
            "'RANK|WORLD_SIZE'` on every node.",
        ),
        "duplicate-rank": (
            "Two processes claim the same number in the job. Usually the start command was copied to the second node and kept the node rank "
            "of the first.",
            "`rank 1 of 2 ranks has already checked in`, or the same rank with two pids in the logs.",
            "Give each node its own `--node-rank` (0 to nnodes - 1), and end what an earlier launch left: `pgrep -af torchrun`. A RANK that"
            " is set by hand or left over in the environment does the same.",
        ),
        "wrong-master-addr": (
            "MASTER_ADDR, the address of node 0 where all ranks meet, is not an address of node 0, or the other nodes have no route to it. "
            "Typical are the address of another network, of a container, or of last week's node.",
            "Only the nodes other than node 0 fail to connect to MASTER_ADDR:MASTER_PORT; or the ranks' MASTER_ADDR or MASTER_PORT differ.",
            "On node 0 `ip -br addr` shows its addresses. Give every node the one on the network that they share (`--master` here, "
            "`--master-addr` for torchrun and vLLM), and `ping` it from each of them. MASTER_ADDR, `main_process_ip` and the like must hold"
            " an address, not a name that only one node knows.",
        ),
        "port-in-use": (
            "Another program listens on the port that node 0 needs. Often it is the launch before this one, which did not end.",
            "`EADDRINUSE`, `errno: 98 - Address already in use`, or something on that port answers in another protocol.",
            "`ss -ltnp 'sport = :29500'` on node 0 shows who it is. End it, or give every node the same other port (`--master-port`). "
            "`MASTER_PORT` and `VLLM_PORT` choose another free port.",
        ),
        "blocked-port": (
            "A firewall, security group or network policy lets some TCP ports through and drops the others. The rendezvous port was opened, "
            "but NCCL, Gloo and vLLM also use random ones.",
            "The master port works and `ping` works, yet connections to other ports time out or give `errno: 113 - No route to host`.",
            "Open all TCP ports between the nodes, at least those of `sysctl net.ipv4.ip_local_port_range`. `iptables -L -n`, `nft list "
            "ruleset`, `ufw status` and the cloud's security group show what is dropped; `nc -vz PEER PORT` proves it. `systemctl stop "
            "firewalld` as a test.",
        ),
        "service-mesh": (
            "A proxy that Kubernetes put into the pod (Istio, Linkerd) intercepts the job's connections. It does not know the protocols of "
            "NCCL and Gloo, and cuts or delays them.",
            "Connections are reset right at the start; `kubectl get pods` shows 2/2 containers; one of them is `istio-proxy`.",
            'Keep the proxy out of these pods: the label `sidecar.istio.io/inject: "false"` (for Linkerd the annotation `linkerd.io/inject: '
            "disabled`).",
        ),
        "bind-address-not-local": (
            "A process is told to listen on an address that this machine does not have. Usually a setting with the address of one node was "
            "copied to another.",
            "`Cannot assign requested address` (errno 99).",
            "Compare `ip -br addr` with the address in the error. VLLM_HOST_IP, `--host` and the like need each node's own address; only "
            "`--master-addr` is the same on all.",
        ),
        "hostname-resolution": (
            "A host name leads to nowhere, or to the machine that asks. Debian and Ubuntu write `127.0.1.1 HOSTNAME` into /etc/hosts, so a "
            "node that looks up its own name gives its peers an address that leads them back to themselves.",
            "127.0.0.1 or 127.0.1.1 as the address of a remote peer, `Connection refused, remote=[127.0.1.1]`, or `Name or service not known`.",
            "`getent ahosts HOST` on every node must show the address in the shared network. Mend /etc/hosts or DNS, use numeric addresses, "
            "or `export GLOO_SOCKET_IFNAME=eth0` with the name of each node's interface.",
        ),
        "wrong-interface": (
            "A node has several network interfaces, and NCCL, Gloo or vLLM took one that does not lead to the peers (docker0, a VPN, "
            "loopback) or that does not exist. Each chooses for itself, so one may work while another hangs.",
            "`NCCL INFO Bootstrap : Using docker0:172.17.0.1<0>`, `no socket interface found`, or Gloo's `Unable to find address for: eth9`.",
            "`ip -br addr` on every node; then `export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0` with the interface of the shared "
            "network, and VLLM_HOST_IP with its address.",
        ),
        "network-unreachable": (
            "The hosts cannot reach each other at all, or could until the link or route between them went away. Every rank waits in the same "
            "operation, and none is behind.",
            "`errno: 101 - Network is unreachable` or 113 on every port; or all ranks of one host wait for all of another at the same step, "
            "and nobody died.",
            "From one host to the other: `ping -c 3 PEER`, `ip route get PEER`, `ip -s link` (errors, carrier). Then mend the route, the "
            "cable or the firewall.",
        ),
        "slow-network": (
            "The network works, and is far slower than it should be. Often NCCL uses TCP sockets although there is InfiniBand, or the traffic "
            "takes a management network.",
            "All ranks are in the same collective and the job advances at a crawl; `via NET/Socket` where `via NET/IB` is expected.",
            "`NCCL_DEBUG=INFO` shows the path taken. Compare `ncclcheck probe bandwidth` with `iperf3 -c PEER -P 8` and with the link's rate; "
            "choose the fast network with NCCL_SOCKET_IFNAME or NCCL_IB_HCA.",
        ),
        "link-interrupted": (
            "A link, or the network behind it, was away for a moment while the job ran. TCP sends again what was lost, so a job survives an "
            "outage of seconds; over InfiniBand, or with a shorter timeout, the same outage ends it.",
            "The counter of lost carriers (`ip -s -s link`, `carrier_changes`, an RDMA port's `link_downed`) grew during the run; or all ranks "
            "stood still in a collective for seconds, and the kernel's TCP timeouts grew (`nstat -az TcpExtTCPTimeouts`).",
            "On the host that is named: `dmesg -T | grep -i link`, `ip -s -s link show IFACE`, `ethtool IFACE`. Exchange the cable and the "
            "transceiver, try another port of the switch, and read the switch's log for that time.",
        ),
        "mtu-mismatch": (
            "Something on the path does not carry packets as large as the ends send (the MTU, the largest packet of a link, differs). Small "
            "messages pass; large ones vanish without an error.",
            "Small collectives work and large ones hang; on InfiniBand or RoCE `error 12` soon after the start.",
            "`ping -M do -s 8972 PEER` must pass where the MTU is 9000 (1472 for 1500). Set one MTU on all interfaces and switches: `ip link "
            "set eth0 mtu 9000`; `ibv_devinfo | grep mtu` for RDMA.",
        ),
        "store-lost": (
            "The store, the small server on node 0 through which the ranks find each other, went away first. Its process ended or its host "
            "went down, and nothing earlier explains why.",
            "`Connection was likely closed. Did the remote server shutdown or crash?`, `Broken pipe` from TCPStore, and no earlier error on "
            "any rank.",
            "Look at node 0: the end of rank 0's and the launcher's log, `dmesg -T | tail -50`, `uptime`. Where rank 0 ended in order, let "
            "all ranks leave together through `destroy_process_group()`.",
        ),
        "token-mismatch": (
            "An agent asked to take part with another run token (the shared secret of a run), and was refused. It is a stranger, or a node of "
            "yours that was started with another one.",
            "A node is missing from the roll call, and somebody knocked whose key does not fit.",
            "Give every node the same token: `ncclcheck token` prints the one that a node uses where neither `--token`, `--token-file`, "
            "NCCLCHECK_TOKEN nor NCCLCHECK_TOKEN_FILE says another.",
        ),
        "no-token": (
            "A node found no run token (the shared secret of a run), so that it could not take part. Node 0 makes one on first use; the others "
            "have it where the home folder is shared, and must be given it elsewhere.",
            "The node says so at once, with the line to type; node 0 finds that it is missing.",
            "`ncclcheck token` on node 0 prints the token. Copy `~/.config/ncclcheck/token` to that node, or `export NCCLCHECK_TOKEN` there, "
            "before the same command.",
        ),
        "order-refused": (
            "A node would not do what node 0 ordered, as the user of that node had not asked for it. A node runs the probes and plants the "
            "faults that were named on its own command line, and no others.",
            "The nodes were started with different commands: other probes, `--inject`, `--model` or `--allow-network-faults` on one of them.",
            "Type the same `ncclcheck` command on every node; only `--node-rank` differs.",
        ),
        "invalid-message": (
            "An agent sent what no ncclcheck of this version sends: numbers out of range, words that are none, more than fits. It was heard "
            "no more. It is another version, it is damaged, or somebody holds the token who should not.",
            "The verdict names the sender and the part of its message.",
            "`ncclcheck --version` must be the same on every node. If it is, make a new token for the next run.",
        ),
        "agent-lost": (
            "The agent, the part of `ncclcheck probe` that watches a node, disappeared or cannot be reached any more. What the ranks of that "
            "node did since is not known, so the verdict is unknown.",
            "Its heartbeats stopped: ncclcheck was killed, the machine went down, or the network to it did.",
            "On that host: `uptime; dmesg -T | tail -50`. Then `ping` it from the other nodes, and run the check again.",
        ),
        "peer-reset": (
            "A peer closed a connection, and nothing that was seen says why. It is nearly always the consequence of something that happened "
            "on the other side.",
            "`Connection reset by peer` or `Connection closed by remote peer` alone, with no dead, stopped or failing rank in sight.",
            "Read the log of the rank that is not named, and `dmesg -T | tail -50; ip -s link` on both hosts: a killed process, a link that "
            "flapped, or a firewall that cuts idle connections.",
        ),
    },
    "GPUs and drivers": {
        "duplicate-gpu": (
            "Two ranks use the same GPU. NCCL refuses that, since each rank must have its own.",
            "`Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000`, or the same busId twice on one host.",
            'Call `torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))` before anything else uses CUDA, and see that CUDA_VISIBLE_DEVICES '
            "does not give two ranks the same GPU. `nvidia-smi -L` counts them. Start one process per GPU: `--nproc-per-node`, Slurm's "
            "`--ntasks-per-node`, and one launcher per node.",
        ),
        "device-visibility": (
            "A rank asks for a GPU that it cannot see. More ranks were started on a node than GPUs are visible there, or the scheduler shows "
            "each task only its own GPU, under the number 0.",
            "`CUDA error: invalid device ordinal`; CUDA_VISIBLE_DEVICES lists fewer GPUs than `--nproc-per-node`.",
            "`echo $CUDA_VISIBLE_DEVICES; nvidia-smi -L` inside the job. Let it see a GPU for each rank (`docker run --gpus all`, `srun "
            "--gpus-per-node`), or lower `--nproc-per-node`.",
        ),
        "driver-not-working": (
            "An NVIDIA GPU is in the machine and cannot be used: the driver is not loaded, the container was not given the device, or this "
            "torch was built for the CPU. A job would silently run on the CPU.",
            "No /dev/nvidia*, `NVML: Driver/library version mismatch`, `torch.cuda.is_available()` is False.",
            "`nvidia-smi`; `python -c 'import torch; print(torch.version.cuda, torch.cuda.is_available())'`. After a driver update reboot; in "
            "a container use `--gpus all`; a None for torch.version.cuda is a CPU build of torch.",
        ),
        "driver-cuda-mismatch": (
            "The NVIDIA driver is too old for the CUDA version that torch or NCCL was built with, or a compatibility copy of libcuda in the "
            "container does not fit this driver or GPU.",
            "`CUDA driver version is insufficient for CUDA runtime version`, CUDA error 803 or 804.",
            "`nvidia-smi` shows the newest CUDA that the driver can run. Update the driver, install a torch built for an older CUDA, or take "
            "/usr/local/cuda/compat out of LD_LIBRARY_PATH.",
        ),
        "gpu-arch-not-built": (
            "This build of torch, NCCL or vLLM holds no code for this kind of GPU, because the GPU is newer, or older, than the build supports.",
            "`no kernel image is available for execution on the device`, `named symbol not found`.",
            "`python -c 'import torch; print(torch.cuda.get_device_capability(), torch.cuda.get_arch_list())'`; install a build that lists "
            "this capability. For NCCL itself: upgrade it, or rebuild it with NVCC_GENCODE for this architecture (sm_90, sm_120).",
        ),
        "gpu-busy": (
            "Other processes hold the GPU. A check would disturb them, its figures would be wrong, and a job may find too little memory.",
            "Compute processes or used memory in `nvidia-smi` before the launch.",
            "`nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv` shows who. End them or wait; `ncclcheck probe --force` runs "
            "all the same.",
        ),
        "slow-gpu": (
            "One GPU computes or copies more slowly than its equals, and with every collective all others wait for it. Usual reasons are "
            "heat, a power limit, or clocks that were lowered and not restored.",
            "The same rank is last everywhere; lower clocks, or an active throttle reason.",
            "`nvidia-smi -q -d CLOCK,PERFORMANCE,POWER,TEMPERATURE` on the slow and on a healthy GPU; `nvidia-smi --reset-gpu-clocks`; see to "
            "the cooling and the power limit, else take the GPU out.",
        ),
        "xid-hardware": (
            "The GPU, its memory or its bus failed. The driver reports it as an Xid, a numbered error in the kernel log: 79 is a GPU that "
            "fell off the bus, 48 and 94/95 are memory errors, 74 is NVLink.",
            "`NVRM: Xid (PCI:0000:1b:00): 79`, `GPU has fallen off the bus`, uncorrectable ECC errors.",
            "`dmesg -T | grep -i xid`; `nvidia-smi -q -d ECC,ROW_REMAPPER`. Take the node out of service, reset or reboot it, run `dcgmi "
            "diag -r 3`, and have the GPU exchanged if it happens again. Uncorrectable ECC errors mean: replace the GPU or drain the node.",
        ),
        "data-corruption": (
            "A collective or an engine gave a wrong result without any error. This is the worst failure, as training and answers go wrong "
            "unnoticed. A GPU, a link or a library computes or carries data wrongly.",
            "An element differs from the checked pattern, or the same model answers with other tokens over several GPUs than on one.",
            "Take the GPUs or the node named out of service. Then narrow it down: `ncclcheck probe collectives` on each node alone; again "
            "with `NCCL_P2P_DISABLE=1`, with `NCCL_ALGO=Ring` and with `NCCL_NET=Socket`; `dmesg -T | grep -i xid` and `dcgmi diag -r 3`.",
        ),
        "fabric-manager": (
            "On machines with NVSwitch the service nvidia-fabricmanager connects the GPUs. It does not run, or its version is not the "
            "driver's; then no CUDA program starts.",
            "CUDA error 802, `system not yet initialized`.",
            "`systemctl status nvidia-fabricmanager`; install the version that equals the driver's (`nvidia-smi`), then `systemctl restart "
            "nvidia-fabricmanager`. Where it was restarted under running jobs, reset the GPUs (`nvidia-smi --gpu-reset`) or reboot; "
            "`NCCL_NVLS_ENABLE=0` is a stopgap.",
        ),
    },
    "Memory and links between GPUs": {
        "nvls-multicast": (
            "NVLink SHARP (NVLS), by which the NVLink switches add up data themselves, could not be set up. It needs a working fabric manager "
            "and the right to make multicast memory.",
            "`NCCL WARN` lines from transport/nvls.cc, often `Cuda failure` while multicast memory is made or bound.",
            "`nvidia-smi -q | grep -A4 Fabric` must say Completed. `NCCL_NVLS_ENABLE=0` works around it, at some cost in speed.",
        ),
        "mnnvl-imex": (
            "NVLink between nodes (multi-node NVLink, as in an NVL72 rack) could not be set up. It needs the service nvidia-imex on every "
            "node, with the same list of nodes, and its device in the container.",
            "`cuMemImportFromShareableHandle` fails, errors that name IMEX, or no /dev/nvidia-caps-imex-channels.",
            "`systemctl status nvidia-imex; nvidia-imex-ctl -N` on every node. `NCCL_MNNVL_ENABLE=0` uses the ordinary network instead.",
        ),
        "p2p-broken": (
            "The GPUs of a host claim that they can read each other's memory (peer access), and it does not work. Often the PCIe bus sends "
            "such traffic by way of the CPU, because ACS or the IOMMU (protections of virtual machines) is on.",
            "A hang at the first collective on a single host, after lines with `via P2P`; all ranks are in the same operation.",
            "`NCCL_P2P_DISABLE=1` as a test: if that helps, compare `nvidia-smi topo -p2p r`, switch ACS off (`lspci -vvv | grep ACSCtl` "
            "shows it), and and turn the IOMMU off in the BIOS, or pass `iommu=pt` to the kernel. Consumer cards advertise what a driver "
            "does not do: update the driver, or keep NCCL_P2P_DISABLE=1.",
        ),
        "p2p-peer-limit": (
            "A GPU can map the memory of only a few peers at a time over PCIe (eight besides itself), and the job wants more.",
            "`peer mapping resources exhausted`, CUDA error 711.",
            "Use at most 8 GPUs per process group on that host, show each process only the GPUs it needs (CUDA_VISIBLE_DEVICES), or "
            "`NCCL_P2P_DISABLE=1`.",
        ),
        "custom-allreduce": (
            "vLLM has an all-reduce of its own for GPUs in one host, and it could not map the memory of its peers.",
            "`custom_all_reduce.cuh:455 'invalid argument'` while the engine starts, often as it captures CUDA graphs; the worker then dies "
            "without a traceback.",
            "`--disable-custom-all-reduce` makes vLLM use NCCL instead. If PYTORCH_CUDA_ALLOC_CONF contains `expandable_segments:True`, "
            "taking that out is enough: such memory cannot be shared in this way.",
        ),
        "cumem-host": (
            "NCCL could not allocate the host memory that the ranks of a node share in the newer way (cuMem). It happens on GPUs without peer "
            "access, and in containers that may not choose the memory's NUMA node (the part of the memory near one CPU).",
            "`transport/shm.cc ... NCCL WARN Cuda failure 217 'peer access is not supported between these two devices'`.",
            "`export NCCL_CUMEM_HOST_ENABLE=0` on every rank goes back to /dev/shm, which must then be large enough. In containers `docker "
            "run --cap-add SYS_NICE` may do instead.",
        ),
    },
    "Network cards: InfiniBand and RoCE": {
        "memlock-limit": (
            "A network card can only read memory that is locked in place, and the limit for locked memory is too small.",
            "`ibv_reg_mr` fails with `Cannot allocate memory`, and `ulimit -l` shows 64 or 8192 instead of unlimited.",
            "`docker run --ulimit memlock=-1`, `* - memlock unlimited` in /etc/security/limits.d, or for Slurm `LimitMEMLOCK=infinity` in "
            "the unit of slurmd. For Docker's own limit: LimitMEMLOCK=infinity in docker.service.",
        ),
        "kernel-regression": (
            "This release of the Linux kernel has an error that makes the registration of memory for RDMA fail, though nothing is wrong with "
            "the limits.",
            "`ibv_reg_mr` fails with `Cannot allocate memory` although `ulimit -l` says unlimited; hosts with another kernel work.",
            "Compare `uname -r` and `ofed_info -s` with a host that works, and boot that kernel. Some kernels miscount pinned memory: "
            "`kho=off` on the kernel's command line, or an earlier kernel.",
        ),
        "ib-link-error": (
            "An InfiniBand or RoCE port, cable or switch fails or went down during the job.",
            "`NET/IB : Got async event : port error`, or `Got completion from peer ... with status=12`, often called error 12: the peer did "
            "not acknowledge, however often it was sent.",
            "`ibstat` (State: Active), `ibqueryerrors` or `ethtool -S eth0` for error counters, `dmesg -T | grep mlx5`. Exchange the cable;"
            " for short interruptions only, `NCCL_IB_TIMEOUT=22` waits longer. Cable, transceiver and switch port are exchanged in turn; "
            "until then drain the node or leave the card out with NCCL_IB_HCA.",
        ),
        "roce-gid": (
            "RoCE is RDMA over Ethernet, and each port has several addresses in a list (GIDs). NCCL took one that the peer cannot reach, "
            "mostly one of another protocol version or a link-local one.",
            "`status=12` with `vendor err 129` at the very first message between two hosts.",
            "`show_gids` on every node; `export NCCL_IB_GID_INDEX=3` with the index of the RoCE v2 entry that has the IPv4 address. It may "
            "differ between nodes.",
        ),
        "wrong-hca-path": (
            "A node has several RDMA cards (HCAs), and the one that NCCL chose has no path to the peer's: they are in different subnets or "
            "rails (networks of their own).",
            "Only some pairs of cards fail, with GIDs of different subnets in NCCL's lines.",
            "`export NCCL_IB_HCA='=mlx5_0,mlx5_1'` with the cards that are connected (`ibstat`, `nvidia-smi topo -m`; the inner = asks for "
            "exact names), or `NCCL_CROSS_NIC=0` where each rail is separate. Rails that are not routed to each other need rail-aligned "
            "cards.",
        ),
        "gdr-missing": (
            "GPUDirect RDMA, by which a network card reads GPU memory directly, is not in use. Each byte takes a detour by the CPU's memory, "
            "and bandwidth is a fraction of what it could be.",
            "`via NET/IB/0` without `/GDRDMA`, `GPU Direct RDMA Disabled`, and the kernel module nvidia_peermem is not loaded.",
            "`modprobe nvidia_peermem; lsmod | grep peermem`, or a recent driver with open kernel modules (DMA-BUF). `nvidia-smi topo -m` "
            "shows whether card and GPU are near each other (PIX or PXB). Driver, OFED and kernel must fit each other for peermem to "
            "register.",
        ),
        "net-plugin": (
            "NCCL loads a plugin for the network (for AWS EFA, Google's or SHARP), and that plugin fails or does not fit this NCCL.",
            "Errors from the plugin itself, such as `NET/OFI` lines, or `undefined symbol` where it is loaded. `No plugin found "
            "(libnccl-net.so)` alone is normal: NCCL then uses its own.",
            "`NCCL_NET_PLUGIN=none` as a test: if that helps, install the plugin's version made for this NCCL, and look for a second copy: "
            "`ldconfig -p | grep nccl-net; echo $LD_LIBRARY_PATH`.",
        ),
        "slow-link": (
            "One link is slower than others of its kind, so every ring that crosses it is as slow. It may have fallen back to a lower rate or "
            "fewer lanes, or carry other traffic.",
            "One pair of nodes or GPUs has a lower bandwidth than all other pairs.",
            "Compare with a healthy node: `ibstat | grep Rate`, `ethtool eth0 | grep Speed`, `nvidia-smi nvlink -s`, `lspci -vv | grep "
            "LnkSta` (a width or speed marked downgraded).",
        ),
    },
    "Libraries and settings": {
        "nccl-version-mismatch": (
            "Ranks loaded different versions of NCCL, which do not understand each other.",
            "Different `NCCL version 2.x.y` lines per host, or garbage in the first messages (`Message truncated`).",
            "Install the same torch everywhere. `python -c 'import torch; print(torch.cuda.nccl.version())'` on every node; LD_LIBRARY_PATH, "
            "LD_PRELOAD or VLLM_NCCL_SO_PATH may bring in another copy.",
        ),
        "version-mismatch": (
            "Software other than NCCL differs between the nodes, or two packages of one node do not belong together: torch, vLLM, CUDA, the "
            "driver, ncclcheck.",
            "The versions in the table of nodes differ; `operator torchvision::nms does not exist` is a torchvision that was built for "
            "another torch.",
            "Use the same container image or lock file on all nodes. Compare `pip freeze | grep -iE 'torch|vllm|nccl'` and `nvidia-smi` on each.",
        ),
        "nccl-env-misconfig": (
            "A setting of NCCL is wrong for this cluster, left over from another one, or differs between ranks. Each NCCL_* variable switches "
            "off a decision that NCCL would make by itself.",
            "Lines such as `NCCL_IB_DISABLE set by environment to 1` with `NCCL_DEBUG=INFO`.",
            "`env | grep ^NCCL_; cat /etc/nccl.conf ~/.nccl.conf` on every node. Unset all but what you can give a reason for (`unset "
            "NCCL_IB_DISABLE`), and keep the rest equal.",
        ),
        "library-missing": (
            "A package or shared library that is needed is not installed, cannot be found, or another copy of it is loaded first.",
            "`No module named 'vllm'`, `libnccl.so.2: cannot open shared object file`, `undefined symbol: nccl...`.",
            "`pip install` it into the environment that the job runs from (`which python`). For a shared library, `ldd FILE | grep -E "
            "'nccl|not found'` and `echo $LD_LIBRARY_PATH`. For NCCL: reinstall nvidia-nccl-cu12, or point VLLM_NCCL_SO_PATH at its "
            "libnccl.so.2.",
        ),
        "gpu-interposer-library": (
            "A library that shares one GPU among containers (a vGPU layer such as HAMi) is loaded into every process and interferes with CUDA "
            "calls that NCCL needs.",
            "`libvgpu.so` in /proc/PID/maps; the job stops right after the line with the NCCL version.",
            "`cat /etc/ld.so.preload; echo $LD_PRELOAD; grep -l vgpu /proc/*/maps`. Run the job with whole GPUs, without that library.",
        ),
    },
    "Limits of the host": {
        "shm-too-small": (
            "/dev/shm, memory that the processes of a host share, is full or too small. A container gets 64 MiB by default, while NCCL, torch "
            "and vLLM need gigabytes.",
            "`Error while creating shared memory segment /dev/shm/nccl-...`, `No space left on device`, or a rank killed by signal 7 (SIGBUS).",
            "`df -h /dev/shm`; `docker run --shm-size=16g` or `--ipc=host`; in Kubernetes an emptyDir with `medium: Memory` mounted at "
            "/dev/shm. Files left by killed jobs may be removed: `ls -l /dev/shm`. `NCCL_SHM_DISABLE=1` works around it.",
        ),
        "fd-limit": (
            "A process may not open more files. Every connection counts as one, and large jobs have thousands.",
            "`Too many open files` (errno 24).",
            "`ulimit -n 65536` before the launch, `docker run --ulimit nofile=65536`, or LimitNOFILE in the service's unit. Fewer sockets "
            "help too: NCCL_SOCKET_NTHREADS, NCCL_NSOCKS_PERTHREAD.",
        ),
        "process-limit": (
            "A user or a container may not start more processes and threads. A rank has a hundred threads or more, and all of a user's count.",
            "`can't start new thread`, `pthread_create failed`, or `fork: Resource temporarily unavailable` (errno 11).",
            "`ulimit -u` and `cat /sys/fs/cgroup/pids.max` say the limits. `ulimit -u unlimited` before the launch, `docker run --pids-limit -1`, "
            "or TasksMax in the service's unit. Fewer threads help too: OMP_NUM_THREADS.",
        ),
        "disk-full": (
            "A file system that the job needs is full, or a network file system does not answer.",
            "`No space left on device`; a rank that hangs in a read or write, in state D.",
            "`df -h; df -i` for TMPDIR, the cache (HF_HOME) and the checkpoints. Free some space, or set them to another file system; "
            "`timeout 5 stat FOLDER` finds one that hangs.",
        ),
        "permission-denied": (
            "The kernel refuses something that is needed: to make a network namespace, to read another process's stack (ptrace), or to open a "
            "GPU or network device.",
            "`Operation not permitted` (EPERM) or `Permission denied` (EACCES).",
            "The message says what was refused. In a container add the right: `--cap-add SYS_PTRACE` for stacks, `--privileged` for emulated "
            "nodes, `--device=/dev/infiniband` for RDMA. On a host run it with `sudo`.",
        ),
        "host-oom-killed": (
            "The kernel, or the container's limit, ended a process because the host's memory (not the GPU's) ran out.",
            "Exit code -9 or 137, with `Out of memory: Killed process` or `oom-kill` in the kernel log, or Ray's `memory pressure`.",
            "`dmesg -T | grep -iE 'killed process|oom'`; `free -h`. Raise the job's memory limit (`--mem`, `resources.limits.memory`), or "
            "use fewer data loader workers and less pinned memory. Ray kills by its own threshold: RAY_memory_usage_threshold.",
        ),
    },
    "Progress": {
        "rank-died-exception": (
            "One rank raised an error of its own, and the others wait for it or fail after it. Their messages about lost connections or "
            "time-outs are consequences.",
            "The earliest traceback that is not about communication is on one rank only.",
            "Read that rank's traceback and mend what it names. With torchrun, `--redirects 3 --log-dir logs` keeps a log per rank, and "
            "`@record` on main() names the first one to fail.",
        ),
        "rank-died-oom": (
            "One rank ran out of GPU memory, and the others wait for it.",
            "`torch.OutOfMemoryError: CUDA out of memory. Tried to allocate ...` on that rank.",
            "`nvidia-smi` shows who holds the memory. Smaller batches or more GPUs; for vLLM a lower `--gpu-memory-utilization` or "
            "`--max-model-len`; `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True` against fragmentation.",
        ),
        "rank-killed": (
            "A rank was ended by a signal, without a word of its own. Signal 9 comes from the kernel when memory ran out, from the scheduler "
            "or from a person; 11 and 7 are crashes of native code or of its memory.",
            "Exit code -9 (or 137), -11, -7; its log ends in the middle, and the others report lost connections.",
            "On its host: `dmesg -T | grep -iE 'killed process|oom|segfault|Xid'` says who sent it. Then `free -h`, the limits of the job, "
            "and `df -h /dev/shm` after signal 7.",
        ),
        "rank-exited-early": (
            "One rank finished normally while others still want to communicate with it. It had less data, met a condition that the others did "
            "not, or left its loop early.",
            "Exit code 0 on that rank, and a collective on the others that never ends.",
            "Give every rank the same number of steps: `drop_last=True`, DistributedSampler, `torch.distributed.algorithms.join.Join`. Let "
            "all leave through `destroy_process_group()`. A rank that calls exit() or returns early must not leave the others in a "
            "collective.",
        ),
        "process-stopped": (
            "A rank's process is stopped: it exists, and does nothing until it is told to go on. A debugger, Ctrl-Z, SIGSTOP or a frozen "
            "container does that, and its peers see no error until their time-outs.",
            "State T (or t under a debugger) in `ps -o pid,stat,cmd`.",
            "`kill -CONT PID` lets it go on. But first find who stopped it: TracerPid in /proc/PID/status, the shell's `jobs`, `docker "
            "unpause`, or cgroup.freeze.",
        ),
        "rank-stuck-in-python": (
            "One rank is busy or waits in its own code and never enters the collective in which its peers wait. The peers report the "
            "time-out, but this rank is the cause.",
            "Its stack is elsewhere (a data loader, a lock, a checkpoint, an `input()`), and its sequence number is behind the others'.",
            "`py-spy dump --pid PID` on its host; mend what is on top of that stack. Often it is a branch that only rank 0 takes, or a file"
            " system that does not answer. If it only takes long (a checkpoint, preprocessing), raise the timeout.",
        ),
        "gpu-kernel-stuck": (
            "A rank issued its operation and the GPU never finishes it, though all ranks agree on what to do.",
            "The flight recorder shows the operation as scheduled or started, and not completed, on one rank only; its stack waits in a CUDA "
            "synchronise.",
            "`nvidia-smi` (100 % busy with little power drawn is a kernel that waits), `dmesg -T | grep -i xid`, and `cuda-gdb -p PID`, then "
            "`info cuda kernels`. Collectives of several groups that overlap on one GPU can block each other: issue them in the same order on "
            "every rank.",
        ),
        "collective-mismatch": (
            "The ranks called different collectives at the same place: in another order, with another size or type, in another group, or one "
            "rank left one out. NCCL does not check that; the job hangs, crashes or computes wrongly.",
            "At one sequence number the operation, the sizes or the types differ between ranks.",
            "Run it with `TORCH_DISTRIBUTED_DEBUG=DETAIL`: torch then compares every call and names the difference. Look for collectives "
            "inside an `if rank == 0` and for tensors whose shape depends on the data. All ranks must issue the same collectives in the "
            "same order: no branch or skip on one rank only, equal numbers of batches (`drop_last`, join), padded shapes.",
        ),
        "p2p-mismatch": (
            "A send has no matching receive, or the other way round. The pair differs in peer, order, size or group.",
            "One rank waits in send or recv, and its peer is in another operation; typical for pipeline parallelism.",
            "Compare the two ranks' stacks with `py-spy dump --pid PID`. Post both directions at once with "
            "`torch.distributed.batch_isend_irecv`, and check the shapes on both sides.",
        ),
        "slow-rank": (
            "One rank takes part in everything and is merely late. All others wait for it in each step, so the whole job is as slow as it is.",
            "Progress goes on, and the same rank is the last to arrive each time.",
            "`py-spy top --pid PID` there and on another rank. Look for unequal data, a slow data loader, other programs (`top`), and for "
            "the GPU's clocks: `nvidia-smi -q -d CLOCK,PERFORMANCE`. If the work is simply long, raise the timeout: "
            "`init_process_group(timeout=...)`, `ddp_timeout`.",
        ),
        "watchdog-stuck-cuda": (
            "The thread that is to end hanging jobs (PyTorch's watchdog) hangs itself, in a CUDA or NCCL call or because it cannot get "
            "Python's lock (the GIL).",
            "`ProcessGroupNCCL's watchdog got stuck for 480 seconds`, `TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC`, and a rank ended by its heartbeat monitor.",
            "It is rarely the first cause: look for an earlier one. Otherwise `py-spy dump --native --pid PID` before it is ended, `dmesg "
            "-T | grep -i xid`, and a larger `TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC`. The flight recorder (TORCH_FR_BUFFER_SIZE=2000) shows what"
            " was issued last.",
        ),
        "rpc-timeout": (
            "A call from an engine's main process to its workers took too long. This is a symptom, and nothing that was found says what the "
            "workers were doing.",
            "`RPC call to execute_model timed out`, `No available shared memory broadcast block found in 60 seconds`.",
            "`py-spy dump --pid PID` for every worker while it hangs shows which one is elsewhere. A long compilation or loading is no error: "
            "raise `VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS`.",
        ),
    },
    "Engines": {
        "ray-cluster-mismatch": (
            "vLLM asks Ray for GPUs that Ray does not have: a node did not join, its versions differ, or vLLM started a second, local Ray.",
            "A placement group that stays pending, `Started a local Ray instance`, `Version mismatch` between Ray or Python.",
            "`ray status` must list all nodes and GPUs. Otherwise `ray stop` everywhere, `ray start --head` on node 0 and `ray start "
            "--address HEAD:6379` on the others, with the same Ray and Python; `export RAY_ADDRESS=HEAD:6379` before vLLM starts. `ray "
            "start --num-gpus` says what a node offers.",
        ),
        "vllm-host-ip": (
            "vLLM takes another address for this node than Ray or its peers do, or finds none, so they wait for a node that does not exist.",
            "`Failed to get the IP address, using 0.0.0.0 by default`, or a request for `node:10.0.0.2: 0.001` that is never met.",
            "`export VLLM_HOST_IP=10.0.0.2` with each node's own address in the shared network, before `ray start` and before vLLM. It must"
            " not be the same on two nodes. Ray takes `--node-ip-address`, SGLang SGLANG_HOST_IP.",
        ),
        "tp-not-divisible": (
            "Tensor parallelism gives each GPU an equal share of the attention heads (and of other dimensions), and the number does not "
            "divide evenly.",
            "`Total number of attention heads (28) must be divisible by tensor parallel size (8)`.",
            "`--tensor-parallel-size` with a divisor of num_attention_heads (in the model's config.json); use the other GPUs with "
            "`--pipeline-parallel-size` or `--data-parallel-size`.",
        ),
        "kv-cache-or-memory-too-small": (
            "The weights, the context length and the KV cache (what the model remembers of each request) do not fit into the memory that vLLM "
            "may use, or something else occupies it.",
            "`No available memory for the cache blocks`, `Free memory on device ... is less than desired GPU memory utilization`, or a max "
            "seq len larger than the cache holds.",
            "`nvidia-smi` first: is the GPU empty? Then a smaller `--max-model-len`, more `--gpu-memory-utilization`, more "
            "`--tensor-parallel-size`, or a quantised model. End what else holds the GPU.",
        ),
        "dtype-not-supported": (
            "The GPU cannot compute in the number format in which the model is stored or served, so the engine refuses it or takes a detour.",
            "`Bfloat16 is only supported on GPUs with compute capability of at least 8.0`, `The quantization method ... is not supported for the "
            "current GPU`.",
            "`nvidia-smi --query-gpu=name,compute_cap --format=csv`: bfloat16 needs 8.0, FP8 tensor cores 8.9. `--dtype float16` (vLLM), or "
            "weights in a format that this GPU has.",
        ),
        "model-load-slow": (
            "Loading the weights takes long, and this is mistaken for a hang. One node often reads from a slow or shared disk.",
            "`Loading weights took 900 seconds` on one rank only; a stack in a file read; the disk is busy.",
            "`iostat -x 5` or `nfsiostat 5` while it loads. Copy the model to a local disk on every node, and raise the time-out of whoever"
            " starts it. Slow storage or all ranks reading the same files: a local NVMe disk, fewer readers, patience before it is called a"
            " hang.",
        ),
        "model-not-on-node": (
            "A node does not have the model, or has only part of it. Every node reads its own copy unless the folder is shared.",
            "`Invalid repository ID or local directory specified`, `Cannot find any model weights`, `LocalEntryNotFoundError`, on that host only.",
            "`ls -L MODEL/*.safetensors` on every node. Copy what is missing, use a path on a shared file system, or `hf download MODEL` "
            "with the same HF_HOME on each. The same path must hold it on every node.",
        ),
        "weights-differ": (
            "The nodes loaded different weights under the same name. Nothing reports it, and the answers are wrong.",
            "The digests of the weights differ between ranks, or the answers do, without any error.",
            "`sha256sum MODEL/*.safetensors` on every node, and copy them anew where they differ. Pin the release with `--revision`.",
        ),
        "network-bypassed": (
            "Ranks on different nodes exchanged data without the network between them, for example through shared memory when the nodes are "
            "emulated on one machine. The answers may be right, but nothing is proved about the network.",
            "The nodes' interfaces sent fewer bytes than the engine must exchange.",
            "For nodes on one machine give each its own /dev/shm (`docker run --ipc=private`) and its own NCCL_HOSTID, or set "
            "`NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1`. On real nodes find what carries the data: `NCCL_DEBUG=INFO` prints `via ...` for each "
            "connection.",
        ),
        "software-bug-version": (
            "This release of the software cannot do what is asked, or has an error; another release can.",
            "The message names a missing kernel, backend or feature, or the same job works with another version.",
            "Search the project's issues for the message, then change one version at a time (`pip install vllm==X.Y.Z`), or choose another "
            "setting where the message names one. Upgrade to the release that mends it, or downgrade to the last that worked.",
        ),
    },
    "The tool itself": {
        "probe-crashed": (
            "A check of ncclcheck's failed by itself, or failed alike on every rank. That says nothing about what it was to check.",
            "Its traceback, in the run directory.",
            "Read the traceback and mend what it names; alike on every rank it points at the installation (`pip check`). Otherwise leave the "
            "check out with `--skip PROBE`, and report it with the run directory.",
        ),
        "left-over": (
            "Something that the run started could not be ended, or was left behind: a process, a file in /dev/shm, memory of a GPU.",
            "A process in state D, which waits for a driver or a disk and cannot be ended, even by signal 9.",
            "On that host: `ps -o pid,stat,wchan:30,cmd -p PID; dmesg -T | tail -50`. State D ends with what it waits for, or with a reboot; "
            "files in /dev/shm are removed with `rm`.",
        ),
        "evidence-unread": (
            "Not all of the evidence was read: the time was up, or a reader gave up. Its cause may stand in the rest.",
            "Files of gigabytes, very many files, or text made to take long; the line says which were not read, why, and how much of them was.",
            "Give what matters alone, or more time: `ncclcheck triage --deadline 1h PATH`.",
        ),
        "unsafe-input": (
            "A file was not read because reading it could do harm: it would run code, write outside its folder, or fill the memory.",
            "A pickle that would call functions, an archive with absolute paths or `..`, or a size beyond the limits.",
            "Get the file anew from the machine that wrote it, and look inside without running it: `python -m pickletools FILE`, `tar -tvf FILE`.",
        ),
    },
    "Verdicts without a cause": {
        "no-problem-found": (
            "What was read shows a job that ran to its end. Nothing in it calls for an explanation.",
            "Every rank left its last operation, and exited with 0.",
            "Nothing needs to be done. If the job did fail, this is not its whole record: add the logs of every node, and `dmesg -T`.",
        ),
        "insufficient-evidence": (
            "Only consequences were seen, such as time-outs and lost connections, and nothing says what came first. No rank is blamed rather "
            "than the wrong one.",
            "Every rank waits, or reports that another one is gone; the log of the one that went first is missing.",
            "Collect more, from every rank and node: run again with `NCCL_DEBUG=INFO TORCH_DISTRIBUTED_DEBUG=DETAIL "
            "TORCH_FR_BUFFER_SIZE=2000` exported, and while it hangs `py-spy dump --pid PID` for each rank and `dmesg -T | tail -50` on each "
            "node.",
        ),
    },
}

CAUSES: Mapping[str, Cause] = {slug: Cause(group, *texts) for group, causes in _TEXTS.items() for slug, texts in causes.items()}
