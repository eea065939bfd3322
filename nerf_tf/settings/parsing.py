"""Command line and config file to `Settings`, and `Settings` to args.txt.

The command line takes precedence over the `key = value` file that `--config` names. A mistake in either ends the
program with one line on stderr and exit code 2. TensorFlow is not imported here: it takes seconds, and the answer to a
mistake should come at once.
"""

from __future__ import annotations

import difflib
import io
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import configargparse
from absl import flags

from nerf_tf.settings.options import GROUPS, OPTIONS, Option
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import readers

# Most characters of a config file, and of a line in it: configs/ needs 831 and 120, and long lines take the parser
# seconds.
_LARGEST_FILE, _LONGEST_LINE = 2**16, 2**10
_PACKAGE = Path(__file__).parent.parent


class _Parser(flags.ArgumentParser):
    """Parses and checks the text of one option for absl."""

    def __init__(self, option: Option) -> None:
        self._option = option
        self.syntactic_help = option.expected()

    def parse(self, argument: object) -> object:
        return self._option.parse(str(argument))

    def flag_type(self) -> str:
        return self._option.kind.__name__


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines all flags on `flag_values`; does nothing where they are defined already."""
    for option in OPTIONS.values():
        if option.name not in flag_values:
            how = {"serializer": flags.ArgumentSerializer(), "boolean": option.kind is bool}
            flags.DEFINE(_Parser(option), option.name, option.default, option.help, flag_values, **how)


def parse_flags(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Sets flags from the command line and from the file that its --config names.

    Args:
        argv: program name and arguments.
        flag_values: where the flags are defined (if they are not yet) and set.

    Returns:
        The program's name alone: nothing else may be left over.

    Raises:
        SystemExit: with code 0 after printing help; with code 2 after one line on stderr that says what is wrong.
    """
    define_flags(flag_values)
    asked = {argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")}
    if asked & {"h", "help", "helpshort", "helpfull"}:
        sys.stdout.write(help_text(flag_values, full="helpfull" in asked))
        sys.exit(0)
    try:
        rest = flag_values(list(argv))
        if len(rest) > 1:
            raise ValueError(_explain_stray_word(argv, rest))
        _read_config(flag_values)
        if read_settings(flag_values).expname is None:
            raise ValueError("--expname is missing: name the run, on the command line or in the --config file")
    except flags.UnrecognizedFlagError as error:
        _fail(f"unknown flag --{error.flagname}{_suggest_name(error.flagname, flag_values, '--')}")
    except (flags.Error, ValueError, OSError) as error:
        _fail(str(error))
    return rest


def read_settings(flag_values: flags.FlagValues = flags.FLAGS) -> Settings:
    """The settings that parsed flags stand for.

    Raises:
        ValueError: values contradict each other, or a text cannot be written to args.txt.
    """
    values = {name: flag_values[name].value for name in OPTIONS}
    for name, value in values.items():
        if isinstance(value, str):
            _check_text(name, value)
    commanded = frozenset(name for name in OPTIONS if flag_values[name].present)
    set_anywhere = frozenset(name for name in OPTIONS if not flag_values[name].using_default_value)
    return Settings(**values, from_command_line=commanded, from_file=set_anywhere - commanded)


def parse_settings(arguments: Sequence[str]) -> Settings:
    """The settings that a command line and its --config file stand for; exits as `parse_flags` does."""
    flag_values = flags.FlagValues()
    parse_flags(["nerf_tf", *arguments], flag_values)
    return read_settings(flag_values)


def args_text(settings: Settings) -> str:
    """The text of args.txt: all flags as sorted `name = value` lines, which --config reads back."""
    return "".join(f"{name} = {_quote(getattr(settings, name))}\n" for name in sorted(OPTIONS))


def changed_flags(path: Path, names: Sequence[str], settings: Settings) -> dict[str, tuple[str, str]]:
    """Compares flags with an args.txt; returns for each that differs its value there, and its value now.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it does not hold `name = value` lines.
    """
    before, now = _read_file(str(path)), {name: str(getattr(settings, name)) for name in names}
    return {name: (str(before[name]), now[name]) for name in names if name in before and before[name] != now[name]}


def config_text(settings: Settings) -> str | None:
    """The text of the file named by --config, None without one."""
    return None if settings.config is None else find_config(settings.config).read_text(encoding="utf-8-sig")


def find_config(path: str) -> Path:
    """The config file that `--config` names; configs/... may also be one that comes with the package."""
    found = Path(path)
    if found.parts[:1] == ("configs",) and not found.exists():
        # An installed package holds configs/; a checkout has it beside the package.
        found = next((folder / path for folder in (_PACKAGE, _PACKAGE.parent) if (folder / path).is_file()), found)
    return found


def help_text(flag_values: flags.FlagValues = flags.FLAGS, full: bool = False) -> str:
    """The help page: flags in groups with their defaults; with `full`, also absl's own."""
    lines = ["usage: python -m nerf_tf [--config FILE] --expname NAME [flags]", ""]
    lines += ["A switch is given as --flag or --flag=True, and undone by --flag=False.", ""]
    for group, options in GROUPS.items():
        lines.append(f"{group}:")
        for option in options:
            values = "|".join(map(str, option.choices)) or "|".join([option.kind.__name__.upper(), *option.words])
            lines += _help_entry(
                f"--{option.name}" + ("" if option.kind is bool else f" {values}"), option.help, option.default
            )
        lines.append("")
    if full:
        lines.append("absl's own (command line only):")
        for name in sorted(set(flag_values) - set(OPTIONS)):
            lines += _help_entry(f"--{name}", flag_values[name].help, flag_values[name].default)
    return "\n".join(lines).rstrip() + "\n"


def _help_entry(title: str, meaning: str, default: object) -> list[str]:
    text = f"{' '.join(meaning.split())} (default: {default})"
    return [f"  {title}", *textwrap.wrap(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)]


def one_line(message: str) -> str:
    """Puts a message on one line and escapes control characters, which file names may hold."""
    text = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"nerf_tf: {one_line(message)}\n")
    sys.exit(2)


