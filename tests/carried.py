"""Ways in which texts carry a secret (`{0}`), and lines of engines, NCCL, torch and schedulers that carry none."""

from __future__ import annotations

CARRIERS = [
    "password={0}",
    "password => {0}",
    "token -> {0}",
    "api_key := {0}",
    "pwd={0}",
    "REGISTRY_AUTH={0}",
    "_auth={0}",
    "DB_PW={0}",
    "db_pw: {0}",
    "dbPassword: {0}",
    "clientSecret={0}",
    '{{"credentials": {{"secret": "{0}"}}}}',
    '{{"secrets": ["{0}", "{0}"]}}',
    '{{"auth_token": {{"a": {{"b": [1, "{0}"]}}}}}}',
    '"password":\n  "{0}"',
    "password:\n  {0}",
    "password: |\n  {0}",
    "Password:\n{0}",
    "Enter password: {0}",
    '[rank0]: "password":\n[rank0]:   "{0}"',
    "2026-02-03 12:00:01,101 INFO password:\n2026-02-03 12:00:01,205 INFO   {0}",
    "password:\r\n  {0}\r\nuser: x\r\n",
    "HF_TOKEN={0}\r\nX=1\r\n",
    "credentials:\n  login: me\n  phrase: {0}\nother: 1",
    "secrets:\n  - {0}",
    '["vllm", "--api-key", "{0}", "--port"]',
    "['vllm', '--api-key', '{0}']",
    "('--api-key', '{0}')",
    "vllm\x00--api-key\x00{0}\x00--port\x00",
    "vllm\n--api-key\n{0}\n--port\n8000",
    "vllm serve m --api-key {0} --port 8000",
    "--api-key={0}",
    '--api-key "{0}"',
    '[\n  "--api-key",\n  "{0}",\n  "x"\n]',
    "args:\n- --api-key\n- {0}\n- --port",
    "--api-key\\x00{0}\\x00--port",
    "--api-key AAbbCC112233445566xx {0} --port 8",
    '{{"name": "HF_TOKEN", "value": "{0}"}}',
    "- name: HF_TOKEN\n  value: {0}",
    '- name: HF_TOKEN\n  value: "{0}"',
    '{{"auths": {{"nvcr.io": {{"auth": "{0}"}}}}}}',
    "machine h\nlogin u\npassword {0}\n",
    "machine h login u password {0}",
    "https://me:{0}@host/x",
    "postgresql://u:{0}@db:5432/x",
    "Server=db;Database=x;Uid=u;Pwd={0};Encrypt=yes",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={0};EndpointSuffix=x",
    "Cookie: session={0}",
    "Set-Cookie: sid={0}; Path=/",
    "Authorization: Bearer {0}",
    "curl -H 'Authorization: Bearer {0}' http://x",
    "(b'Authorization', b'Bearer {0}')",
    "{{'Authorization': 'Bearer {0}', 'Accept': '*/*'}}",
    "X-Api-Key: {0}",
    "aws_secret_access_key = {0}",
    'HF_TOKEN="{0}"',
    "export HF_TOKEN={0}",
    "+ export HF_TOKEN={0}",
    "setenv HF_TOKEN {0}",
    "ENV HF_TOKEN {0}",
    "$env:HF_TOKEN = '{0}'",
    "SET HF_TOKEN={0}",
    "\x1b[36mpassword\x1b[0m=\x1b[35m{0}\x1b[0m",
    "\\u001b[36mpassword\\u001b[0m=\\u001b[35m{0}\\u001b[0m",
    "\x1b[1mtoken\x1b[0m: \x1b[32m{0}\x1b[0m",
    "password%3D{0}%26user%3Dx",
    "%22password%22%3A%22{0}%22",
    '{{"x": "{{\\"password\\": \\"{0}\\"}}"}}',
    '"{{\\\\\\"password\\\\\\": \\\\\\"{0}\\\\\\"}}"',
    "{{'password': '{0}', 'n': 1}}",
    "{{b'password': b'{0}'}}",
    "environ({{'HF_TOKEN': '{0}', 'RANK': '0'}})",
    "[('HF_TOKEN', '{0}'), ('RANK', '0')]",
    "    api_key = '{0}'",
    '        password: "{0}"',
    "Namespace(port=8000, api_key=['{0}'], x=None)",
    "Namespace(api_key='{0}')",
    "Config(api_key='{0}', port=1)",
    "Config(api_key={0}, port=1)",
    "api_key=SecretStr('{0}')",
    "    password: str = '{0}'",
    "<password>{0}</password>",
    '<add name="password" value="{0}"/>',
    "&quot;password&quot;: &quot;{0}&quot;",
    "the token {0} was refused",
    "using api key {0} for the hub",
    "GET /v1?access_token={0}&x=1",
    "http://h/x?api_key={0}",
    "[db]\npassword = '''{0}'''",
    "password = {0}",
    "HF_TOKEN\t{0}",
    "HF_TOKEN_FOR_CI={0}",
    "sshpass -p {0} ssh x",
    "SLURM_JWT={0}",
    "password -> {0}",
    '[["HF_TOKEN", "{0}"]]',
    "api_key          : {0}",
    "HF_TOKEN_2={0}",
    'level=info msg="x" token={0} rank=3',
    "user=x;password={0};rank=3",
    "self.token='{0}'",
    "docker run -e HF_TOKEN={0} img",
    "HF_TOKEN ?= {0}",
    ":password => '{0}'",
    "password: {0}",
    "wandb: API key: {0}",
    "aws configure set aws_secret_access_key {0}",
    "/password:{0}",
    "password: &pw {0}",
    "password: !!str {0}",
    "-o password={0},ro",
    'password="""{0}"""',
    'System.setProperty("db.password", "{0}")',
    'os.environ["HF_TOKEN"] = "{0}"',
    'os.environ.setdefault("HF_TOKEN", "{0}")',
    'putenv("HF_TOKEN={0}")',
    "dict(token='{0}')",
    "login(token='{0}')",
    '"token" :"{0}"',
    "`token`: `{0}`",
    "| HF_TOKEN | {0} |",
    "token=={0}",
    '"password","{0}"',
    "http_proxy=http://u:{0}@proxy:3128",
    "[password={0}]",
    "(token={0})",
    "{{token={0}}}",
    "++ HF_TOKEN={0}",
    'declare -x HF_TOKEN="{0}"',
    "root 1 0 python x.py --hf-token {0}",
    'execve("/x", ["x", "--api-key", "{0}"], ["HF_TOKEN={0}", "A=b"])',
    "kubectl create secret generic x --from-literal=password={0}",
    "ansible_become_pass={0}",
    "RSYNC_PASSWORD={0}",
    "Authorization: Basic {0}",
]

