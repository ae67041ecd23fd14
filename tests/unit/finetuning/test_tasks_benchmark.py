"""`make tasks`: its jobs run on a tiny base, its verdicts are as the bars say, its page shows its results."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_finetuning as tiny

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks" / "tasks"))

import baselines  # noqa: E402
import publish  # noqa: E402
import report  # noqa: E402
import teaching  # noqa: E402
from cases import CASES, POOL, Case, conversations, sample  # noqa: E402

from wafergpt import api  # noqa: E402
from wafergpt.assets.labelled import DATASETS  # noqa: E402

OF_TASK = {"classification": "intents", "chat": "help-desk", "writing": "moby-dick"}


def job(folder: Path, task: str, method: str = "pre-trained") -> teaching.Job:
    """A job whose data are there."""
    rows = tiny.rows_of(task, 60)
    case = Case(dataset=OF_TASK[task], measure={"classification": "accuracy", "chat": "ranked_first",
                "writing": "perplexity"}[task], n_train=40, n_test=10, max_new_tokens=4)  # fmt: skip
    base = folder / "base"
    if not base.exists():
        tiny.base(base)
        data = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
        teaching.store_data(case, folder, data | ({POOL: rows} if task == "chat" else {}))
    return teaching.Job(case, method, 0, base, "sha", folder)


def test_a_job_leaves_scores_and_the_page_shows_them(tmp_path: Path) -> None:
    for method in ("pre-trained", teaching.BASELINES, "random weights"):
        line = teaching.run(job(tmp_path, "classification", method))
        assert line.startswith(f"intents, {method}, seed 0: ")
    case = job(tmp_path, "classification").case
    found = report.gather([case], tmp_path, n_params=7, seconds=60.0)["cases"]["intents"]
    assert found["sizes"] == {"train": 40, "validation": 10, "test": 10} and found["n_test"] == 10
    assert set(found["methods"]) >= {"pre-trained", "random weights", "TF-IDF + logistic regression"}
    written = json.loads(job(tmp_path, "classification").result.read_text())
    assert found["methods"]["pre-trained"][0]["accuracy"] == pytest.approx(written["scores"]["accuracy"])
    page = report.write_report([case], tmp_path, n_params=7, seconds=60.0).read_text()
    assert f"| pre-trained | {written['scores']['accuracy']:.3f} " in page
    assert (tmp_path / "intents.png").stat().st_size > 10_000


def test_a_help_desk_is_ranked_and_its_base_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(b"RED").hexdigest()[:12]
    (tmp_path / "paraphrases.json").write_text(json.dumps({digest: "crimson"}))
    monkeypatch.setattr(teaching, "PARAPHRASES", tmp_path / "paraphrases.json")
    monkeypatch.setattr(teaching, "N_CANDIDATES", 3)
    teaching.run(job(tmp_path, "chat"))
    scores = json.loads(job(tmp_path, "chat").result.read_text())["scores"]
    wanted = {
        "ranked_first",
        "ranked_first_by_context",
        "ranked_first_with_tfidf",
        "paraphrased_first",
        "perplexity",
        "f1",
    }
    assert wanted <= set(scores) and 0 <= scores["ranked_first"] <= 1
    value = teaching.measure_baselines(job(tmp_path, "chat", teaching.BASELINES))
    assert set(value["baselines"]["TF-IDF"]) == {"ranked_first", "paraphrased_first"}


def test_what_is_done_is_not_done_again_unless_the_settings_change(tmp_path: Path) -> None:
    done = job(tmp_path, "classification")
    assert not done.is_done()
    teaching.run(done)
    assert done.is_done()
    for change in ({"base_sha256": "other"}, {"case": replace(done.case, n_train=39)}):
        assert not replace(done, **change).is_done()


def test_a_run_that_breaks_off_leaves_the_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teaching.run(job(tmp_path, "classification"))
    kept = tmp_path / "runs" / "intents-pre-trained-0"
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}

    def broken(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api, "finetune", broken)
        with pytest.raises(KeyboardInterrupt):
            teaching.run(job(tmp_path, "classification"))
    assert before and {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()} == before
    teaching.run(job(tmp_path, "classification"))
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_the_right_passage_must_stand_alone_in_front() -> None:
    scores = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert teaching.first_share(scores) == pytest.approx(1 / 3)  # a tie is no first place
    assert teaching.standard(scores * 10) == pytest.approx(teaching.standard(scores))
    train = [{"messages": [{"content": "red cat"}, {"content": "blue dog"}]}]
    cosines = baselines.cosines(train, ["a red cat"], [["the red cat", "the blue dog"]])
    assert cosines[0] == pytest.approx([1.0, 0.0])


def case_of(ours: list[float], theirs: list[float], *, lower: bool = False, rival: str) -> dict[str, Any]:
    methods = {"pre-trained": ours, rival: theirs}
    return {
        "measure": "m", "lower": lower,
        "methods": {name: [{"m": value} for value in values] for name, values in methods.items()},
    }  # fmt: skip


def test_a_gain_counts_when_it_exceeds_the_spread() -> None:
    rival = "random weights"
    won = report.verdicts(case_of([0.8, 0.82], [0.7, 0.72], rival=rival))
    assert won == ["beats random weights: m +0.100, more than 0.020 needed"]
    assert report.verdicts(case_of([0.7, 0.9], [0.75, 0.75], rival=rival))[0].startswith("**misses**")
    case = case_of([0.7], [0.75], rival=rival)
    case["methods"]["pre-trained, LoRA"] = [{"m": 0.8}]
    by_lora = report.verdicts(case)[1]
    assert by_lora == "by LoRA: beats random weights: m +0.050, more than 0.000 needed"
    rival = "the base, before"  # a fifth less is asked for
    drop = [report.verdicts(case_of([ours], [90.0], lower=True, rival=rival))[0] for ours in (70.0, 80.0)]
    assert drop[0].startswith("beats") and drop[1].startswith("**misses**")
    case = case_of([0.1], [0.6], rival="TF-IDF")
    case["methods"]["pre-trained"][0]["m_with_tfidf"] = 0.7
    case["methods"]["pre-trained"][0]["m_by_context"] = 0.05
    alone, context, together = report.verdicts(case)
    assert alone.startswith("**misses** TF-IDF: m -0.500")
    assert context.startswith("without the words it shares with the question: **misses** TF-IDF: m -0.550")
    assert together.startswith("together with TF-IDF: beats TF-IDF: m +0.100")


def test_adapters_reach_the_embedding_where_entries_are_learned(tmp_path: Path) -> None:
    plain = next(case for case in CASES if not case.new_tokens)
    wider = next(case for case in CASES if case.new_tokens)
    jobs = [teaching.Job(case, "pre-trained, LoRA", 0, tmp_path, "", tmp_path) for case in (plain, wider)]
    assert ["wte" in job.variant["lora"].targets for job in jobs] == [False, True]
    assert jobs[1].settings["variant"]["lora"] == str(jobs[1].variant["lora"])
    assert teaching.Job(wider, "pre-trained", 0, tmp_path, "", tmp_path).variant == {}


def test_the_cases_are_data_sets_and_samples_stay_the_same() -> None:
    assert {case.dataset for case in CASES} == set(DATASETS) - {"chitchat"}
    records = [{"n": n} for n in range(100)]
    assert sample(records, 7) == sample(records, 7) and len(sample(records, 7)) == 7
    assert sample(records, 200) == records


def test_sets_that_were_not_measured_keep_their_scores_and_say_of_when() -> None:
    case = {
        **case_of([0.8], [0.7], rival="random weights"),
        "task": "t",
        "sizes": {"train": 1},
        "trained_s": {},
    }
    of = {"date": "2026-01-02", "machine": "M", "n_params": 7, "seconds": 60}
    before = {
        **of,
        "date": "2026-01-01",
        "cases": {"squad": {**case, "steps": 1, "epochs": 1}, "intents": case},
    }
    found = publish.completed({**of, "cases": {"squad": case}}, before)
    assert list(found["cases"]) == ["intents", "squad"] and found["cases"]["squad"] == case
    page = report.render(found)
    assert page.count("Of an earlier run:** 2026-01-01, M") == 1
    assert page.index("Of an earlier run") < page.index("### squad")
    assert "for the data sets that give no other date" in page
    assert publish.completed(found, found) == found  # marked once, with the first date
    alone = publish.completed({**of, "cases": {"squad": case}}, None)
    assert "Of an earlier run" not in report.render(alone)


def test_questions_about_one_page_become_a_conversation() -> None:
    """In order, three turns at most, none lost, and never those of two pages."""
    pages = ["a"] * 5 + ["b"] + ["a"]
    records = [
        {"messages": [{"content": f"q{i}"}, {"content": f"a{i}"}], "group": p} for i, p in enumerate(pages)
    ]
    joined = conversations(records)
    assert [(r["group"], len(r["messages"])) for r in joined] == [("a", 6), ("a", 4), ("b", 2), ("a", 2)]
    assert [m for r in joined for m in r["messages"]] == [m for r in records for m in r["messages"]]
    assert len(records[0]["messages"]) == 2  # the given ones are left as they are


def test_the_document_shows_the_newest_results() -> None:
    found = publish.newest(ROOT / "benchmarks/results")
    assert found is not None
    page = (ROOT / "docs/explanation/task_scores.md").read_text(encoding="utf-8")
    assert report.render(found) in page
    assert report.render({**found, "n_params": 1}) not in page


def test_a_second_run_of_a_day_takes_the_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files of one date would leave open which is the newest."""
    for name in ("results", "pictures", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(publish, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(publish, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(f"before\n{publish.MARK}\nold\n{publish.MARK}\nafter\n")
    case = {
        **case_of([0.8], [0.7], rival="random weights"),
        "task": "t",
        "sizes": {"train": 1},
        "trained_s": {},
        "epochs": 1,
        "steps": 1,
    }
    for machine, name in (("First, 2 cores", "squad"), ("Second, 2 cores", "intents")):
        found = {
            "date": "2026-01-02",
            "machine": machine,
            "n_params": 7,
            "seconds": 60,
            "cases": {name: case},
        }
        (tmp_path / "run" / "scores.json").write_text(json.dumps(found))
        (tmp_path / "run" / f"{name}.png").write_bytes(b"picture")
        publish.publish(tmp_path / "run")
    (kept,) = (tmp_path / "results").iterdir()
    assert kept.name == "tasks_second_2026-01-02.json"
    assert set(json.loads(kept.read_text())["cases"]) == {"squad", "intents"}
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page
    assert "**Of an earlier run:** 2026-01-02, First, 2 cores" in page


PARENT = """
import multiprocessing, os, sys, time
sys.path.insert(0, sys.argv[1])
from workers import on_one_core

if __name__ == "__main__":
    core = min(os.sched_getaffinity(0))
    pool = multiprocessing.get_context("spawn").Pool(1, on_one_core, (core,))
    child = pool.apply(os.getpid)
    pool.apply_async(time.sleep, (600,))
    print(child, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are chosen on Linux only")
def test_a_job_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Left alone it would go on in the folder of the run that takes its place."""
    (tmp_path / "parent.py").write_text(PARENT)
    words = [sys.executable, str(tmp_path / "parent.py"), str(ROOT / "benchmarks" / "tasks")]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    waited = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < waited:
        time.sleep(0.1)
    if Path(f"/proc/{child}").exists():
        os.kill(child, signal.SIGKILL)
        pytest.fail("it goes on")
