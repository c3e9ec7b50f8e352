"""What `--help` shows of a command: words for people, not the types of Python."""

import inspect
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


def make_readable(group: typer.Typer) -> None:
    """Let all commands of a group, and of the groups in it, explain themselves in plain words.

    The width of the terminal breaks the lines of their texts, not that of the source code.
    """
    group.info.cls = _Group
    for command in group.registered_commands:
        command.cls = _Command
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(one.split()) for one in paragraphs)
    for below in group.registered_groups:
        if below.typer_instance is not None:
            make_readable(below.typer_instance)


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _untyped(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}").replace("}...", "...") for piece in super().collect_usage_pieces(ctx)]


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _untyped(super().get_params(ctx))


def _untyped(parameters: list[Any]) -> list[Any]:
    """Say no type of a flag, which takes no value, nor of an argument, which has a name."""
    for one in parameters:
        if one.param_type_name == "argument" or one.is_flag:
            one.display_type_rich = _no_type
    return parameters


def _no_type(ctx: Any) -> str:  # noqa: ARG001  typer gives it
    return ""