def _suggest_name(name: str, names: Iterable[str], dashes: str = "") -> str:
    known = {candidate.lower(): candidate for candidate in names}
    nearest = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {dashes}{known[nearest[0]]}?" if nearest else "; --help lists all flags"


def _explain_stray_word(argv: Sequence[str], rest: Sequence[str]) -> str:
    """The message about words that belong to no flag; most often the value of a switch after a space."""
    word, before = rest[1], argv[max(len(argv) - len(rest[1:]) - 1, 0)]
    name = before.lstrip("-")
    if name in OPTIONS and OPTIONS[name].kind is bool:
        return f"stray word {word!r} after --{name}, a switch: write --{name} or --{name}={word}"
    return f"stray word {word!r}: every argument is --flag or --flag=value"


def _read_config(flag_values: flags.FlagValues) -> None:
    """Sets the flags that the command line left alone from the file named by --config."""
    path = flag_values["config"].value
    if path is None:
        return
    for name, value in read_config(path).items():
        if not flag_values[name].present:
            flag_values[name].value = value
            flag_values[name].using_default_value = False


def read_config(path: str) -> dict[str, object]:
    """Reads a config file; returns the value of each flag that it sets.

    Raises:
        FileNotFoundError, ValueError: no such file, or a key or a value in it is wrong.
    """
    values = {}
    for key, value in _read_file(path).items():
        name = key.removeprefix("--")
        if name == "config":  # args.txt names the config of its run; configs do not nest
            continue
        if name not in OPTIONS:
            raise ValueError(f"{path}: unknown key {key!r}{_suggest_name(name, OPTIONS)}")
        if isinstance(value, list):
            raise ValueError(f"{path}: {name} is a list; expected {OPTIONS[name].expected()}")
        try:
            values[name] = OPTIONS[name].parse(value)
        except ValueError as error:
            raise ValueError(f"{path}: {name} = {value}: {error}") from None
    return values


def _read_file(path: str) -> dict[str, str | list]:
    text = readers.read_text(find_config(path), _LARGEST_FILE, "; --config takes a file of `key = value` lines")
    try:
        if max(map(len, text.splitlines()), default=0) > _LONGEST_LINE:
            raise ValueError(f"a line is longer than {_LONGEST_LINE} characters")
        return configargparse.DefaultConfigFileParser().parse(io.StringIO(text))
    except (*readers.PARSER_ERRORS, configargparse.ConfigFileParserException) as error:
        raise ValueError(f"{path}: not a config file of `key = value` lines: {error}") from None


def _quote(value: object) -> str:
    """Writes a value so that the config file parser reads it back; raises ValueError if it cannot."""
    text = str(value)
    for spelling in (text, f'"{text}"', f"'{text}'"):
        if configargparse.DefaultConfigFileParser().parse(io.StringIO(f"key = {spelling}")) == {"key": text}:
            return spelling
    raise ValueError("a value with line breaks, or all within [ ], cannot be written to args.txt")


def _check_text(name: str, value: str) -> None:
    """Raises ValueError about a text that is surely a mistake, or that args.txt cannot hold."""
    if not value.strip() or value.startswith("--"):
        raise ValueError(f"--{name} has no value (found {value!r}); write --{name}=VALUE")
    if not value.replace("\n", " ").isprintable():
        raise ValueError(f"--{name}={value}: holds characters that cannot be printed")
    try:
        _quote(value)
    except ValueError as error:
        raise ValueError(f"--{name}={value}: {error}") from None
