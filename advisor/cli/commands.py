"""What all commands have in common: how they are registered, what --help looks like, where values come from.

`app.command("name")(module.command)` is all that a new one needs. It then has --quiet, --verbose and -h; its
options stand in the groups below, and each can be set by an environment variable; the lines below
"Examples:" at the end of its docstring are shown as they are.
"""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from advisor.cli import talk, trust
from advisor.cli.usage import UsageError
from advisor.errors import DEBUG, InputError
from advisor.names import near, one_of

# The groups of --help, in their order, with the options by the names of their parameters.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Model": ("arch", "trust", "trust_memory", "trust_time", "input_size", "optimizer", "batch_size"),
    "Data": (
        "data",
        "add",
        "retain",
        "unlabelled",
        "labels",
        "groups",
        "resize",
        "channels",
        "orientation",
        "rehearse",
        "scenario",
        "classes",
        "mean",
        "std",
        "strict",
    ),
    "Limits": (
        *("ram", "ram_includes_runtime", "runtime_overhead", "flops_budget", "storage", "step_time"),
        *("total_time", "energy"),
        *("max_trainable", "max_overhead", "metric", "min_accuracy", "min_retained"),
        *("tolerance", "prefer", "warn", "target"),
    ),
    "Search": (
        *("methods", "ranks", "candidate", "probe_time", "epochs", "learning_rate", "no_probe", "no_verify"),
        *("augment", "as_advised", "best"),
        *("executor", "device", "store", "no_store", "seed", "restart"),
    ),
    "Options": (),  # all others
    "Output": (
        "report",
        "form",
        "runtime",
        "json",
        "markdown",
        "junit",
        "sarif",
        "github",
        "output",
        "folder",
        "by",
        "everything",
        "quiet",
        "verbose",
    ),
    "Other": ("show_completion", "install_completion", "version", "help"),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
_PREFIX = "PEFT_ADVISOR_"
_NOT_FROM_ENVIRONMENT = ("help", "version", "show_completion", "install_completion")
_METAVARS: Mapping[Any, str] = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
_YES, _NO = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
_FLAGS = dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the result and errors alone: no progress, no hints.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more on stderr: each step with its time, tracebacks.")
]


class App(typer.Typer):
    """A typer app whose commands are ours."""

    def __init__(self, *, callback: Callable[..., None] | None = None, **settings: Any) -> None:
        def with_loudness(quiet: Quiet = False, verbose: Verbose = False) -> None:
            pass

        super().__init__(
            cls=Group,
            callback=callback or with_loudness,
            no_args_is_help=True,
            add_completion=False,  # ours knows more: `advisor.cli.completion`
            pretty_exceptions_enable=False,
            rich_markup_mode=None,  # rich takes longer to import than --help may
            **settings,
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a function under that name, with the options that all have besides its own."""
        register = super().command(name, cls=Command, **settings)
        return lambda function: register(_with_options_of_all(function, name))


class _Ours:
    """Of commands and groups alike. Set up once typer has made the parameters out of the function's."""

    help: str | None
    examples: str

    def set_up(self: Any, *, reads_environment: bool) -> None:
        self.context_settings["help_option_names"] = ["-h", "--help"]
        text, _, examples = (self.help or "").partition("\nExamples:\n")
        self.help, self.examples = text, inspect.cleandoc(examples)
        for param in self.params:
            kind = getattr(getattr(param, "type_descriptor", None), "annotation", None)
            if get_origin(kind) is list:
                (kind,) = get_args(kind)
            if kind in _METAVARS or kind is bool or get_origin(kind) is Literal:
                param._runtime_param = _Value(kind)
            is_option = param.param_type_name == "option"
            if param.metavar is None and not is_option:
                param.metavar = param.name.upper()
            elif param.metavar is None:
                param.metavar = _METAVARS.get(kind) or "|".join(get_args(kind)) or None
            if reads_environment and is_option and param.name not in _NOT_FROM_ENVIRONMENT:
                param.envvar, param.show_envvar = variable_of(param), False

    def parse_args(self: Any, ctx: Any, args: list[str]) -> Any:
        """As ever; where that fails, the error says of which command."""
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]
        except UsageError as error:
            error.ctx = error.ctx or ctx  # type: ignore[attr-defined]
            raise

    def get_help_option(self: Any, ctx: Any) -> Any:
        """The one for -h and --help, whose value needs no pydantic either."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        option._runtime_param = _Value(bool)
        return option

    def format_options(self: Any, context: Any, formatter: Any) -> None:
        """The arguments, then the options by group."""
        arguments: list[tuple[str, str]] = []
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for param in self.get_params(context):
            if param.hidden:
                continue
            if param.param_type_name == "argument":
                arguments.append((param.metavar, param.help or ""))
            else:
                groups[_GROUP_OF.get(param.name, "Options")].append(param.get_help_record(context))
        for title, rows in ({"Arguments": arguments} | groups).items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self: Any, context: Any, formatter: Any) -> None:
        """The examples, as they stand in the docstring, and that the environment counts."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        variables = [param.envvar for param in self.get_params(context) if param.envvar]
        if variables:
            formatter.write_paragraph()
            formatter.write_text(
                f"Every option can be set in the environment, too, such as {variables[0]}, flags by 1 or 0; "
                "what is typed goes first."
            )


