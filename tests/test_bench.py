"""`ncclcheck bench`: what is measured, what is kept, what follows from it, and how it is shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path
from typing import Any

import measured
import pytest
from measured import WHERE, found, plan, result

from ncclcheck import link, vllm_model
from ncclcheck.bench import asked, bound, document, effects, grid, html, reading, share, svg, text, words
from ncclcheck.bench.cells import Cell, Layout, Load, Server
from ncclcheck.bench.share import Sent
from ncclcheck.bench.store import Store
from ncclcheck.expect.cost import Group
from ncclcheck.model import Outcome
from ncclcheck.plan import config
from ncclcheck.plan.curves import Curve
from ncclcheck.printing import Usage

FIXTURE = Path(__file__).parent / "fixtures/bench/serve.json"  # what vllm bench serve 0.32 wrote
LOAD = Load(8, 128, 32, 64)


# -- what is measured ------------------------------------------------------------------------------------------------


def test_every_tp_is_measured_on_as_few_nodes_as_hold_it_and_spread_over_as_many_as_it_can_be() -> None:
    assert list(map(str, grid.layouts([1, 2, 4], [1], 2, 2, []))) == ["TP=1", "TP=2", "TP=2, 2 nodes", "TP=4, 2 nodes"]
    assert list(map(str, grid.layouts([1, 2], [1, 2], 1, 2, []))) == ["TP=1", "TP=2", "TP=1 PP=2"]
    assert list(map(str, grid.layouts([2], [2], 4, 2, []))) == ["TP=2 PP=2, 2 nodes", "TP=2 PP=2, 4 nodes"]


def test_a_slow_link_is_simulated_only_where_a_layout_crosses_it() -> None:
    assert list(map(str, grid.layouts([1, 2], [1], 2, 2, ["1Gbit,2ms"]))) == ["TP=1", "TP=2", "TP=2, 2 nodes", "TP=2, 2 nodes, 1Gbit,2ms"]


def test_a_layout_that_the_nodes_cannot_hold_is_refused_with_what_it_needs() -> None:
    with pytest.raises(ValueError, match="TP=3 PP=1 needs 3 ranks, evenly on 2 nodes with 2 each"):
        grid.layouts([3], [1], 2, 2, [])
    with pytest.raises(ValueError, match="TP=3 PP=1 needs 3 ranks, evenly on 1 nodes with 2 each"):
        grid.layouts([1, 3], [1, 2], 1, 2, [])


def test_each_setting_is_changed_alone_from_the_first_layout_under_the_largest_load() -> None:
    made = plan(vary=(("max-num-seqs", ["4", "64"]), ("dtype", ["float32", "bfloat16"])))
    assert made.reference == Cell(Server(Layout(), (("dtype", "float32"),)), Load(8, 128, 32, 64))
    varied = made.launches[3:]  # after TP=1, TP=2 and TP=2 over two nodes
    assert [launch.server.settings for launch in varied] == [
        (("dtype", "float32"), ("max-num-seqs", "4")),
        (("dtype", "float32"), ("max-num-seqs", "64")),
        (("dtype", "bfloat16"),),  # float32 is the reference
    ]
    assert all(list(launch.loads) == [made.reference.load] for launch in varied)


def test_settings_become_options_of_vllm_serve() -> None:
    server = Server(Layout(), (("dtype", "float32"), ("enable-prefix-caching", "false"), ("enforce-eager", "true")))
    assert server.arguments() == ["--dtype", "float32", "--no-enable-prefix-caching", "--enforce-eager"]
    assert asked.setting("prefix-caching=off,on", "--vary", many=True) == ("enable-prefix-caching", "false,true")
    assert asked.setting("--max_num_seqs=8", "--set", many=False) == ("max-num-seqs", "8")


@pytest.mark.parametrize("told", ["tensor-parallel-size=2", "port=1", "max-num-seqs", "max-num-seqs=", "a b=1", "model=x"])
def test_a_setting_that_is_decided_elsewhere_or_is_none_is_refused(told: str) -> None:
    with pytest.raises(Usage):
        asked.setting(told, "--set", many=False)


@pytest.mark.parametrize(
    "told, rate, delay, shown",
    [
        ("1Gbit,2ms", 125e6, 0.002, "1Gbit,2ms"),
        ("2ms,1gbit/s", 125e6, 0.002, "1Gbit,2ms"),
        ("100Mbit", 12.5e6, 0.0, "100Mbit"),
        ("0.5ms", 0.0, 0.0005, "0.5ms"),
    ],
)
def test_a_link_is_a_rate_a_delay_or_both(told: str, rate: float, delay: float, shown: str) -> None:
    assert link.parse(told) == link.Link(rate, delay)
    assert str(link.parse(told)) == shown and link.parse(shown) == link.parse(told)


@pytest.mark.parametrize("told", ["", "fast", "1Gbit,1Gbit", "2ms,3ms", "1GB", "1kbit", "900Gbit", "3s", "1Gbit,2ms,x", "-2ms"])
def test_what_is_no_link_is_refused(told: str) -> None:
    with pytest.raises(ValueError):
        link.parse(told)


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_what_was_measured_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    store, cell = Store(tmp_path / "bench", WHERE), plan().reference
    assert store.get(cell) is None
    store.put(cell, result(startup=3.0))
    assert store.get(cell) == result(startup=3.0)
    others = [
        Cell(cell.server, replace(cell.load, requests=65)), Cell(cell.server.changed("dtype", "bfloat16"), cell.load),
        Cell(Server(Layout(2, 1, 2, "1Gbit"), cell.server.settings), cell.load),
    ]  # fmt: skip
    assert [store.get(other) for other in others] == [None] * 3
    assert Store(tmp_path / "bench", {**WHERE, "vllm": "0.33.0"}).get(cell) is None
    assert [path.name.startswith("cell-") for path in (tmp_path / "bench").iterdir()] == [True]


@pytest.mark.parametrize("damage", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"key": "x", "cell": {}, "where": {}, "result": {}}'])
def test_a_damaged_result_counts_as_not_measured(tmp_path: Path, damage: bytes) -> None:
    store, cell = Store(tmp_path, WHERE), plan().reference
    store.put(cell, result())
    store.path(cell).write_bytes(damage)
    assert store.get(cell) is None


def test_a_result_under_the_name_of_another_cell_is_not_believed(tmp_path: Path) -> None:
    store, (one, other, *_) = Store(tmp_path, WHERE), plan().cells
    store.put(one, result())
    store.path(one).rename(store.path(other))
    assert store.get(other) is None


# -- what vLLM says --------------------------------------------------------------------------------------------------


def test_a_result_of_vllm_bench_serve_is_read_in_seconds() -> None:
    read = reading.result(FIXTURE, Load(4, 128, 32, 16))
    saved = json.loads(FIXTURE.read_text())
    assert read.ttft.p50 == saved["median_ttft_ms"] / 1000 and read.e2e.p99 == saved["p99_e2el_ms"] / 1000
    assert (read.completed, read.failed, read.output_tokens) == (16, 0, 16 * 32)
    assert read.tokens_per_second == pytest.approx(read.output_tokens / read.duration)


def test_a_result_with_too_few_answers_or_of_another_kind_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(reading.Unreadable, match="16 of 40 requests were answered"):
        reading.result(FIXTURE, Load(4, 128, 32, 40))
    for content in ("{}", "[]", '{"duration": "long"}', "nonsense"):
        (tmp_path / "load.json").write_text(content)
        with pytest.raises(reading.Unreadable, match=r"load\.json is no result of vllm bench serve"):
            reading.result(tmp_path / "load.json", LOAD)
    with pytest.raises(reading.Unreadable, match="No such file"):
        reading.result(tmp_path / "missing.json", LOAD)


def test_the_servers_gauges_are_summed_over_engines_and_the_fullest_cache_counts() -> None:
    told = """# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
