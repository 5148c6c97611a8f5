"""Secrets in the forms in which they really appear are masked; ordinary text is not."""

from __future__ import annotations

import base64
import json
import string
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from carried import CARRIERS, EVIDENCE
from hypothesis import given
from hypothesis import strategies as st

from ncclcheck import secrets
from ncclcheck.masked_files import mask_files

SECRET = "Zq7Xw9Lk3Pm5Rt8Vb2Nc4"
HEX = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"
LONG = f"{SECRET}{SECRET}"
JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b'{"alg":"RS256","kid":"k1"}', b'{"iss":"kubernetes/serviceaccount"}', b"0" * 40)
)
KEY_BODY = "\n".join(base64.b64encode(bytes(range(number, number + 48))).decode() for number in range(0, 150, 48)) + "\nq83v\n"
PRIVATE_KEY = f"-----BEGIN PRIVATE KEY-----\n{KEY_BODY}-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        f"HF_TOKEN=hf_{SECRET}",
        f"could not read hf_{SECRET} from the hub",
        f"export HUGGING_FACE_HUB_TOKEN='{SECRET}'",
        f"OPENAI_API_KEY: sk-{SECRET}",
        f"sk-proj-{SECRET}",
        f"ANTHROPIC_API_KEY=sk-ant-api03-{SECRET}",
        f"gsk_{LONG}",
        f'{{"password": "{SECRET}"}}',
        f'{{\\"password\\": \\"{SECRET}\\"}}',
        f"Authorization: Bearer {SECRET}",
        f"curl -H 'Authorization: Basic {SECRET}==' https://host",
        f"'authorization': '{SECRET}'",
        f"sent bearer {SECRET}",
        f"Cookie: session={SECRET}; theme=dark",
        f"https://user:{SECRET}@registry.example/simple",
        f"redis://:{SECRET}@10.0.0.3:6379/0",
        f"postgresql+psycopg2://me:{SECRET}@db/x",
        f"https://{SECRET}@host.example/x.git",
        f"git clone https://ghp_{SECRET}@host/x",
        f"github_pat_{SECRET}_{SECRET}",
        f"GITLAB: glpat-{SECRET}",
        f"CI_JOB_TOKEN={SECRET}",
        f"xoxb-{SECRET}",
        f"xapp-1-{SECRET}",
        f"https://hooks.slack.com/services/T0/B0/{SECRET}",
        f"aws_secret_access_key = {SECRET}",
        f"AWS_SESSION_TOKEN={LONG}//////////",
        f"AKIA{SECRET.upper()}",
        f"ASIA{SECRET.upper()}",
        f"https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Signature={SECRET}&X-Amz-Expires=60",
        f"https://b.s3.amazonaws.com/k?X-Amz-Credential={SECRET}%2F20260101",
        f"https://b.s3.amazonaws.com/k?X-Amz-Security-Token={SECRET}",
        f"https://a.blob.core.windows.net/c/b?sv=2024-01-01&sp=r&sig={SECRET}%3D",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET}==;EndpointSuffix=x",
        f"AIza{LONG}",
        f"ya29.{SECRET}",
        f"WANDB_API_KEY={HEX}",
        f"COMET_API_KEY={SECRET} python train.py",
        f"NEPTUNE_API_TOKEN={base64.b64encode(json.dumps({'api_key': SECRET, 'api_address': 'https://x'}).encode()).decode()}",
        f"nvapi-{SECRET}",
        f"NGC_CLI_API_KEY={SECRET}",
        f"dapi{HEX[:32]}",
        f"dckr_pat_{SECRET}",
        f"npm_{LONG}",
        f"pypi-{SECRET}",
        f"hvs.{SECRET}",
        f"PGPASSWORD={SECRET} psql",
        f"MYSQL_PWD={SECRET}",
        f"machine api.wandb.ai login user password {SECRET}",
        f'{{"auths": {{"nvcr.io": {{"auth": "{SECRET}"}}}}}}',
        f"    client-key-data: {SECRET}",
        f"--token={SECRET}",
        f"--hf-token {SECRET} --port 8000",
        f"vllm serve m --api-key {SECRET}",
        f"vllm serve m --api-key 'two words {SECRET}'",
        f"['vllm', 'serve', '--api-key', '{SECRET}']",
        f'["--wandb_api_key","{SECRET}"]',
        f"non-default args: {{'api_key': ['{SECRET}', '{SECRET}'], 'port': 8000}}",
        f"VLLM_API_KEY={SECRET}",
        f"token: {JWT}",
        f"read {JWT} from /var/run/secrets",
        f"API-KEY={SECRET}",
        f"password={SECRET}&user=x",
        f"./train --db-pass {SECRET} --epochs 3",
        f"['./train', '--db-pass', '{SECRET}']",
        f"./train --pwd={SECRET}",
        f"sshpass -p {SECRET} ssh gpu-2",
        f"sshpass -p'{SECRET}' ssh gpu-2",
        f"mysql -h db -u me -p{SECRET} runs",
        f"mysqldump -p {SECRET} runs",
        f"docker login -u me -p {SECRET} nvcr.io",
        f"DB_PASS={SECRET}",
        f"export SMTP_PASS='{SECRET}'",
        f"smtp_pass: {SECRET}",
        f"REDIS_PWD={SECRET}",
        f"BINDPW {SECRET}",
        f"ldap bindpw={SECRET}",
        f"requirepass {SECRET}",
        f"redis-server --requirepass {SECRET}",
        f"curl -u me:{SECRET} https://host/x",
        f"curl -s --user 'me:{SECRET}' https://host/x",
        f"wandb login {HEX}",
        f"wandb login --relogin {HEX}",
        f"SERVICE_JWT={SECRET}",
        f"postgresql://me:p@{SECRET}@db.example:5432/x",
    ],
)
def test_a_secret_is_masked(text: str) -> None:
    masked = secrets.mask(f"a line before\n{text}\na line after")
    assert not any(secret.lower() in masked.lower() for secret in (SECRET, HEX[:32], JWT[-20:], JWT[:20], "eyJhcGlfa2V5"))
    assert secrets.MASK in masked
    assert masked.startswith("a line before\n") and masked.endswith("\na line after")
    assert secrets.mask(masked) == masked


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_a_private_key_is_masked_whole(kind: str) -> None:
    text = PRIVATE_KEY.replace("PRIVATE", f"{kind}PRIVATE")
    masked = secrets.mask(f"before\n{text}\nafter")
    assert not any(line in masked for line in KEY_BODY.splitlines())
    assert masked.startswith("before\n") and masked.endswith("\nafter")


