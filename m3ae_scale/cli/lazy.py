"""A group of verbs that are imported when they are asked for, so that --help is quick."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyVerbs(click.Group):
    """A group whose verbs are imported by name; a verb's function has its name, "_" for "-"."""

    def __init__(self, *args: Any, verbs: Mapping[str, str], **kwargs: Any):
        """Take `verbs`: verb -> the module that holds it."""
        super().__init__(*args, **kwargs)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of their table."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb."""
        if cmd_name not in self.verbs:
            return None
        command: click.Command = getattr(import_module(self.verbs[cmd_name]), cmd_name.replace("-", "_"))
        return command
