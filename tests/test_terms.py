"""Every word that the tool uses can be explained, and a mistyped one is not left without help."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ncclcheck import registry, terms
from ncclcheck.causes import CAUSES

WORDS = """
rank, local_rank, node_rank, world_size, node, host, agent, worker, rendezvous, store, process group, collective, step, seq,
journal, run directory, algbw, busbw, wire rate, victim, culprit, bystander, straggler, evidence, fact, finding, cause, symptom,
verdict, remedy, TTFT, TPOT, NCCL, Gloo, NVLink, TP, PP, master, roll call, run token, network namespace
"""


@pytest.mark.parametrize("word", [" ".join(word.split()) for word in WORDS.split(",")])
def test_every_word_of_the_design_is_explained(word):
    assert (terms.explain(word) or "").startswith(f"{word}: ")


@pytest.mark.parametrize("word", list(terms.TERMS))
def test_a_term_takes_one_to_three_sentences(word):
    sentences = terms.TERMS[word].replace("...", "").split(". ")
    assert terms.TERMS[word].endswith(".") and len(sentences) <= 3


def test_busbw_is_explained_with_its_formula_and_its_source():
    text = terms.explain("busbw") or ""
    assert "2(n-1)/n" in text and "nccl-tests" in text


def test_case_blanks_hyphens_and_underscores_do_not_matter():
    assert terms.explain("Wire-Rate") == terms.explain("wire_rate") == terms.explain(" wire rate ") is not None


def test_an_unknown_word_is_none_and_a_mistyped_one_gets_suggestions():
    assert terms.explain("busbwe") is None
    assert terms.suggest("busbwe")[0] == "busbw"
    assert terms.suggest("worldsize")[0] == "world_size"
    assert terms.suggest("data-corupted")[0] == "data-corruption"
    assert terms.suggest("xyzzy-plugh") == []


def test_a_word_that_is_no_name_leads_to_the_names_that_contain_or_mention_it():
    assert set(terms.suggest("oom")) == {"gpu_oom", "host_oom", "host-oom-killed"}
    assert "blocked-port" in terms.suggest("Firewall")


def test_suggestions_can_be_explained():
    for word in ("oom", "firewall", "busbwe", "rank", "wirng", "ECC", "timeout"):
        assert all(terms.explain(name) for name in terms.suggest(word))


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A registry with a probe, a fault and a rule of known content."""
    for kind, name, doc in (
        ("probes", "always", "Does it always run?"),
        ("probes", "hang", "Does a hang get noticed?\n\nWhat it checks: everything."),
        ("faults", "hang", "Sleep for ever."),
        ("rules", "rank_killed", "A rank was killed.\n\nMeaning: SIGKILL."),
    ):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{name}.py").write_text(f'"""{doc}"""\nDEFAULT = {name == "always"}\nraise SystemExit("imported")\n')
    monkeypatch.setattr(registry, "_folder", lambda kind: tmp_path / kind)


@pytest.mark.usefixtures("plugins")
def test_a_name_that_several_things_have_is_explained_for_each():
    text = terms.explain("hang") or ""
    positions = [text.index(part) for part in ("hang: The job makes", "probe hang: Does a hang get noticed?", "fault hang: Sleep for ever.")]
    assert positions == sorted(positions)
    assert "What it checks: everything." in text


@pytest.mark.usefixtures("plugins")
def test_a_cause_is_explained_before_the_rule_that_finds_it_in_either_spelling():
    text = terms.explain("rank-killed") or ""
    assert terms.explain("rank_killed") == text
    positions = [text.index(part) for part in ("cause rank-killed (", "What to do\n", "rule rank-killed: A rank was killed.\n\nMeaning: SIGKILL.")]
    assert positions == sorted(positions)
    assert terms.suggest("rank-kiled")[0] == "rank-killed"


@pytest.mark.parametrize("slug", list(CAUSES))
def test_every_cause_is_explained_in_full_and_its_commands_stay_on_one_line(slug):
    text = terms.explain(slug) or ""
    words = " ".join(text.split())
    cause = CAUSES[slug]
    assert all(" ".join(part.split()) in words for part in (slug, cause.group, cause.meaning, cause.shows_as, cause.remedy))
    assert all(command in text for command in re.findall("`[^`]+`", cause.remedy))


def test_a_drawing_comes_with_the_way_to_read_it():
    text = terms.explain("rank-stuck-in-python") or ""
    assert text.index("\nBlames\n") < text.index("\nSpares\n") < text.index("How to read the drawings")
    assert "How to read" not in (terms.explain("network-bypassed") or "")


@pytest.mark.usefixtures("plugins")
def test_the_listing_shows_probes_and_faults_with_their_titles():
    probes, faults, causes = terms.listing().split("\n\n")
    assert probes.startswith("probe") and "Does it always run?\n" in probes and probes.endswith("Does a hang get noticed? (runs only when named)")
    assert faults.startswith("fault") and "Sleep for ever." in faults
    assert causes.startswith("causes")


def test_the_listing_names_every_plugin_and_every_cause_in_its_group():
    tables, _, causes = terms.listing().partition("\n\ncauses")
    listed = {line.split()[0] for line in tables.splitlines() if line}
    assert {name for kind in ("probes", "faults") for name in registry.names(kind)} <= listed
    groups = re.findall(r"^  (\S.*)\n((?:    .*\n?)+)", causes, re.M)
    assert {(slug, group) for group, slugs in groups for slug in slugs.replace(",", " ").split()} == {(slug, CAUSES[slug].group) for slug in CAUSES}


@pytest.mark.parametrize("arguments", [["explain", "data-corruption"], ["explain", "bandwidth"], ["list"]])
def test_explaining_and_listing_never_import_torch(arguments):
    script = f"import sys; from ncclcheck.cli import cli; cli({arguments!r}, standalone_mode=False); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr


def test_a_fault_is_explained_with_what_it_must_be_found_as_and_how_to_see_it() -> None:
    text = terms.explain("wrong_tp") or ""
    assert "It must be found as world-size-mismatch." in text and "probe vllm_engine --emulate 2x1 --inject wrong_tp@rank=1" in text
