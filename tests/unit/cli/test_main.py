"""The front door: verbs, suggestions, one-line errors, exit codes, tracebacks on request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.cli import main as front_door
from wafergpt.errors import ConfigError

FRONT_DOOR = [sys.executable, "-c", "from wafergpt.cli.main import main; main()"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `wafergpt *arguments`, in this process."""
    with pytest.raises(SystemExit) as caught:
        front_door.main(list(arguments))
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A verb `planted` whose module is written by the test into the returned file."""
    import wafergpt.cli

    monkeypatch.setattr(wafergpt.cli, "__path__", [*wafergpt.cli.__path__, str(tmp_path)])
    monkeypatch.setitem(front_door.VERBS, "planted", front_door.Verb(help="A verb of the test."))
    monkeypatch.delitem(sys.modules, "wafergpt.cli.planted", raising=False)
    monkeypatch.delenv("WAFERGPT_DEBUG", raising=False)
    return tmp_path / "planted.py"


def test_help_lists_every_verb_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--help")
    assert code == 0 and err == ""
    for name, verb in front_door.VERBS.items():
        assert f"  {name} " in out and verb.help in out
    assert max(map(len, out.splitlines())) <= 100
    assert run(capsys)[:2] == (2, out)  # no verb at all: the same page, and a failure


@pytest.mark.parametrize("verb", [name for name, verb in front_door.VERBS.items() if verb.subverbs])
def test_help_of_subverbs_is_not_cut(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = run(capsys, verb, "--help")
    listed = out[out.index("Commands:") :]
    assert code == 0 and all(f"  {name} " in listed for name in front_door.VERBS[verb].subverbs)
    assert "..." not in listed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0 and out.startswith("wafergpt 0.")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "error: unknown verb 'trian'; did you mean 'train'? (wafergpt --help lists them)"),
        (["zzz"], "error: unknown verb 'zzz' (wafergpt --help lists them)"),
        (["--verbose"], "error: unknown option '--verbose'; see wafergpt --help"),
        (["doctor", "--jsn"], "error: No such option: --jsn"),
        (["wafer", "plan"], "error: Missing argument 'name'; see wafergpt wafer plan --help"),
        (["wafer"], "error: Missing command; see wafergpt wafer --help"),
        (["doctor", "extra"], "error: Got unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize("verb", sorted(front_door.VERBS))
def test_every_verb_explains_itself_without_torch(verb: str) -> None:
    code = (
        "import sys\nfrom wafergpt.cli.main import main\n"
        "try:\n    main([sys.argv[1], '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: wafergpt {verb} ")


def test_a_verb_gets_its_arguments_and_its_code_counts(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.write_text("def planted(x: int, *, y: bool = False) -> int:\n    print(x, y)\n    return x\n")
    assert run(capsys, "planted", "7", "--y") == (7, "7 True\n", "")


@pytest.mark.parametrize(
    ("statement", "code", "line"),
    [
        ("raise DataError('bad\\n byte')", 3, "error: bad byte"),
        ("raise KeyboardInterrupt", 130, "error: interrupted"),
        ("raise MemoryError", 10, "error: out of memory"),
        ("open('/nowhere/x')", 1, "error: no such file or directory: '/nowhere/x'"),
        ("raise OSError(28, 'No space left on device', 'f')", 6, "error: disk full while writing: 'f'"),
        ("import not_there", 9, "error: the Python package 'not_there' is not installed"),
        ("1 / 0", 70, "error: internal error (ZeroDivisionError: division by zero)"),
        ("raise SystemExit(143)", 143, ""),
    ],
)
def test_a_failing_verb_is_one_line_and_its_code(
    statement: str, code: int, line: str, planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"def planted() -> None:\n    print('partial')\n    {statement}\n"
    planted.write_text(f"from wafergpt.errors import DataError\n\n{body}")
    got, out, err = run(capsys, "planted")
    assert (got, out) == (code, "partial\n")
    assert err.startswith(line) and err.count("\n") == bool(line) and "Traceback" not in err


@pytest.mark.parametrize("how", ["before", "after", "variable"])
def test_the_traceback_comes_on_request(
    how: str, planted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.write_text("def planted() -> None:\n    1 / 0\n")
    if how == "variable":
        monkeypatch.setenv("WAFERGPT_DEBUG", "1")
    arguments = {"before": ["--debug", "planted"], "after": ["planted", "--debug"], "variable": ["planted"]}[
        how
    ]
    code, _, err = run(capsys, *arguments)
    assert code == 70 and "Traceback" in err and err.splitlines()[-1].startswith("error: internal error")


def test_debug_after_a_double_dash_is_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAFERGPT_DEBUG", "0")
    assert front_door.split_debug(["generate", "--", "--debug"]) == (["generate", "--", "--debug"], False)
    assert front_door.split_debug(["a", "--debug", "--", "b"]) == (["a", "--", "b"], True)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["wafer", "--help"], ["wafer", "plan", "111M"], ["recipe", "111M"]],
    ids=" ".join,
)
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    """As `wafergpt wafer plan 111M | head -0`: 141, quietly, what shells show for a tool ended by SIGPIPE."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run([*FRONT_DOOR, *arguments], stdout=write_end, stderr=subprocess.PIPE)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_an_error(
    planted: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.write_text("def planted() -> None:\n    raise BrokenPipeError(32, 'Broken pipe')\n")
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)  # typer wraps it
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    with pytest.raises(SystemExit) as caught:
        front_door.main(["planted"])
    assert caught.value.code == 1 and capfd.readouterr().err == "error: broken pipe\n"


@pytest.mark.parametrize(
    ("redirection", "arguments", "code"),
    [
        (">&-", "--version", 0),
        (">&-", "recipe 111M", 0),
        (">&- 2>&-", "trian", 2),
        ("2>/dev/full", "trian", 2),
        ("2>/dev/full", "--debug trian", 2),
        (">/dev/full", "--version", 6),
        ("<&-", "generate --model /nowhere -", 5),
    ],
)
def test_streams_that_are_closed_or_full(redirection: str, arguments: str, code: int) -> None:
    line = f'"$0" "$@" {arguments} {redirection}'
    done = subprocess.run(["sh", "-c", line, *FRONT_DOOR], capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr


def test_sigterm_lets_a_verb_clean_up(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.write_text(
        "import os, pathlib, signal, tempfile, time\n\ndef planted(folder: str) -> None:\n"
        "    with tempfile.TemporaryDirectory(dir=folder):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(9)\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    with front_door.sigterm_raises():  # so that a front door without it fails this test, not ends it
        assert run(capsys, "planted", str(work)) == (143, "", "error: ended by SIGTERM\n")
    assert list(work.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_run_lets_errors_through() -> None:
    with pytest.raises(ConfigError):
        front_door.run(["trian"])
