import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from small_project import command, edition, environment, read, write_chapter, write_preset, write_project

from descent.repro.claims import Claim, JudgedClaim
from descent_book.run.edition import plan
from descent_book.run.notebook import seal
from descent_book.run.scorecard import EditionScorecard, ScoredChapter

REFUSALS = {
    "unknown": (
        ["-p", "epoch", "3"],
        "first: no parameter 'epoch'; the nearest valid one is 'epochs'. Valid: dataset,",
    ),
    "unlike any": (["-p", "zzz", "3"], "first: no parameter 'zzz'. Valid: dataset, epochs"),
    "mistyped": (["-p", "epochs", "many"], "first: epochs='many': input should be a valid integer"),
    "fraction": (["-p", "epochs", "2.5"], "epochs=2.5: input should be a valid integer"),
    "too small": (["-p", "epochs", "0"], "greater than or equal to 1; the nearest valid value is 1"),
    "too large": (["-p", "epochs", "101"], "less than or equal to 100; the nearest valid value is 100"),
    "negative": (["-p", "seed", "-1"], "seed=-1: input should be greater than or equal to 0"),
    "choice": (["-p", "dataset", "mnits"], "the nearest valid one is 'mnist'. Valid: digits, mnist"),
    "list": (["-p", "sizes", "[1, 'a']"], "sizes=[1, 'a']: entry 2: input should be a valid integer"),
    "chapter": (["--chapter", "frist"], "no chapter 'frist'; the nearest valid one is 'first'. Valid: first, second"),
    "preset": (["--preset", "papre"], "first has no preset 'papre'; the nearest valid one is 'paper'"),
    "preset as parameter": (["-p", "preset", "paper"], "use --preset NAME"),
    "shared results": (["-p", "results_dir", "x"], "results_dir: chapters would overwrite each other"),
}
BAD_PRESETS = {
    "unknown": ("preset: paper\nepoch: 3\n", "presets/paper/first.yml: no parameter 'epoch'; the nearest valid one is"),
    "range": ("preset: paper\nepochs: 0\n", "first: epochs=0: input should be greater than or equal to 1"),
    "type": ("preset: paper\nepochs: many\n", "first: epochs='many': input should be a valid integer"),
    "other preset": ("preset: papers\n", "one of them `preset: paper`"),
    "not a mapping": ("- 1\n", "expected `name: value` lines"),
    "not YAML": ("preset: [\n", "presets/paper/first.yml: not YAML"),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    root = write_project(tmp_path_factory.mktemp("two") / "book project", first="1", second="1")
    write_preset(root, "paper", "first", "preset: paper\n")
    return root


@pytest.mark.promise("R8")
@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_parameter_is_refused_by_name_before_any_compute(two, case, record_property):
    arguments, sentence = REFUSALS[case]
    status, said, seconds = edition(two, "run", *arguments)
    assert (status, "Traceback" in said) == (2, False)
    assert sentence in said
    record_property("seconds until it was refused", round(seconds, 2))
    assert not (two / "_build").exists()


def test_a_refusal_imports_nothing_that_computes_draws_or_executes(two):
    heavy = {"torch", "numpy", "matplotlib", "scipy", "papermill", "nbclient", "IPython", "sphinx", "bs4"}
    program = f"""import sys
from pathlib import Path
from descent_book.run.edition import RefusedError, plan
try:
    plan(Path({str(two)!r}), [], "quick", {{"epochs": "0"}}, None)
except RefusedError as error:
    print(error, sorted({heavy!r} & set(sys.modules)))"""
    done = subprocess.run([os.sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.stdout.startswith("first: epochs=0: input should be greater"), done.stderr
    assert done.stdout.endswith(" []\n")


@pytest.mark.promise("R8")
@pytest.mark.parametrize("case", BAD_PRESETS)
def test_a_wrong_preset_file_is_refused_by_name(two, tmp_path, case):
    text, sentence = BAD_PRESETS[case]
    root = shutil.copytree(two, tmp_path / "copy")
    write_preset(root, "paper", "first", text)
    status, said, _ = edition(root, "run", "--preset", "paper", "--chapter", "first")
    assert (status, "Traceback" in said) == (2, False)
    assert sentence in said


def test_a_preset_that_one_chapter_lacks_is_refused_before_the_other_runs(two):
    status, said, _ = edition(two, "run", "--preset", "paper")
    assert status == 2
    assert "second has no preset 'paper'. Valid: quick" in said


def test_a_folder_that_is_not_the_project_is_named(tmp_path):
    status, said, _ = edition(tmp_path, "run")
    assert status == 2
    assert f"{tmp_path}: no _toc.yml found" in said


def test_a_page_that_is_nowhere_is_named(tmp_path):
    root = write_project(tmp_path / "p", first="1")
    (root / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters: [{file: frist}]\n")
    status, said, _ = edition(root, "run")
    assert status == 2
    assert "_toc.yml names 'frist': expected notebooks/frist.ipynb or book/frist.md" in said


MEET = """Path(settings.meeting, "{me}").touch()
give_up = time.monotonic() + 3600
while not Path(settings.meeting, "{other}").exists():
    assert time.monotonic() < give_up, "the other chapter does not run beside this one"
    time.sleep(0.05)
print(os.environ["DESCENT_CORES"], os.environ["OMP_NUM_THREADS"], os.environ["TQDM_DISABLE"])"""


def test_chapters_run_side_by_side_with_the_cores_shared(tmp_path):
    root = write_project(tmp_path / "p", a=MEET.format(me="a", other="b"), b=MEET.format(me="b", other="a"))
    status, said, _ = edition(root, "run", "--jobs", "2", "-p", "meeting", str(tmp_path))
    assert status == 0, said
    assert "a: The work (cell 4)" in said
    assert "b: The work (cell 4)" in said
    assert "10/10 cells" in said
    printed = "".join(read(root / "_build/editions/custom/a.ipynb")["cells"][6]["outputs"][0]["text"]).split()
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert int(printed[0]) == share
    assert 1 <= int(printed[1]) <= share
    assert printed[2] == "1"


@pytest.mark.promise("R3")
def test_a_failing_cell_leaves_the_good_edition_and_the_other_chapter_finishes(tmp_path):
    fails = "print(Path.cwd())\nraise RuntimeError('the loss is not finite at step 7')"
    root = write_project(tmp_path / "p", bad=fails, good="1")
    good = root / "_build/editions/quick"
    (good / "results/bad").mkdir(parents=True)
    (good / "bad.ipynb").write_text('{"of": "before"}')
    (good / "results/bad/claims.json").write_text('{"of": "before"}')
    status, said, _ = edition(root, "run")
    assert status == 1
    assert "FAILED bad, cell 4 ('The work'): RuntimeError: the loss is not finite at step 7" in said
    assert (good / "bad.ipynb").read_text() == '{"of": "before"}'
    assert (good / "results/bad/claims.json").read_text() == '{"of": "before"}'
    kept = (root / "_build/failed/bad.ipynb").read_text()
    assert "the loss is not finite at step 7" in kept
    assert str(tmp_path) not in kept
    assert read(good / "good.ipynb")["metadata"]["descent"]["preset"] == "quick"
    assert list(read(root / "_build/scorecard.json")["chapters"]) == ["good"]
    write_chapter(root, "bad", "1")
    assert edition(root, "run")[0] == 0
    assert not (root / "_build/failed/bad.ipynb").exists()


@pytest.mark.skipif(os.name == "nt", reason="kernels are spoken to through ports there")
@pytest.mark.parametrize(("folder", "transport"), [("t", "ipc"), ("t" * 90, "tcp")])
def test_no_other_run_can_take_what_a_kernel_is_spoken_to_through(tmp_path, folder, transport, monkeypatch):
    with tempfile.TemporaryDirectory() as short:
        (scratch := Path(short) / folder).mkdir()
        monkeypatch.setenv("TMPDIR", str(scratch))
        ask = "from ipykernel.connect import get_connection_info\nprint(get_connection_info(unpack=True)['transport'])"
        root = write_project(tmp_path / "p", a=ask + "\n1")
        status, said, _ = edition(root, "run")
        assert status == 0, said
        cells = read(root / "_build/editions/quick/a.ipynb")["cells"]
        assert any(transport in str(cell.get("outputs")) for cell in cells)


def test_an_error_is_told_with_its_notes_and_a_group_with_its_parts(tmp_path):
    noted = "error = ValueError('a | b')\nerror.add_note('to mend: give c')\nraise error"
    group = "raise ExceptionGroup('several', [ValueError('a | b'), ExceptionGroup('inner', [OSError(3, 'c')])])"
    root = write_project(tmp_path / "p", noted=noted, group=f"print(' | a table')\n{group}")
    status, said, _ = edition(root, "run")
    assert status == 1
    assert "FAILED noted, cell 4 ('The work'): ValueError: a | b to mend: give c (kept: " in said
    whole = "ExceptionGroup: several (2 sub-exceptions); ValueError: a | b; ExceptionGroup: inner (1 sub-exception)"
    assert f"FAILED group, cell 4 ('The work'): {whole}; ProcessLookupError: [Errno 3] c (kept: " in said


def test_folders_among_the_results_are_kept(tmp_path):
    body = """folder = Path(settings.results_dir or ".", "runs", "0")
folder.mkdir(parents=True)
(folder / "losses.txt").write_text("1 2")"""
    root = write_project(tmp_path / "p", first=body)
    status, said, _ = edition(root, "run")
    assert status == 0, said
    results = root / "_build/editions/quick/results/first"
    assert (results / "runs/0/losses.txt").read_text() == "1 2"
    assert (results / "claims.json").is_file()


def test_chapters_that_do_not_come_to_their_end_are_failures(tmp_path):
    bodies = {"killed": "os.kill(os.getpid(), 9)", "leaves": "sys.exit(0)", "slow": "time.sleep(10**6)"}
    root = write_project(tmp_path / "p", **bodies)
    status, said, _ = edition(root, "run", "--chapter", "killed", "--chapter", "leaves")
    assert status == 1
    assert "FAILED killed, cell 4 ('The work'): DeadKernelError" in said
    assert "wrote no claims.json" in said
    status, said, _ = edition(root, "run", "--chapter", "slow", "--cell-timeout", "10")
    assert status == 1
    assert re.search(r"FAILED slow, cell \d \('.*'\): CellTimeoutError", said)  # an earlier cell, on a busy machine
    for name in bodies:
        assert not (root / f"_build/editions/quick/{name}.ipynb").exists()
        assert (root / f"_build/failed/{name}.ipynb").is_file()


def test_an_unchanged_chapter_is_not_run_again_unless_forced(tmp_path, monkeypatch):
    counter = tmp_path / "counter"
    monkeypatch.setenv("COUNTER", str(counter))
    root = write_project(tmp_path / "p", first="with open(os.environ['COUNTER'], 'a') as file:\n    file.write('x')")

    def runs(*arguments: str) -> int:
        counter.write_text("")
        status, said, _ = edition(root, "run", *arguments)
        assert status == 0, said
        assert ("first: unchanged, not run again" in said) == (counter.read_text() == "")
        assert "1 claims at preset quick\n1 check: 1 holds" in said
        return len(counter.read_text())

    assert runs() == 1
    assert runs() == 0
    assert runs("--force") == 1


def test_where_it_is_computed_and_written_keeps_the_preset_and_its_edition(tmp_path):
    root = write_project(tmp_path / "p", first="1")
    write_preset(root, "paper", "first", "preset: paper\nepochs: 4\n")
    places = {"scheduler": "tcp://far:8786", "results_dir": str(tmp_path / "x/../r"), "figures_dir": str(tmp_path)}
    for preset in ("quick", "paper"):
        (bare,) = plan(root, [], preset, {}, None)
        for given in ({"scheduler": places["scheduler"]}, places):
            (job,) = plan(root, [], preset, given, None)
            assert (job.output, job.key, job.parameters["preset"]) == (bare.output, bare.key, preset)
            assert job.parameters == {**bare.parameters, **given}
            assert job.inject["scheduler"] == "tcp://far:8786"
        assert job.inject["results_dir"] == str(tmp_path / "r") == str(job.results)
        assert job.inject["figures_dir"] == str(tmp_path)
        (other,) = plan(root, [], preset, {**places, "epochs": "5"}, None)
        assert (other.output.parent.name, other.parameters["preset"]) == ("custom", "custom")
        assert other.key != bare.key


def test_a_relative_folder_is_made_absolute_and_a_scheduler_is_not_a_folder(tmp_path, monkeypatch):
    root = write_project(tmp_path / "p", first="1")
    monkeypatch.chdir(tmp_path)
    (job,) = plan(root, [], "quick", {"scheduler": "host", "figures_dir": "f", "results_dir": "r"}, None)
    found = {name: job.inject[name] for name in ("scheduler", "figures_dir", "results_dir")}
    assert found == {"scheduler": "host", "figures_dir": str(tmp_path / "f"), "results_dir": str(tmp_path / "r")}


def test_the_saved_notebook_knows_nothing_of_time_and_place(tmp_path):
    body = "\n".join(
        [
            "print(Path.cwd(), sys.prefix, Path.home() / 'x', settings.results_dir, settings.figures_dir)",
            "warnings.warn('mind the gap')",
        ]
    )
    root = write_project(tmp_path / "p", first=body)
    figures = root / "figures"
    places = ["-p", "figures_dir", str(figures), "-p", "scheduler", "tcp://far:8786"]
    status, said, _ = edition(root, "run", "-p", "epochs", "3", *places)
    assert status == 0, said
    path = root / "_build/editions/custom/first.ipynb"
    text, notebook = path.read_text(), read(path)
    for trace in (
        "tcp://far",
        str(tmp_path),
        os.path.realpath("/tmp") + "/",
        os.sys.prefix,
        str(Path.home()) + "/",
        "papermill",
    ):
        assert trace not in text, trace
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "descent"}
    assert all(set(cell["metadata"]) <= {"tags"} for cell in notebook["cells"])
    injected = next(cell for cell in notebook["cells"] if cell["metadata"].get("tags") == ["injected-parameters"])
    assert "".join(injected["source"]).splitlines() == ["# Parameters", 'preset = "custom"', "epochs = 3"]
    noted = notebook["metadata"]["descent"]
    assert noted["parameters"] == dict(preset="custom", seed=0, dataset="digits", epochs=3, sizes=[1, 2], meeting="")
    assert len(noted["key"]) == 64
    assert noted["provenance"]["seed"] == 0
    assert noted["claims"][0]["measured"]["value"] == 3
    assert "mind the gap" in text


def test_a_seed_alone_keeps_the_preset_and_does_not_replace_its_edition(tmp_path):
    root = write_project(tmp_path / "p", first="1")
    write_preset(root, "paper", "first", "preset: paper\nepochs: 4\n")
    assert edition(root, "run", "--preset", "paper", "-p", "seed", "5")[0] == 0
    noted = read(root / "_build/editions/custom/first.ipynb")["metadata"]["descent"]
    assert (noted["preset"], noted["parameters"]["seed"], noted["parameters"]["epochs"]) == ("paper", 5, 4)
    assert not (root / "book/first.ipynb").exists()


def test_the_paper_preset_writes_the_published_edition_and_both_scorecards(tmp_path):
    root = write_project(tmp_path / "p", first="1", second="1")
    for name in ("first", "second"):
        write_preset(root, "paper", name, "preset: paper\nepochs: 4\n")
    for name in ("first", "second"):
        status, said, _ = edition(root, "run", "--preset", "paper", "--chapter", name)
        assert status == 0, said
    assert "second.count  4  holds" in said
    assert "2 claims at preset paper\n2 checks: 2 holds" in said
    scorecard = read(root / "book/scorecard.json")
    assert scorecard == read(root / "_build/scorecard.json")
    assert (scorecard["preset"], list(scorecard["chapters"])) == ("paper", ["first", "second"])
    first = scorecard["chapters"]["first"]
    assert set(first) == {"claims", "since", "seconds", "provenance"}
    saved = read(root / "_build/editions/published/results/first/claims.json")["claims"]
    assert [each["measured"] for each in first["claims"]] == [each["measured"] for each in saved]
    assert first["claims"][0]["claim"]["sentence"] == "The count is that of the epochs"
    assert sorted(path.name for path in (root / "book").iterdir()) == sorted(
        ["intro.md", "first.ipynb", "second.ipynb", "scorecard.json"]
    )


def test_what_no_commit_holds_is_not_published(tmp_path):
    root = write_project(tmp_path / "p", first="1")
    write_preset(root, "paper", "first", "preset: paper\nepochs: 4\n")
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    status, said, _ = edition(root, "run", "--preset", "paper")
    assert (status, (root / "book/first.ipynb").exists()) == (2, False)
    assert (
        "refused: first: not published, 4 files are not committed, such as notebooks/claims/first.yml; commit" in said
    )
    assert edition(root, "run", "--preset", "paper", "--output", str(tmp_path / "elsewhere"))[0] == 0
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    assert edition(root, "run", "--preset", "paper")[0] == 0
    assert (root / "book/first.ipynb").exists()


@pytest.mark.promise("R3")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_kernel_and_leaves_the_good_edition(tmp_path, stop):
    body = "Path(settings.meeting, 'pid').write_text(str(os.getpid()))\ntime.sleep(10**6)"
    root = write_project(tmp_path / "p", first=body)
    good = root / "_build/editions/custom/first.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("before")
    told = {"env": environment(), "stderr": subprocess.PIPE, "text": True}
    # a job in the background of a script has SIGINT ignored, and so would all that it starts
    told["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command(root, "run", "-p", "meeting", str(tmp_path)), **told) as runner:
        try:
            kernel = int(_soon(lambda: (tmp_path / "pid").read_text()))
            runner.send_signal(stop)
            _, said = runner.communicate()
        finally:
            runner.kill()
    assert runner.returncode == 130, said
    assert "interrupted" in said
    assert _soon(lambda: not Path(f"/proc/{kernel}").exists() or _is_zombie(kernel))
    assert good.read_text() == "before"


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def _soon(question, seconds=3600.0):
    """The first true answer of `question`; the time is only there so that a fault ends at last."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if answer := question():
                return answer
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_the_summary_counts_verdicts_by_kind_the_worst_first(tmp_path):
    def judged(name, kind, *ends, null=1e6):
        fields = dict(
            kind=kind, sentence="It is one hundred", source="100", cite="x", unit="run of it", null="none at all"
        )
        fields |= dict(accepted=(80, 120), accepted_from="twenty to either side", judged_at={"paper": None})
        value, low, high = ends
        measured = dict(value=value, low=low, high=high, units=5, level=0.95)
        nulls = {"null": dict(value=null, low=None, high=None, units=1, level=0.95)}
        return JudgedClaim(claim=Claim(id=f"a.{name}", **fields), preset="paper", measured=measured, nulls=nulls)

    claims = [
        judged("x", "replication", 92.51, 90, 95),
        judged("longer", "replication", 1234.0, 1230, 1238),
        judged("y", "replication", 92.0, 90, 94, null=100),
        judged("z", "check", 100, 100, 100),
    ]
    result = ScoredChapter(claims=claims, seconds=1.0, provenance={})
    lines = EditionScorecard(preset="paper", chapters={"a": result}).summary().splitlines()
    assert lines == [
        f"a.x       {'92.5 (90.0 to 95.0)':>25}  reproduced",
        "a.longer  1234.0 (1230.0 to 1238.0)  not reproduced",
        f"a.y       {'92.0 (90.0 to 94.0)':>25}  not distinguished",
        f"a.z       {'100':>25}  holds",
        "4 claims at preset paper",
        "3 replications: 1 not reproduced, 1 not distinguished, 1 reproduced",
        "1 check: 1 holds",
    ]
    assert EditionScorecard.collect(tmp_path, "quick", ["absent"], tmp_path).chapters == {}


def test_storing_without_a_quick_edition_names_the_command(tmp_path):
    root = write_project(tmp_path / "p", first="1")
    status, said, _ = edition(root, "store", "frist")
    assert status == 2
    assert "refused: 'frist' has no quick edition; make it with: make book" in said


def test_the_outputs_of_older_code_are_not_stored(tmp_path):
    root = write_project(tmp_path / "p", first="1")
    assert edition(root, "run")[0] == 0
    assert edition(root, "store", "first")[0] == 0
    before = write_chapter(root, "first", "2").read_bytes()
    status, said, _ = edition(root, "store", "first")
    assert status == 2
    assert "refused: the quick edition of 'first' is of older code; make it with: make book" in said
    assert (root / "notebooks" / "first.ipynb").read_bytes() == before


def test_new_words_reach_the_editions_without_a_run(tmp_path):
    root = write_project(tmp_path / "p", first="1")
    write_preset(root, "paper", "first", "preset: paper\nepochs: 4\n")
    for preset in ("quick", "paper"):
        assert edition(root, "run", "--preset", preset)[0] == 0
    published, quick = root / "book/first.ipynb", root / "_build/editions/quick/first.ipynb"
    before = read(published)
    write_chapter(root, "first", "1", heading="Other words")
    assert "first: brought up to its source" in edition(root, "words")[1]
    after = read(published)
    assert "Other words" in json.dumps(after)
    assert seal(after) == after
    for notebook in (before, after):
        del notebook["metadata"]["descent"]["sha256"]
    assert after["metadata"] == before["metadata"]
    for old, new in zip(before["cells"], after["cells"], strict=True):
        assert old.get("outputs") == new.get("outputs")
    assert any(cell["id"] == "injected-parameters" for cell in after["cells"])
    assert "first: unchanged\n" in edition(root, "words")[1]
    assert "Other words" not in quick.read_text()
    assert "first: unchanged, not run again" in edition(root, "run")[1]
    assert "Other words" in quick.read_text()
    write_chapter(root, "first", "2", heading="Third words")
    assert "first: left as it is, its code has changed since it was run; make edition CHAPTER=first" in edition(
        root, "words"
    )[1]  # fmt: skip
    assert read(published) == seal(after)
