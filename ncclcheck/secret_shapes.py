"""Says which values show what they are: those that services make, and those that stand in a place known for them."""

from __future__ import annotations

import re

# Values that show what they are, whatever their name: how they begin, and what follows.
SHAPES = {
    **dict.fromkeys(("hf_", "api_org_", "gsk_", "xai-", "r8_"), r"[A-Za-z0-9]{20,}"),  # Hugging Face, Groq, xAI, Replicate
    **dict.fromkeys(
        ("sk-", "nvapi-", "pypi-", "dckr_pat_", "GOCSPX-", "ya29.", "hvs.", "hvb.", "hvr."), r"[\w-]{16,}"
    ),  # OpenAI, Anthropic, NGC, ...
    **dict.fromkeys(("sk_live_", "sk_test_", "rk_live_", "rk_test_", "dop_v1_", "wandb_v1_"), r"\w{16,}"),
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "npm_"), r"\w{16,}"),  # GitHub, npm
    **dict.fromkeys(
        ("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glsoat-", "glagent-", "gloas-", "ATATT"), r"[\w.=-]{16,}"
    ),  # GitLab, Atlassian
    **dict.fromkeys(("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"), r"[\w-]{10,}"),  # Slack
    **dict.fromkeys(("AKIA", "ASIA", "AROA", "AIDA", "AGPA", "ANPA"), r"[A-Z0-9]{12,}"),  # AWS
    **dict.fromkeys(("AGE-SECRET-KEY-1", "tskey-", "whsec_", "lin_api_", "glsa_", "shpat_", "PMAK-"), r"[\w-]{16,}"),  # age, ...
    "AIza": r"[\w-]{30,}",  # Google
    "dapi": r"[0-9a-f]{32}",  # Databricks
    "ncct_": r"[0-9a-f]{32}",  # ours (see run_token)
    "SG.": r"[\w-]{16,}\.[\w-]{16,}",  # SendGrid
    "eyJ": r"(?:[\w-]{8,}\.[\w-]{8,}[\w.-]*|[\w+/-]{40,}=*)",  # a JSON web token; bare base64 of JSON, as Neptune's
}
SHAPE = re.compile(rf"\b(?:{'|'.join(re.escape(start) + rest for start, rest in SHAPES.items())})")

_BETWEEN = r"(?:[\\\"'\s(]|\[(?!masked\])|b(?=[\"'])|\x1b\[[\d;]*m|%2[27]|%20){0,16}"  # a name, its sign and its value
# Values in a known place: a word that every match contains, in lower case, and the place (`head`) with its value.
PLACES = {
    "authorization": rf"(?i)(?P<head>\bauthorization{_BETWEEN}(?:[\"'],\s*|=>|[:=]|%3A){_BETWEEN}"
    r"""(?:(?:bearer|basic|token|digest|aws4-\S+)(?:\s|%20)+)?)[^"'\\\n]{4,}""",
    "cookie": rf"(?i)(?P<head>\b(?:set-)?cookie{_BETWEEN}(?:[\"'],\s*|=>|[:=]){_BETWEEN})[^\"'\\\n]{{8,}}",
    "bearer": r"(?P<head>\b(?i:bearer)\s+)(?=[A-Za-z0-9+/._~-]*[\d=])[A-Za-z0-9+/=._~-]{12,}",
    "basic": r"(?P<head>\b(?i:basic)\s+)(?=[A-Za-z0-9+/]*[\d=])[A-Za-z0-9+/=]{12,}",
    "sig": r"(?i)(?P<head>(?:[?&]|&amp;|\\u0026)(?:sig|(?:x-(?:amz|goog)-)?signature)=)[\w%+/=.~-]{8,}",  # Azure, AWS, Google: signed addresses
    "credential": r"(?i)(?P<head>(?:[?&]|&amp;|\\u0026)x-(?:amz|goog)-credential=)[\w%+/=.@~-]{8,}",
    "security-token": r"(?i)(?P<head>(?:[?&]|&amp;|\\u0026)x-(?:amz|goog)-security-token=)[\w%+/=.~-]{8,}",
    "accesskeyid=": r"(?i)(?P<head>accesskeyid=)[\w%]{8,}",
    "key=": r"(?i)(?P<head>[?&]key=)[\w-]{20,}",
    # a password may hold an @, the last one ends it; or a slash, where it does not begin as a port does
    "://": r"""(?P<head>://[^\s/:@"']{0,256}:)(?:[^\s/"']{1,512}|(?!\d{1,5}/)[^\s"'@,<>]{1,512})(?=@)""",
    "@": r"(?P<head>://)(?=[A-Za-z_-]*\d)[\w-]{20,512}(?=@)",
    "login": r"(?P<head>\blogin\s+\S+\s+password\s+)\S+",  # .netrc
    "login ": r"(?P<head>\b(?:docker|podman|nerdctl|skopeo|buildah|oc|az)\s+login\b[^\n|;]{0,256}?\s-p[\s=]+)\S+",
    "wandb": r"(?P<head>\bwandb\s+login\s+(?:--\S+\s+){0,4})[0-9a-f]{32,64}\b",
    "sshpass": r"""(?P<head>\bsshpass\s+-p\s*["']?)[^\s"']+""",
    "mysql": r"""(?P<head>\bmysql(?:dump|admin)?\s(?:[^\n|;]{0,256}?\s)?-p\s*["']?)(?!-)[^\s"']+""",
    "curl": r"""(?P<head>\bcurl\s(?:[^\n|;]{0,256}?\s)?(?:-[uU]|--(?:proxy-)?user)[\s=]*["']?[^\s:"']{1,128}:)[^\s"']{1,512}""",
    "hooks.slack.com": r"(?P<head>hooks\.slack\.com/services/)[\w/]{16,}",
    "bot": r"(?P<head>\bbot)\d{8,10}:[\w-]{30,}",  # Telegram
}
