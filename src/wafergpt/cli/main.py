"""The front door: `wafergpt VERB`. Opens without loading anything heavy; each verb loads on use.

A verb is a module `cli/<verb>.py` with a function of the same name (or, for a verb with sub-verbs, the
functions named in `VERBS`) whose typer annotations are its options. It imports what it needs inside.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wafergpt.cli.failure import INTERRUPTED, READER_GONE, Terminated, describe_failure
from wafergpt.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One line of `wafergpt --help`; `subverbs` maps what is typed to the function's name."""

    help: str
    subverbs: Mapping[str, str] = field(default_factory=dict)


VERBS: dict[str, Verb] = {
    "quickstart": Verb(help="Pre-train a small Cerebras-GPT on real English in about eight minutes."),
    "recipe": Verb(help="Print a published recipe, or derive one from parameters, FLOPs or hours."),
    "prepare": Verb(help="Turn text files into verified, memory-mapped token shards."),
    "assets": Verb(
        help="List, fetch or clear the real corpora and tokenizers known by name.",
        subverbs={"list": "list_assets", "fetch": "fetch_asset", "clear": "clear_assets"},
    ),
    "train": Verb(help="Pre-train a model into a run directory, or resume the run found there."),
    "finetune": Verb(help="Teach a pre-trained model a task from labelled examples."),
    "classify": Verb(help="Say which label a text has, and how sure that is."),
    "translate": Verb(help="Translate with a model fine-tuned on a pair of languages."),
    "answer": Verb(help="Answer a question about a passage."),
    "chat": Verb(help="Talk with a model, turn by turn."),
    "write": Verb(help="Go on with a text, rewrite it in a style, or give it a title."),
    "generate": Verb(help="Continue a prompt with a trained model, streaming the text."),
    "eval": Verb(help="Measure nats per token, perplexity and bits per byte on a text."),
    "convert": Verb(help="Write a checkpoint in another format, and prove that it is the same model."),
    "quantize": Verb(help="Pack a model in int8, int4 or bf16 for fast inference, and prove what it costs."),
    "verify": Verb(help="Compare two checkpoints, or engines running them, logit by logit."),
    "wafer": Verb(
        help="Model a WSE-2: plan a run, predict measurements, report with figures, simulate a mesh.",
        subverbs={
            "plan": "plan_run",
            "predict": "predict_rows",
            "report": "report_run",
            "simulate": "simulate_run",
        },
    ),
    "doctor": Verb(help="Say what this machine and installation have, and what is missing."),
}

USAGE = """\
Usage: wafergpt VERB [OPTIONS]

The open, end-to-end Cerebras-GPT stack.

Verbs:
{verbs}

Options:
  --version  Print the version.
  --debug    Show the traceback of an error (with any verb; or set WAFERGPT_DEBUG=1).
  --help     Show this page; `wafergpt VERB --help` shows a verb's options.
"""


def usage() -> str:
    """The text of `wafergpt --help`."""
    width = max(map(len, VERBS))
    return USAGE.format(verbs="\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items()))


def split_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of the arguments (wherever it stands before a `--`), or read WAFERGPT_DEBUG."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [word for word in arguments[:end] if word != "--debug"]
    debug = len(kept) < end or os.environ.get("WAFERGPT_DEBUG", "0") not in ("", "0")
    return [*kept, *arguments[end:]], debug


def load_verb(name: str) -> Any:
    """Import `cli/<name>.py` and return its command, ready for `.main(args, ...)`."""
    import typer

    module = importlib.import_module(f"wafergpt.cli.{name}")
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=VERBS[name].help
    )
    functions: Mapping[str, str] = VERBS[name].subverbs or {name: name}
    for typed, function_name in functions.items():
        function: Callable[..., object] = getattr(module, function_name)
        app.command(typed)(function)
    return typer.main.get_command(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name); return its exit code. Errors propagate."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage(), end="")
        return 0 if arguments else ConfigError.exit_code
    name, *rest = arguments
    if name in ("--version", "-V"):
        from importlib.metadata import version

        print(f"wafergpt {version('wafergpt')}")
        return 0
    if name.startswith("-"):
        raise ConfigError(f"unknown option '{name}'; see wafergpt --help")
    if name not in VERBS:
        raise ConfigError(
            f"unknown verb '{name}'{did_you_mean(name, list(VERBS))} (wafergpt --help lists them)"
        )
    import typer

    command = load_verb(name)
    try:
        result = command.main(args=rest, prog_name=f"wafergpt {name}", standalone_mode=False)
    except typer.TyperException as error:  # the command line is wrong
        where = " ".join([name, *(word for word in rest[:1] if word in VERBS[name].subverbs)])
        raise ConfigError(f"{error.format_message().rstrip('.')}; see wafergpt {where} --help") from error
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer would exit with 1
            raise error.__context__ from None
        raise
    if result == INTERRUPTED:  # typer's form of a Ctrl-C that the verb did not handle
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within it a first SIGTERM raises `Terminated`; a second one ends the process at once."""

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated

    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def open_streams() -> None:
    """A closed standard stream (`>&-`) becomes /dev/null, so that no file of ours takes its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def reader_is_gone() -> bool:
    """Whether nobody reads standard output any more: another pipe may have broken as well."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `wafergpt` script: run, report an error as one line, exit with its code."""
    open_streams()
    words, debug = split_debug(sys.argv[1:] if arguments is None else arguments)
    try:
        with sigterm_raises():
            code = run(words)
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():  # head, less: nobody is left to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(READER_GONE)
        code = report_failure(error, debug=debug)
    sys.exit(code)


def report_failure(error: BaseException, *, debug: bool) -> int:
    """Say it in one line on standard error, if that can be written to; return the exit code."""
    failure = describe_failure(error)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        if debug:
            import traceback

            traceback.print_exception(error)
        print(f"error: {failure.message}", file=sys.stderr, flush=True)
    return failure.exit_code