class Command(_Ours, TyperCommand):
    """A command."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.set_up(reads_environment=True)

    def invoke(self, ctx: Any) -> Any:
        """Run it as loudly as was asked for, and tell what it takes from where nobody may look."""
        asked: dict[str, int] = {}
        for context in (ctx, *_parents(ctx)):
            for name in ("quiet", "verbose"):
                if context.params.get(name):
                    typed = context.get_parameter_source(name).name == "COMMANDLINE"
                    asked[name] = max(asked.get(name, 0), 1 + typed)
        talk.speak(talk.loudness_of(asked))
        if trust.has_to_be_apart(ctx):
            limits = (ctx.params["trust_memory"], ctx.params["trust_time"])
            raise typer.Exit(trust.run_apart(ctx, ctx.find_root().obj, *limits))
        if ctx.params.get("trust"):
            trust.tell()
        _taken.clear()
        _taken.update(_from_environment(ctx))
        if _taken:
            talk.notice(f"from the environment: {_assignments()}")
        from_file = [
            f"{max(param.opts, key=len)} {ctx.params[param.name]}"
            for param in ctx.command.params
            if getattr(ctx.get_parameter_source(param.name), "name", "") == "DEFAULT_MAP"
        ]
        if from_file:
            talk.notice(f"from pyproject.toml: {', '.join(from_file)}")
        for name, meant in _mistyped(ctx.find_root().command).items():
            talk.notice(f"{name} sets no option; did you mean {meant}?")
        return super().invoke(ctx)


class Group(_Ours, TyperGroup):
    """A command that has commands."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.set_up(reads_environment=False)  # their options are those of each command, too

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each with the first sentence about it, whole."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, _first_sentence(command.help)) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The commands first: they are what one looks for."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)


def variable_of(param: Any) -> str:
    """`--flops-budget` -> `PEFT_ADVISOR_FLOPS_BUDGET`."""
    return _PREFIX + max(param.opts, key=len).lstrip("-").replace("-", "_").upper()


def typed_command() -> str:
    """The command line as it was typed, with what the environment gave: run again, it asks the same."""
    return f"{_assignments()} {shlex.join(['peft-advisor', *sys.argv[1:]])}".strip()


_taken: dict[str, str] = {}  # by the command that runs, from the environment


def _from_environment(context: Any) -> dict[str, str]:
    return {
        param.envvar: os.environ[param.envvar]
        for param in context.command.params
        if getattr(context.get_parameter_source(param.name), "name", "") == "ENVIRONMENT"
        and param.name not in ("quiet", "verbose")
    }


def _mistyped(root: Any) -> dict[str, str]:
    """Variables that set no option of any command, with the near ones that do."""
    known = {*_variables(root)}
    found = {}
    for name in {name for name in os.environ if name.startswith(_PREFIX)} - known:
        meant = near(name.removeprefix(_PREFIX), [each.removeprefix(_PREFIX) for each in known])
        if meant and name != DEBUG:
            found[name] = _PREFIX + meant[0]
    return found


def _variables(command: Any) -> Iterator[str]:
    yield from (param.envvar for param in command.params if param.envvar)
    for each in getattr(command, "commands", {}).values():
        yield from _variables(each)


def _assignments() -> str:
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in _taken.items())


def _parents(context: Any) -> list[Any]:
    return [] if context.parent is None else [context.parent, *_parents(context.parent)]


def _first_sentence(text: str | None) -> str:
    paragraph = " ".join((text or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".") + "."


def _with_options_of_all(function: Callable[..., None], name: str | None) -> Callable[..., None]:
    """The function with parameters more, which `Command.invoke` has read already."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> None:
        function(*arguments, **{name: value for name, value in named.items() if name not in added})

    signature = inspect.signature(function, eval_str=True)
    added: dict[str, Any] = {"quiet": Quiet, "verbose": Verbose}
    if "trust" in signature.parameters and name not in trust.OWN_CHILDREN:
        added |= {"trust_memory": trust.TrustMemory, "trust_time": trust.TrustTime}
    more = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if kind in (Quiet, Verbose) else None,
            annotation=kind,
        )
        for name, kind in added.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    run.__annotations__ = function.__annotations__ | added
    return run


class _Value:
    """Text becomes a number, a path, yes or no, or one of several words.

    typer does so through pydantic, whose import takes as long as all of --help.
    """

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value, which is text where it was typed, or several of them. Raises BadParameter."""
        if param.multiple or param.nargs == -1:
            return tuple(self._one(each, param, ctx) for each in value or ())
        return self._one(value, param, ctx)

    def _one(self, value: Any, param: Any, ctx: Any) -> Any:
        if self._kind is str or not isinstance(value, str):
            return value
        try:
            if get_origin(self._kind) is Literal:
                return one_of("", value, get_args(self._kind))
            return _FLAGS[value.strip().lower()] if self._kind is bool else self._kind(value)
        except InputError as error:
            raise typer.BadParameter(str(error).strip(), ctx=ctx, param=param) from error
        except (ValueError, KeyError) as error:
            what = {int: "a whole number", float: "a number", bool: "yes or no: write 1 or 0"}
            raise typer.BadParameter(f"{value!r} is not {what[self._kind]}", ctx=ctx, param=param) from error
