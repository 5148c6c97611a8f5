"""Every word that the tool uses can be explained, and a mistyped one is not left without help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ncclcheck import registry, terms

WORDS = """
rank, local_rank, node_rank, world_size, node, host, agent, worker, rendezvous, store, process group, collective, step, seq,
journal, run directory, algbw, busbw, wire rate, victim, culprit, bystander, straggler, evidence, fact, finding, cause, symptom,
verdict, remedy, TTFT, TPOT, NCCL, Gloo, NVLink, TP, PP
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
    assert terms.suggest("xyzzy-plugh") == []


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """A registry with a probe, a fault and a rule of known content."""
    for kind, name, doc in (
        ("probes", "hang", "Does a hang get noticed?\n\nWhat it checks: everything."),
        ("faults", "hang", "Sleep for ever."),
        ("rules", "rank_killed", "A rank was killed.\n\nMeaning: SIGKILL."),
    ):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.py").write_text(f'"""{doc}"""\nraise SystemExit("imported")\n')
    monkeypatch.setattr(registry, "_folder", lambda kind: tmp_path / kind)


@pytest.mark.usefixtures("plugins")
def test_a_name_that_several_things_have_is_explained_for_each():
    text = terms.explain("hang") or ""
    positions = [text.index(part) for part in ("hang: The job makes", "probe hang: Does a hang get noticed?", "fault hang: Sleep for ever.")]
    assert positions == sorted(positions)
    assert "What it checks: everything." in text


@pytest.mark.usefixtures("plugins")
def test_a_cause_is_explained_by_its_rule_in_either_spelling():
    assert terms.explain("rank-killed") == terms.explain("rank_killed") == "rule rank-killed: A rank was killed.\n\nMeaning: SIGKILL."
    assert terms.suggest("rank-kiled")[0] == "rank-killed"


@pytest.mark.usefixtures("plugins")
def test_the_listing_shows_every_plugin_with_its_title_under_its_kind():
    probes, faults, causes = terms.listing().split("\n\n")
    assert probes.startswith("probe") and "Does a hang get noticed?" in probes
    assert faults.startswith("fault") and "Sleep for ever." in faults
    assert causes.startswith("cause") and "rank-killed" in causes and "SIGKILL" not in causes


def test_the_listing_names_every_plugin_there_is():
    listed = {line.split()[0].replace("-", "_") for line in terms.listing().splitlines() if line}
    assert {name for kind in registry.KINDS for name in registry.names(kind)} <= listed


def test_explaining_and_listing_never_import_torch():
    script = "import sys; from ncclcheck import terms; terms.listing(); terms.explain('rank'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=30).returncode == 0
