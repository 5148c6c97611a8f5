"""Secrets in the forms in which they really appear are masked; ordinary text is not."""

from __future__ import annotations

import pytest

from ncclcheck import secrets

SECRET = "Zq7Xw9Lk3Pm5Rt8Vb2Nc4"


@pytest.mark.parametrize(
    "text",
    [
        f"HF_TOKEN=hf_{SECRET}",
        f"could not read hf_{SECRET} from the hub",
        f"OPENAI_API_KEY: sk-{SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"Authorization: Bearer {SECRET}",
        f"https://user:{SECRET}@registry.example/simple",
        f"aws_secret_access_key = {SECRET}",
        f"AKIA{SECRET.upper()}",
        f"git clone https://ghp_{SECRET}@host/x",
        f"WANDB_API_KEY={SECRET} python train.py",
        f"--token={SECRET}",
        f"nvapi-{SECRET}",
    ],
)
def test_a_secret_is_masked(text: str) -> None:
    assert SECRET not in secrets.mask(text) and SECRET.upper() not in secrets.mask(text)
    assert secrets.MASK in secrets.mask(text)


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
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert secrets.mask(text) == text


def test_a_mapping_is_masked_by_its_keys_and_its_values() -> None:
    assert secrets.mask_all({"HF_TOKEN": SECRET, "note": [f"hf_{SECRET}"], "token_seconds": 0.5, "n": 3}) == {
        "HF_TOKEN": secrets.MASK,
        "note": [secrets.MASK],
        "token_seconds": 0.5,
        "n": 3,
    }