def test_a_private_key_inside_json_is_masked() -> None:
    text = json.dumps({"type": "service_account", "private_key": PRIVATE_KEY, "project": "p"})
    masked = secrets.mask(text)
    assert not any(line in masked for line in KEY_BODY.splitlines())
    assert masked.endswith('"project": "p"}')


def test_a_private_key_of_which_a_log_holds_only_the_end_or_only_the_beginning_is_masked() -> None:
    lines = PRIVATE_KEY.split("\n")
    end, beginning = secrets.mask("\n".join([*lines[2:], "after"])), secrets.mask("\n".join(["before", *lines[:3]]))
    assert not any(line in end or line in beginning for line in KEY_BODY.splitlines())
    assert end.endswith("\nafter") and beginning.startswith("before\n")


@pytest.mark.parametrize(
    "text",
    [
        "tokens_equal: True",
        "32 tokens in 4 prompts",
        "rank 1 (gpu-02, GPU 3) was killed by SIGKILL in all_reduce 4 MiB (#130)",
        "time per output token 12 ms",
        "ncclcheck explain token-mismatch",
        "connect to tcp://10.0.0.1:29600 refused",
        "token_seconds: 0.0123",
        "MASTER_ADDR=gpu-07.cluster.example",
        "MASTER_PORT=29500",
        "NCCL_SOCKET_IFNAME=eth0,bond0",
        "NCCL_IB_HCA=mlx5_0:1,mlx5_1:1",
        "NCCL_DEBUG_FILE=/scratch/user@site/nccl.%h.%p.log",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING=1",
        "TOKENIZERS_PARALLELISM=false",
        "max_tokens=256",
        "max_num_batched_tokens=8192, num_speculative_tokens=5",
        "num_scheduled_tokens={cmpl-12ab-0-34cd: 1}, total_num_scheduled_tokens=1",
        "eos_token_id=151645 pad_token='<|endoftext|>' bos_token: <s>",
        "prompt_token_ids: [15496, 11, 995]",
        "vllm serve /models/llama --tokenizer /models/llama/tokenizer.json --max-num-seqs 256",
        "hf_overrides={} hf_config_path=None hf_transfer enabled",
        "hf_token=None api_key=None",
        "GOOGLE_APPLICATION_CREDENTIALS=/etc/gcp/account.json",
        "vLLM version 0.11.1rc2.dev15+g9fb52e523, commit 0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c",
        "torch 2.9.0+cu129 git 0fabc3ba44823f257e70ce397d989c8de5e362c1",
        "store key: default_pg/0//cuda//0, waiting for key default_pg/0//worker_ready",
        "[rank3]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=42, OpType=ALLREDUCE, NumelIn=1048576)",
        "basic functionality and a bearer of bad news",
        "http://10.0.0.1:8000/v1/models?limit=10&key=a",
        "gpu-07:811:902 [3] NCCL INFO comm 0x55d0c0 rank 3 nranks 8 commId 0x9a3b2c1d4e5f6071 - Init COMPLETE",
        "risk-assessment-of-a-long-hyphenated-name and task-sk-1",
        "GPU UUID: GPU-5f2c8b1e-0d3a-4c7b-9e6f-1a2b3c4d5e6f",
        "OLDPWD=/root PWD=/workspace/run SUBMIT_PWD=/home/me",
        "forward_pass: compiled, backward_pass=eager, single-pass mode, --num-pass 3",
        "mkdir -p /tmp/x; ssh -p 2222 gpu-2; curl -fsSL http://10.0.0.1:8000/v1/models",
        "wandb: Run `wandb login` to log in; wandb login required",
        "tcp://10.0.0.1:29500 rank0@gpu-1",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert secrets.mask(text) == text


def test_a_mapping_is_masked_by_its_keys_and_its_values() -> None:
    assert secrets.mask_all({"HF_TOKEN": SECRET, "note": [f"hf_{SECRET}"], "token_seconds": 0.5, "n": 3, "TOKENIZERS_PARALLELISM": "false"}) == {
        "HF_TOKEN": secrets.MASK,
        "note": [secrets.MASK],
        "token_seconds": 0.5,
        "n": 3,
        "TOKENIZERS_PARALLELISM": "false",
    }


def test_letters_whose_lower_case_is_longer_hide_nothing() -> None:
    assert SECRET not in secrets.mask(f"İİİİİİ user={'İ' * 40}\nHF_TOKEN=hf_{SECRET}")


def test_what_is_no_text_is_masked_as_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    secrets.learn({"HF_TOKEN": f"\udce9{SECRET}"}, (f"/caf\udce9/{SECRET}",))
    assert secrets.mask(f"caf\udce9 password={SECRET}") == f"caf\udce9 password={secrets.MASK}"
    assert secrets.mask(f"x \udce9{SECRET} x") == f"x {secrets.MASK} x"


@pytest.mark.parametrize(
    "piece",
    [
        "a-",
        "curl ",
        "curl -u a",
        "mysql -",
        "docker login ",
        "--pass-",
        "://a:",
        "eyJ",
        "token=",
        'token="',
        "--token ",
        "://a",
        "-",
        "basic ",
        "login a ",
        "-----BEGIN PRIVATE KEY-----",
        "A\n-----END PRIVATE KEY\n",
    ],
)
def test_no_text_takes_more_than_a_few_seconds_for_a_megabyte(piece: str) -> None:
    text = piece * (500_000 // len(piece))
    began = time.process_time()
    secrets.mask(text)
    assert time.process_time() - began < 5


def mixed(alphabet: str) -> st.SearchStrategy[str]:
    """What programs make of these characters, with a digit and both kinds of letters among the first."""
    rest = st.text(alphabet, min_size=17, max_size=60)
    return st.tuples(*(st.sampled_from(part) for part in (string.ascii_uppercase, string.digits, string.ascii_lowercase)), rest).map("".join)


MADE = st.one_of(
    mixed(string.ascii_letters + string.digits),
    mixed(string.ascii_letters + string.digits + "+/"),
    st.binary(min_size=20, max_size=40).map(bytes.hex),
)
PLACES = st.builds("{}{}".format, st.sampled_from(["", "[rank0]: ", "(EngineCore_0 pid=12) ", "2026-02-03 12:00:01,101 ", "pod-7 | "]), st.just("{}"))


@given(st.sampled_from(CARRIERS), MADE)
def test_a_secret_is_masked_in_whatever_carries_it_and_each_line_stays_in_its_place(carrier: str, secret: str) -> None:
    before, after = "step 3 loss 0.5", "[rank0]: step 4 loss 0.4"
    text = "\n".join([before, carrier.format(secret), after])
    masked = secrets.mask(text)
    assert not [secret[at : at + 8] for at in range(len(secret) - 7) if secret[at : at + 8] in masked]
    assert (masked.split("\n")[0], masked.split("\n")[-1], masked.count("\n")) == (before, after, text.count("\n"))
    assert secrets.mask(masked) == masked


@given(st.lists(st.sampled_from(EVIDENCE), min_size=1, max_size=8), PLACES)
def test_evidence_stays_as_it_is_in_any_order_and_behind_whatever_a_log_puts_before_it(lines: list[str], place: str) -> None:
    text = "\n".join(place.format(line) for line in lines)
    assert secrets.mask(text) == text


WRITTEN: dict[str, Callable[[str], str]] = {
    "behind its rank": lambda key: "\n".join(f"[rank0]: {line}" for line in key.split("\n")),
    "behind times": lambda key: "\n".join(f"2026-02-03T12:00:0{n % 10}.{n:03}Z stdout F {line}" for n, line in enumerate(key.split("\n"))),
    "behind the names of pods": lambda key: "\n".join(f"trainer-{n % 7}-x2 | {line}" for n, line in enumerate(key.split("\n"))),
    "behind colours": lambda key: "\n".join(f"\x1b[36m(Engine pid=3)\x1b[0;0m {line}" for line in key.split("\n")),
    "between the lines of others": lambda key: "\n".join(f"[rank0]: {line}\n[rank1]: step {n} loss 0.5" for n, line in enumerate(key.split("\n"))),
    "twice at once": lambda key: "\n".join(f"[rank0]: {line}\n[rank1]: {line}" for line in key.split("\n")),
    "as docker keeps it": lambda key: "\n".join(json.dumps({"log": line + "\n", "stream": "stderr"}) for line in key.split("\n")),
    "as Python code": lambda key: "\n".join(f"    '{line}\\n'" for line in key.split("\n")),
    "in YAML": lambda key: "key: |\n" + "\n".join(f"  {line}" for line in key.split("\n")),
    "with Windows line ends": lambda key: key.replace("\n", "\r\n"),
    "in one line": lambda key: key.replace("\n", " "),
    "in JSON": json.dumps,
    "in JSON in JSON": lambda key: json.dumps(json.dumps({"key": key})),
    "as repr": repr,
    "as bytes": lambda key: repr(key.encode()),
    "in JSON without its beginning": lambda key: json.dumps(key)[40:],
    "without its end": lambda key: "\n".join(f"[rank0]: {line}" for line in key.split("\n")[:3]),
    "without its beginning": lambda key: "\n".join(f"[rank0]: {line}" for line in key.split("\n")[2:]),
}


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("kind", ["RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
def test_a_private_key_is_masked_however_it_is_written_and_what_stands_between_its_lines_is_not(how: str, kind: str) -> None:
    text = WRITTEN[how](PRIVATE_KEY.replace("PRIVATE KEY", kind))
    masked = secrets.mask(f"before\n{text}\nafter")
    assert not any(line in masked for line in KEY_BODY.splitlines())
    assert masked.startswith("before\n") and masked.endswith("\nafter") and masked.count("\n") == text.count("\n") + 2
    assert masked.count(" loss 0.5") == text.count(" loss 0.5")


def test_all_that_stands_under_a_key_that_names_a_secret_is_masked_and_what_follows_an_option_in_a_list() -> None:
    masked = secrets.mask_all(
        {
            "credentials": {"user": SECRET, "more": [{"phrase": SECRET}, 3]},
            "args": ["serve", "--api-key", SECRET, "--port", "8000"],
            "env": [{"name": "HF_TOKEN", "value": SECRET}, {"name": "RANK", "value": "3"}],
            "pairs": [["HF_TOKEN", SECRET], ["RANK", "3"]],
            f"http://h/?token={SECRET}": 1,
            "max_tokens": [4096],
        }
    )
    assert SECRET not in repr(masked)
    assert masked["args"] == ["serve", "--api-key", secrets.MASK, "--port", "8000"] and masked["max_tokens"] == [4096]
    assert masked["env"][1] == {"name": "RANK", "value": "3"} and masked["pairs"][1] == ["RANK", "3"]


def test_a_value_that_is_known_is_masked_wherever_and_however_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    odd, argument = 'Tr0ub4dor&3 "quoted"/x', "Wq8Zx6Cv4Bn2Mk0L"
    secrets.learn(
        {"My_Odd.passWord": odd, "DB": f"postgres://u:{argument[::-1]}@db/x", "NCCL_SOCKET_IFNAME": "eth0,bond0"}, ("x", "--hf-token", argument)
    )
    forms = [odd, json.dumps(odd), f"-{argument}-", argument[::-1], base64.b64encode(f"me:{argument}".encode()).decode(), f"x{argument.lower()}y"]
    masked = secrets.mask("\n".join(f"INFO said {form} at step 3 on eth0,bond0" for form in forms))
    assert not [
        form
        for form in (odd, argument, argument[::-1], argument.lower(), "quoted", base64.b64encode(argument.encode()).decode()[4:16])
        if form in masked
    ]
    assert masked.count(" at step 3 on eth0,bond0") == len(forms)


def test_an_ordinary_value_of_a_telling_name_is_not_masked_where_it_stands_in_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    secrets.learn(
        {"PASSWORD": "production", "HF_TOKEN": "/run/secrets/hf-token", "API_KEY": "12345678", "DB_PASSWORD": "all_reduce", "X_TOKEN": "none"}
    )
    text = "production 12345678 /run/secrets/hf-token all_reduce none"
    assert secrets.mask(text) == text


def test_files_that_others_wrote_are_masked_in_place_and_each_byte_that_is_no_secret_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    secrets.learn({"HF_TOKEN": SECRET})
    (tmp_path / "deep").mkdir()
    log, dump, outside = tmp_path / "deep/rank0.log", tmp_path / "dump", tmp_path.parent / "outside.log"
    log.write_bytes(f"\xff step 1\npassword={SECRET[::-1]}\n".encode("latin-1") + b"x" * (17 << 20) + f"\nsaid {SECRET}\n".encode())
    dump.write_bytes(b"\x80\x04" + SECRET.encode() + b"\x00password=\x01")
    outside.write_text(f"password={SECRET}\n")
    (tmp_path / "link").symlink_to(outside)
    size = log.stat().st_size
    mask_files(tmp_path)
    assert log.read_bytes().startswith(b"\xff step 1\npassword=" + b"*" * len(SECRET) + b"\nxxx")
    assert log.read_bytes().endswith(b"x\nsaid " + b"*" * len(SECRET) + b"\n") and log.stat().st_size == size
    assert dump.read_bytes() == b"\x80\x04" + b"*" * len(SECRET) + b"\x00password=\x01"
    assert SECRET in outside.read_text()


HOSTILE = [
    *(
        "-----BEGIN ",
        "-----BEGIN RSA PRIVATE KEY-----\nAAAAAAAAAAAAAAAAAAAAAAA\n",
        "\n-----END PRIVATE KEY-----\\",
        '"',
        "\\",
        "--key ",
        "--api-key ",
    ),
    *(
        "--api-key\n",
        "password:\n  ",
        "password: |\n",
        "token={",
        "token=[",
        "token=<",
        "token='",
        '\\"token\\":',
        "[",
        "token_a=",
        "password ",
        "auth=",
    ),
    *("authorization:", "cookie:", "name: token\n", "<password>", "--token\0", "--token Zq7Xw9Lk3Pm5Rt8V ", "token is "),
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_twice_the_text_takes_about_twice_the_time_however_hostile_its_lines_are(piece: str) -> None:
    def seconds(size: int) -> float:
        text, times = piece * (size // len(piece)), []
        for _ in range(2):
            began = time.process_time()
            secrets.mask(text)
            times.append(time.process_time() - began)
        return min(times)

    assert seconds(200_000) < 8 * max(seconds(50_000), 0.01)  # where it were quadratic: 16 times