EVIDENCE = r"""
gpu-07:811:902 [3] NCCL INFO comm 0x55d0c0 rank 3 nranks 8 cudaDev 3 nvmlDev 3 busId 1b000 commId 0x9a3b2c1d4e5f6071 - Init START
gpu-07:811:902 [3] NCCL INFO NCCL_SOCKET_IFNAME set by environment to eth0,bond0
gpu-07:811:902 [3] NCCL INFO NCCL_IB_HCA=mlx5_0:1,mlx5_1:1 NCCL_IB_GID_INDEX=3 NCCL_NET_PLUGIN=none
gpu-07:811:902 [3] NCCL INFO Channel 00/0 : 3[3] -> 4[4] [send] via NET/IB/0/GDRDMA
gpu-07:811:902 [3] NCCL WARN NET/IB : Got completion from peer 10.0.0.7<41234> with status=12 opcode=0 len=0 vendor err 129 (Recv)
gpu-07:811:902 [3] NCCL WARN socketPollConnect: connect to 10.0.0.1<43567> returned Connection refused, exceeded error retry count
gpu-07:811:902 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.7<0>
gpu-07:811:902 [0] NCCL INFO Setting affinity for GPU 0 to ffff,00000000,ffff0000
gpu-07:811:902 [0] NCCL INFO Trees [0] 1/-1/-1->0->-1 [1] 1/-1/-1->0->-1
gpu-07:811:902 [0] NCCL INFO PAT algorithm is enabled, NCCL_PAT_ENABLE=1
[rank3]:[E1203 12:00:01.123456789 ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=42,
[rank3]: torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:2251, unhandled system error,
[rank0]: ValueError: Error initializing torch.distributed using env:// rendezvous: environment variable MASTER_ADDR expected, but not set
torch.distributed.elastic.multiprocessing.errors.ChildFailedError: train.py FAILED failed (exitcode: -9) local_rank: 1 (pid: 4711)
  File "/usr/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 1710, in init_process_group
store key: default_pg/0//cuda//0, waiting for key default_pg/0//worker_ready; timeout=600s
[c10d] The client socket has failed to connect to [gpu-00.cluster]:29500 (errno: 111 - Connection refused).
{"rank": 3, "seq": 42, "op": "all_reduce", "nbytes": 4194304, "dtype": "bfloat16", "group": "world", "entered": 12.5}
INFO 02-03 12:00:01 [loggers.py:248] Engine 000: Avg prompt throughput: 4000.1 tokens/s, Avg generation throughput: 900.5 tokens/s, Running: 64 reqs
INFO 02-03 12:00:01 [utils.py:233] non-default args: {'model': 'Qwen/Qwen2.5-7B-Instruct', 'max_model_len': 4096, 'tensor_parallel_size': 2,
INFO 02-03 12:00:01 [core.py:77] Initializing a V1 LLM engine with config: model='Qwen/Qwen2.5-7B', tokenizer='Qwen/Qwen2.5-7B',
INFO 02-03 12:00:01 [gpu_worker.py:298] Available KV cache memory: 12.34 GiB, num_gpu_blocks=4096, GPU KV cache size: 65,536 tokens
(EngineCore_DP0 pid=812) ERROR 02-03 12:00:01 [core.py:718] EngineCore failed to start.
(APIServer pid=811) INFO:     10.1.0.9:40000 - "POST /v1/chat/completions HTTP/1.1" 200 OK
INFO:     Route: /tokenize, Methods: POST; Route: /detokenize, Methods: POST; Route: /v1/embeddings
SamplingParams(n=1, temperature=0.7, max_tokens=4096, min_tokens=0, logprobs=None, stop_token_ids=[151643], include_stop_str_in_output=False)
eos_token_id=151645 pad_token='<|endoftext|>' bos_token: <s> unk_token="<unk>" image_token_id=151655
special_tokens_map={'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'} num_speculative_tokens=5 token_seconds: 0.0123
max_num_batched_tokens=8192, num_scheduled_tokens={cmpl-12ab-0-34cd: 1}, prompt_token_ids: [15496, 11, 995]
vllm serve /models/llama --tokenizer /models/llama --max-num-seqs 256 --port 8000 --master-port 29501 --max-num-batched-tokens 8192
torchrun --nnodes 2 --node-rank 1 --master-addr gpu-00 --master-port 29500 --rdzv-id job-42 --rdzv-backend c10d train.py --lr 3e-4
MASTER_ADDR=gpu-00.cluster.example MASTER_PORT=29500 RANK=3 LOCAL_RANK=3 WORLD_SIZE=8 CUDA_VISIBLE_DEVICES=0,1,2,3
TOKENIZERS_PARALLELISM=false HF_HOME=/data/hf TORCH_NCCL_ASYNC_ERROR_HANDLING=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
GPU 0: NVIDIA H200 (UUID: GPU-5f2c8b1e-0d3a-4c7b-9e6f-1a2b3c4d5e6f), driver 570.86.15, key=value, index=3
vLLM version 0.11.1rc2.dev15+g9fb52e523, commit 0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c,
slurmstepd: error: *** STEP 4711.0 ON gpu-0001 CANCELLED AT 2026-02-03T12:00:01 DUE TO TIME LIMIT ***
srun: error: gpu-07: task 3: Out Of Memory; SLURM_JOB_ID=4711 SLURM_PROCID=3 SLURM_JOB_NODELIST=gpu-[00-07]
[ 812.512345] NVRM: Xid (PCI:0000:1b:00): 79, pid=4711, name=python3, GPU has fallen off the bus.
[ 812.5] Out of memory: Killed process 4711 (python3) total-vm:98304kB, anon-rss:4096kB, UID:1000 oom_score_adj:0
ESTAB 0 0 10.0.0.7:41234 10.0.0.1:29500 users:(("python",pid=4711,fd=12))
Thread 4711 (idle): "MainThread"\n    all_reduce (torch/distributed/distributed_c10d.py:2810)
OLDPWD=/root PWD=/workspace/run SSH_AUTH_SOCK=/tmp/ssh-XX/agent.1 GOOGLE_APPLICATION_CREDENTIALS=/etc/gcp/account.json
forward_pass: eager, backward_pass=compiled, single-pass mode, first pass: done, bypass=1, --num-pass 3
hf_token=None api_key=None, password: null, --enable-auth=true, auth: none, use_auth=False
ray.exceptions.RaySystemError: System error: Failed to authenticate, auth mode: token
Author: me, authority=10.0.0.1:8000, keys: ['step', 'loss'], cookies: {}, secrets: []
http://10.0.0.1:8000/v1/models?limit=10&key=a tcp://10.0.0.1:29500 rank0@gpu-1 nccl://gpu-07:4000/x@1
token = self.tokenizer.eos_token; token_ids = request.prompt_token_ids
key default_pg/0 -> 3 ranks; token mismatch between node 0 and node 1; tokens_equal: True
""".strip().split("\n")
