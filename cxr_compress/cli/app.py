"""What every command shares: flags of its own, one line per error, exit codes, and results as table, JSON or CSV.

Exit codes: 0 done; 1 a batch went on after bad inputs and lists them; 2 wrong flag, file or model; 3 a safety gate is
broken; 70 a bug; 129 the terminal was closed; 130 Ctrl-C; 141 the reader of the output went away; 143 `kill`. Results
go to stdout, all else to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from absl import flags

from cxr_compress import __version__
from cxr_compress.cli.entry import Arrived, exit_code, handled, word
from cxr_compress.cli.help import SHARED_FLAGS, Common, HelpKind, asked_help, help_text
from cxr_compress.errors import CompressionError
from cxr_compress.files import special_kind

EXIT_OK = 0
EXIT_SOME_INPUTS_BAD = 1
EXIT_WRONG_INPUT = 2
EXIT_GATE = 3  # done, but the result lost more than it was allowed to
EXIT_BUG = 70
EXIT_BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE

# What the base install leaves out, and the extra that brings it.
_EXTRAS = {
    "tensorflow": "train",
    "tf_keras": "train",
    "tensorflow_model_optimization": "train",
    "ai_edge_litert": "train",
    "h5py": "train",
    "safetensors": "train",
    "tqdm": "train",
    "jinja2": "report",
    "matplotlib": "report",
}

# Flags that messages of shared code name -> the command that has them.
FLAG_OWNERS = {
    **dict.fromkeys(("frame", "window", "gate", "delegate", "bit_depth"), "cxr_predict"),
    **dict.fromkeys(("quant_type", "sign_key", "edgetpu", "head", "saved_model_dir"), "cxr_convert"),
    **dict.fromkeys(("calibration_data", "dataset", "preset", "color", "input_size"), "cxr_convert"),
    **dict.fromkeys(("labels", "positive", "match", "force"), "cxr_convert"),
    **dict.fromkeys(("options", "max_flips"), "cxr_compress"),
    "mirror": "cxr_data",
    "activation": "cxr_train",
}
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z_0-9]*)")

# Control and format characters, halves of a character, and separators of lines.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

DefineFlags = Callable[[flags.FlagValues], None]
Run = Callable[[flags.FlagValues, list[str]], int]


class UsageError(CompressionError):
    """The command was called in a way it does not understand; the help is pointed to."""


def run_command(
    name: str,
    doc: str | None,
    define_flags: DefineFlags,
    run: Run,
    argv: Sequence[str] | None = None,
    *,
    common: Callable[[], Common] | None = None,
) -> int:
    """Parse the flags, run the command and turn whatever happens into an exit code; never raises but SystemExit.

    A console script is two lines: `def main(argv=None) -> int: return run_command("cxr_x", __doc__, _define, _run,
    argv)`. Every call has flags of its own, so several commands live in one process (absl's global FLAGS stay
    untouched). The shared flags --format, --debug, --flagfile, --help and --version are added here.

    Args:
        name: of the command, for messages.
        doc: the module's docstring; the help starts with it.
        define_flags: gets a FlagValues and calls `flags.DEFINE_...(..., flag_values=values)` on it.
        run: gets the parsed flags and the other arguments (before, between or after the flags), prints results
            and returns the exit code. A CompressionError or OSError it raises becomes one line and exit code 2.
        argv: arguments without the program name; `sys.argv[1:]` when None.
        common: gives the flags that most people need, by heading, for a --help of one screen; None shows all.
    """
    values, arrived = _make_flags(define_flags), Arrived()
    try:
        with _plain_warnings(name), handled(arrived.handle):
            arguments = list(sys.argv[1:] if argv is None else argv)
            code = _parse_and_run(name, doc or "", values, run, arguments, common)
            sys.stdout.flush()
            return code
    except (Exception, KeyboardInterrupt) as error:
        if values.is_parsed() and values.debug:
            traceback.print_exc()
        return _report(name, arrived.explain(error), values)


def reader_options(texts: Sequence[str]) -> dict[str, str]:
    """The options of a data set's reader, from --options=name=value,...

    Raises:
        UsageError: one has no name or no value.
    """
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs, strict=True):
        if not name or not equals:
            raise UsageError(f"expected --options as name=value, got {text!r}")
    return {name: value for name, _, value in pairs}


def print_error(name: str, text: str) -> None:
    """Write one line `name: text` to stderr, whatever line breaks or odd characters the text has."""
    if sys.stderr is None:  # closed
        return
    with contextlib.suppress(OSError):  # no one reads it any more, or the terminal is gone
        sys.stderr.write(f"{name}: {printable(' '.join(text.split()))}\n")


def printable(text: str) -> str:
    """A text with every control character as an escape: a file's name must not move the cursor or forge a line."""
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in _UNPRINTABLE else letter
        for letter in text
    )


