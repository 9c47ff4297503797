"""The command line: lazily loaded commands, one place for errors and exit codes."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path

import click

from appliance.cli.session import Session
from appliance.errors import FAILURE, ApplianceError

# Command -> module with a click command or group of the same name (`_` for `-`), and its line in --help.
COMMANDS = {
    "init": ("workspace", "Create a workspace."),
    "ingest": ("knowledge", "Bring documents into the knowledge base."),
    "search": ("knowledge", "Search the knowledge base."),
    "ask": ("ask", "Ask a question."),
    "tune": ("tuning", "Train an adapter."),
    "export": ("export", "Merge an adapter into its base: a model of its own."),
    "worker": ("worker", "Run jobs, refresh and retrain on schedule."),
    "serve": ("serve", "Serve the OpenAI-compatible API and the web page."),
    "bench": ("bench", "Load a running appliance and measure it."),
    "advise": ("advise", "Retrieval or fine-tuning? The scenario framework and the return."),
    "demo": ("demo", "Run the main job end to end on the sample knowledge base."),
    "doctor": ("doctor", "Check the machine, the models and the workspace."),
    "document": ("documents", "List, show, compare and remove documents."),
    "index": ("knowledge", "Look at the index."),
    "dataset": ("datasets", "Register and check data sets."),
    "adapter": ("adapters", "List, promote and roll back adapters."),
    "router": ("router", "Train, explain and watch the router."),
    "verified": ("verified", "Answers that experts approved."),
    "feedback": ("feedback", "What people said about answers."),
    "review": ("review", "Questions that need a person."),
    "eval": ("evaluation", "Measure every arm on a question set."),
    "key": ("keys", "API keys."),
    "job": ("jobs", "Long work asked of a running appliance."),
    "audit": ("audit", "Who did what and when."),
    "backup": ("backup", "Copy the workspace while it is in use."),
    "restore": ("backup", "Bring a backup back."),
    "model": ("models", "Fetch and check models."),
    "config": ("workspace", "Look at the configuration."),
}


def _name_workspace(ctx: click.Context, _: click.Parameter, folder: Path | None) -> None:
    session = ctx.find_object(Session)
    if folder is not None and session is not None:
        session.given = folder


def take_workspace(command: click.Command) -> None:
    """Let `--workspace` stand behind the command as well as before it."""
    if isinstance(command, click.Group):
        for child in command.commands.values():
            take_workspace(child)
    elif not any(parameter.name == "workspace" for parameter in command.params):
        command.params.append(
            click.Option(
                ["--workspace", "-w"],
                type=click.Path(path_type=Path),
                expose_value=False,
                callback=_name_workspace,
                help="The workspace folder.",
            )
        )


class LazyGroup(click.Group):
    """Imports a command's module only when it is used, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"appliance.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name)
        take_workspace(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--workspace", "-w", type=click.Path(path_type=Path), help="The workspace folder (else APPLIANCE_WORKSPACE, else the nearest parent)."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one setting, e.g. --set retrieval.k=8. Repeatable.")
@click.version_option(package_name="appliance")
@click.pass_context
def cli(ctx: click.Context, workspace: Path | None, settings: tuple[str, ...]) -> None:
    """Question answering for domain teams: retrieval, fine-tuned adapters, and a router that knows which one to trust.

    Exit codes: 0 done, 1 failure, 2 usage, 3 partly done, 4 a gate was missed.
    """
    flags = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise click.UsageError(f"--set {setting!r}: expected KEY=VALUE, for example --set retrieval.k=8")
        flags[key] = value
    ctx.obj = Session(workspace, flags)
    ctx.call_on_close(ctx.obj.close)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; the process ends with the exit code of the contract."""
    sys.exit(run(argv))


def prepare_libraries() -> None:
    """The bars and advice of libraries are no talk of ours (their errors still show), and threads wait without spinning."""
    # On a machine with other work to do, spinning OpenMP threads made training four times slower; read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def run(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; every expected failure becomes one line on stderr."""
    prepare_libraries()
    from eval.types import EvalError
    from retrieval.types import RetrievalError

    try:
        result = cli.main(argv, prog_name="appliance", standalone_mode=False)
    except click.exceptions.Abort as error:
        click.echo(str(error) or "stopped; nothing half-done was left behind", err=True)
        return FAILURE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ApplianceError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (RetrievalError, EvalError) as error:
        click.echo(f"error: {error}", err=True)
        return FAILURE
    except OSError as error:
        click.echo(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", err=True)
        return FAILURE
    return result if isinstance(result, int) else 0