vllm:kv_cache_usage_perc{engine="0",model_name="a}b"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a}b"} 0.5
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:num_preemptions_total{engine="0"} torn
"""
    assert reading.gauges(told) == reading.Gauges(0.5, 7, 2, 0)
    assert reading.gauges("nothing of it") is None


def test_preemptions_before_a_cell_are_not_its_own() -> None:
    loaded = reading.loaded(result(), reading.Gauges(preempted=5), [reading.Gauges(0.1, 1, 0, 5), reading.Gauges(0.7, 8, 3, 7)])
    assert (loaded.cache, loaded.running, loaded.waiting, loaded.preempted) == (0.7, 8, 3, 2)


# -- what follows ----------------------------------------------------------------------------------------------------


def test_what_moved_throughput_most_is_what_was_changed_alone_with_the_largest_factor() -> None:
    made = plan(links=("1Gbit,2ms",), vary=(("max-num-seqs", ["4"]),))
    rates = {"TP=1": 800.0, "TP=2": 700.0, "TP=2, 2 nodes": 400.0, "TP=2, 2 nodes, 1Gbit,2ms": 50.0}
    results = {}
    for cell in made.cells:
        tokens = rates[str(cell.server.layout)] * (0.25 if cell.load.concurrency == 1 else 1.0)
        results[cell] = result(tokens * (0.5 if ("max-num-seqs", "4") in cell.server.settings else 1.0))
    found_effects = {(effect.name, effect.now): round(effect.factor, 3) for effect in effects.of(results, made.reference)}
    assert found_effects == {
        ("link", "1Gbit,2ms"): 0.125,  # of the same layout without it
        ("concurrency", "1"): 0.25, ("layout", "TP=2, 2 nodes"): 0.5, ("max-num-seqs", "4"): 0.5, ("layout", "TP=2"): 0.875,
    }  # fmt: skip
    best = effects.winner(effects.of(results, made.reference))
    assert best and (best.name, best.was, best.now) == ("link", "as it is", "1Gbit,2ms")
    assert words.most(best) == "link moved throughput most: from as it is to 1Gbit,2ms it fell to 12% (400 -> 50 tokens/s)"


def test_a_longer_answer_is_no_setting_and_so_never_the_winner() -> None:
    made = grid.plan([Layout()], grid.loads([1, 8], [128], [32, 512], None), {}, [])
    results = {cell: result({32: 800.0, 512: 80.0}[cell.load.output] * (0.5 if cell.load.concurrency == 1 else 1)) for cell in made.cells}
    every = effects.of(results, made.reference)
    assert [(effect.name, effect.now) for effect in every] == [("output tokens", "512"), ("concurrency", "1")]
    assert (best := effects.winner(every)) and best.name == "concurrency"


def test_communication_is_at_least_what_a_token_takes_longer_than_on_one_rank() -> None:
    made = plan()
    one, two = made.reference, Cell(Server(Layout(2, 1, 2), made.reference.server.settings), LOAD)
    results = {one: result(tpot=0.01, ttft=0.01), two: result(tpot=0.04, ttft=0.04)}
    sent = share.of(two, results, None, None, on_cpu=True)
    assert (sent.at_least, sent.at_most, sent.by_collectives) == (pytest.approx(0.75), pytest.approx(0.875), None)
    assert share.of(one, results, None, None, on_cpu=True) == Sent(0.0, 0.0, 0.0)


def test_the_collectives_of_a_token_are_counted_by_the_models_layers_and_timed_by_its_ranks() -> None:
    made = plan()
    two = Cell(Server(Layout(2, 1, 2), made.reference.server.settings), LOAD)
    shape = config.shape(vllm_model.config(2)).served("float32")
    curve = Curve(Group(1, 2), {8: 0.001, 2**20: 0.001}, 0.1)  # a millisecond, whatever its size
    sent = share.of(two, {two: result(tpot=0.011, ttft=0.011)}, shape, curve, on_cpu=True)
    step = 0.001 * (2 * vllm_model.LAYERS + 1) + 0.0005
    assert sent.by_collectives == pytest.approx((step + step / 32) / 0.011)
    within = Cell(Server(Layout(2, 1, 1), two.server.settings), LOAD)  # in a node without GPUs it is shared memory, not Gloo
    assert share.of(within, {within: result()}, shape, curve, on_cpu=True).by_collectives is None


@pytest.mark.parametrize(
    "changed, sent, word",
    [
        ({"cache": 0.99}, Sent(), "cache"),
        ({"cache": 0.5, "preempted": 1}, Sent(), "cache"),
        ({"cache": 0.2, "waiting": 4, "running": 4}, Sent(0.9), "seats"),
        ({"cache": 0.2, "waiting": 1, "running": 8}, Sent(0.9), "network"),
        ({"tpot": 0.01}, Sent(None, 0.6, 0.8), "network"),
        ({"tpot": 0.01}, Sent(0.42), "network"),
        ({"ttft": 0.5, "tpot": 0.01}, Sent(0.1), "prompts"),
        ({"ttft": 0.01, "tpot": 0.01}, Sent(0.1), "computing"),
        ({"ttft": 0.01, "tpot": 0.01}, Sent(), "unknown"),  # of several ranks of which nothing more is known
    ],
)
def test_what_bounds_a_cell_is_first_what_makes_requests_wait_then_what_makes_tokens_slow(changed: dict[str, Any], sent: Sent, word: str) -> None:
    cell = Cell(Server(Layout(2, 1, 2)), LOAD)
    assert bound.of(cell, result(**changed), sent).word == word


def test_the_advice_names_the_concurrency_from_which_on_requests_only_wait() -> None:
    made = grid.plan([Layout()], grid.loads([1, 4, 16], [128], [32], None), {}, [])
    told = found(made, {cell: result({1: 100.0, 4: 380.0, 16: 400.0}[cell.load.concurrency]) for cell in made.cells})
    assert any(line.startswith("Concurrency, TP=1: 4 at once give 95% of the most") for line in words.advice(told))


# -- how it is shown -------------------------------------------------------------------------------------------------


def full() -> measured.Found:
    made = plan(links=("1Gbit,2ms",), vary=(("max-num-seqs", ["4"]),))
    results = {cell: result(800.0 / (1 + number), tpot=0.001 * (1 + number), cache=0.3, running=8, waiting=0, preempted=0, startup=9.0)
               for number, cell in enumerate(made.cells)}  # fmt: skip
    return found(made, results, emulated=True, seconds=12.0)


def test_the_text_ends_with_a_sentence_that_says_when_nodes_were_emulated() -> None:
    shown = text.render(full())
    assert "MEASURED (emulated on this machine; your cluster was not measured): 9 of 9 cells measured" in " ".join(shown.split())
    for title in ("layouts at concurrency 8", "latency: median / p99", "one thing changed at a time", "how to set it", "where the bottleneck is"):
        assert title in shown
    assert "[masked]" not in shown  # no sentence of ours looks like a secret


def test_cells_that_are_missing_are_listed_with_the_reason() -> None:
    made = plan()
    partly = found(made, {made.reference: result()})
    assert partly.status is Outcome.PROBLEM and "not reached" in text.render(partly) and "INCOMPLETE" in text.render(partly)
    assert found(made, {}).status is Outcome.UNKNOWN and "NOT MEASURED" in text.render(found(made, {}))


def test_the_document_has_every_cell_effect_and_share_and_is_json() -> None:
    told = json.loads(json.dumps(document.build(full())))
    assert (told["schema"], told["status"], len(told["cells"])) == (1, "healthy", 9)
    assert told["most"]["what"] and {"sent", "bound", "result", "kept", "layout", "settings"} <= told["cells"][0].keys()


def test_the_page_loads_nothing_runs_nothing_and_escapes_what_is_hostile() -> None:
    hostile = "<script>alert(1)</script>\"'&\x1b[31m\u202e"
    made = grid.plan([Layout(), Layout(2, 1, 2, hostile)], grid.loads([1, 8], [128], [32], None), {"dtype": hostile}, [("max-num-seqs", [hostile])])
    page = html.render(found(made, {cell: result() for cell in made.cells}, where={"model": hostile, "vllm": hostile, "device": "CPU"}))
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and "alert(1)" in page
    assert not re.search(r"(\ssrc=|href=|@import|url\()", page) and "default-src 'none'" in page
    body = page[page.index("<h1>") : page.index("</body>")]
    root = xml.fromstring(f"<body>{body}</body>")  # each tag is closed, so nothing escaped from its place
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) >= 4
    assert page.encode()  # no lone surrogates


def test_a_page_with_nothing_measured_is_a_page_all_the_same() -> None:
    page = html.render(found(plan(), {}))
    assert "NOT MEASURED" in page and "nan" not in page.lower()


def test_plots_have_finite_coordinates_whatever_their_values() -> None:
    for points in ([(1.0, 0.0)], [(1.0, 1e-9), (4096.0, 1e12)], [(2.0, 3.0)] * 2):
        drawn = svg.lines("title", "x", "y", {"a": points}, str)
        assert "nan" not in drawn and "inf" not in drawn
        xml.fromstring(f"<div>{drawn}</div>")
    for value in (0.0, -1.0, 5.0):
        xml.fromstring(svg.bars("title", [("a", value, "b")]))
    assert svg.lines("title", "x", "y", {}, str) == svg.bars("title", []) == ""


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, said",
    [
        ("nowhere", "MODEL nowhere: no readable config.json there"),
        ("--emulate 2x1 --tp 3", "TP=3 PP=1 needs 3 ranks, evenly on 2 nodes with 1 each"),
        ("--tp 0", "'--tp': '0' is not a list of whole numbers above 0, such as 1,4,16"),
        ("--concurrency 1,x", "'--concurrency': '1,x' is not a list"),
        ("--emulate 2x1 --set port=1", "--set port: that is decided by"),
        ("--emulate 2x1 --vary max-num-seqs", "such as --vary max-num-seqs=8,64"),
        ("--emulate 2x1 --simulate-link slow", "--simulate-link: 'slow' is not RATE,DELAY such as 1Gbit,2ms"),
        ("--nnodes 1 --simulate-link 1Gbit", "--simulate-link makes the links of emulated nodes slow: say --emulate 2x1"),
        ("--emulate 2x1 --input-len 4000", "the built-in model takes 2047 tokens, and 4064 are asked for: say a MODEL"),
        ("--format xml", "--format xml is not known; choose from text, json, html"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_started(line: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "ncclcheck", "bench", *line.split()], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.glob("ncclcheck-runs/20*-*-*")) == []


def test_the_tokenizer_of_the_built_in_model_turns_any_tokens_to_text_and_back(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from ncclcheck import vllm_tokenizer

    vllm_tokenizer.write(tmp_path, 256, 2048)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokens = [4, 255, 17, 17, 100, 3]
    assert tokenizer.get_vocab_size() == 256
    assert tokenizer.encode(tokenizer.decode(tokens, skip_special_tokens=False)).ids == tokens