def _make_flags(define_flags: DefineFlags) -> flags.FlagValues:
    """Give a new FlagValues with the command's flags and the shared ones; flags may follow arguments."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    define_flags(values)
    for flag_name, (kind, default, text) in SHARED_FLAGS.items():
        if kind == "bool":
            flags.DEFINE_boolean(flag_name, bool(default), text, flag_values=values)
        elif kind == "string":
            flags.DEFINE_string(flag_name, str(default), text, flag_values=values)
        else:
            flags.DEFINE_enum(flag_name, str(default), kind.split("|"), text, flag_values=values)
    return values


def _parse_and_run(  # noqa: PLR0917 - what `run_command` was given
    name: str,
    doc: str,
    values: flags.FlagValues,
    run: Run,
    arguments: list[str],
    common: Callable[[], Common] | None,
) -> int:
    """Show the help or run the command."""
    _survive_odd_names(sys.stdout)
    _survive_odd_names(sys.stderr)
    if sys.stdout is None:
        raise CompressionError("stdout is closed, so results have nowhere to go: leave it open, or send it to a file")
    kind = asked_help(arguments)
    if "--version" in itertools.takewhile(lambda argument: argument != "--", arguments):
        print(f"{name} {__version__}")
        return EXIT_OK
    if kind is not HelpKind.NONE:
        sys.stdout.write(help_text(name, doc, values, kind, None if common is None else common()))
        return EXIT_OK
    return run(values, _parse(name, values, arguments))


def _parse(name: str, values: flags.FlagValues, arguments: list[str]) -> list[str]:
    """Set the flags and give the other arguments.

    Raises:
        UsageError: what absl lets through as an error of Python; a flag file that cannot be one.
    """
    for path in _flag_files(arguments):
        # A folder is refused by absl; a pipe would be waited for, perhaps for ever.
        if kind := special_kind(os.path.expanduser(path)):  # noqa: PTH111 - that of Path fails for an unknown user
            raise UsageError(f"expected --flagfile to be a text file, got {path}, which is {kind}")
    try:
        return values([name, *arguments])[1:]
    except UnicodeDecodeError as error:
        raise UsageError(
            "expected --flagfile to be a text file with one flag a line, got one that is no text"
        ) from error
    except ValueError as error:  # of --nodebug=3
        raise UsageError(f"{error}: leave it out") from error


def _flag_files(arguments: Sequence[str]) -> Iterator[str]:
    """The flag files that a command line names."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == "--":
            return
        flag, equals, path = argument.partition("=")
        if flag in ("--flagfile", "-flagfile") and (named := (path if equals else following).strip()):
            yield named


def _report(name: str, error: BaseException, values: flags.FlagValues) -> int:
    """Say in one line what happened and give the exit code; a broken pipe is no one's fault and says nothing."""
    if isinstance(error, BrokenPipeError):
        _forget_stdout()
        return EXIT_BROKEN_PIPE
    code, text = _explain(name, error)
    print_error(name, name_owners(text, values))
    return code


def name_owners(text: str, values: Container[str]) -> str:
    """Say of which command a flag is that a message names and the command at hand has not.

    What reads an image or runs a model is shared, and so are its messages; a flag that only one command has would send
    the users of the others looking for it.

    Args:
        text: a message.
        values: the flags of the command at hand.
    """
    message = text
    for flag in dict.fromkeys(_FLAG.findall(message)):
        owner = FLAG_OWNERS.get(flag)
        if owner and flag not in values and owner not in message:
            text += f" (--{flag} is a flag of {owner})"
    return text


def _explain(name: str, error: BaseException) -> tuple[int, str]:
    """Give the exit code and the line that belong to an error."""
    if isinstance(error, KeyboardInterrupt):
        code = exit_code(error)
        return code, f"{word(code - 128)}; {error}" if str(error) else word(code - 128)
    text = _for_the_user(name, error)
    if text is None:
        return EXIT_BUG, f"internal error, {type(error).__name__}: {error}; this is a bug, --debug shows where"
    return EXIT_WRONG_INPUT, text


def _for_the_user(name: str, error: BaseException) -> str | None:
    """Say what the user can put right, or None where nothing can be."""
    if isinstance(error, flags.Error | UsageError):
        return f"{error} (see {name} --help)"
    if isinstance(error, CompressionError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in _EXTRAS:
        extra = f"pip install 'cxr-compress[{_EXTRAS[package]}]'"
        return f"needs the Python package {package}, which is not installed: {extra}"
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if isinstance(error, MemoryError):
        return "the machine ran out of memory; use smaller images or batches, or close other programs"
    return None


def _explain_os_error(error: OSError) -> str:
    """Give what the system said, about which file, and what to do where that is clear."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    text = f"{where}{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}; free some space and run the same command again"
    return text


@contextlib.contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Show warnings as one line of text, without the source line that Python prints."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print_error(name, f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _survive_odd_names(stream: Any) -> None:
    """Let a file name that is not valid text, or not in the terminal's alphabet, print as an escape, not crash."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit does not complain about the broken pipe."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


Say = Callable[[str], None]
_STDERR = 2


@contextlib.contextmanager
def quiet_native_stderr(name: str, *, enabled: bool = True) -> Iterator[Say]:
    """While inside, hold back everything written to stderr; give a function that still writes lines `name: text` to it.

    TensorFlow's C++ announces processor features, missing GPUs and converter settings, and offers no switch for it. A
    CompressionError or Ctrl-C drops what was held back (its own line says all); any other error passes it on, because
    it may tell why. Only a command does this: descriptor 2 belongs to the whole process.

    Args:
        name: of the command.
        enabled: False leaves stderr alone, as --debug does.
    """
    if not enabled or not _is_native():
        yield lambda line: _print(f"{name}: {line}")
        return
    sys.stderr.flush()
    with contextlib.ExitStack() as undo:
        held = undo.enter_context(tempfile.TemporaryFile())
        original = os.dup(_STDERR)
        undo.callback(os.close, original)
        os.dup2(held.fileno(), _STDERR)
        try:
            yield lambda line: _write(original, f"{name}: {line}\n".encode("utf-8", "backslashreplace"))
        except (CompressionError, KeyboardInterrupt):
            raise
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            _write(original, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(original, _STDERR)


def _is_native() -> bool:
    """True where sys.stderr is descriptor 2; false where it is closed, or a test or a notebook has replaced it."""
    try:
        return sys.stderr.fileno() == _STDERR
    except (OSError, ValueError, AttributeError):
        return False


def _print(line: str) -> None:
    # print() takes a missing stderr for stdout, which is for results.
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def _write(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, data)
