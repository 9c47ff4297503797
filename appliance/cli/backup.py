"""`appliance backup` and `appliance restore`."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.session import Progress, Session, emit, json_option, pass_session, say, stoppable
from appliance.errors import DONE, PARTLY


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--link", is_flag=True, help="A folder on the same disk shares the bytes of the index and the adapters.")
@json_option
@pass_session
def backup(session: Session, target: Path, link: bool, as_json: bool) -> int:
    """Copy the workspace to TARGET, a new folder or FILE.zip, while it is in use; checked before it is called done.

    The models' cache and the source documents are not part of it; secrets in the configuration are left out. Exit code 3 where the
    workspace itself lacks files that its database names.
    """
    from appliance.backup.backup import backup as make

    with stoppable("stopped; there is no backup"), Progress() as progress:
        made = make(session.workspace, target, link=link, progress=progress)
    emit(
        made.to_json(), as_json, lambda: click.echo(f"{made.place}: {made.files} files, {made.bytes:,} bytes, generation {made.generation}")
    )
    if made.redacted:
        say(f"left out, so set them again after a restore: {', '.join(made.redacted)}")
    if made.missing:
        say(f"not in the workspace, and so not in the backup: {', '.join(made.missing)}")
    return PARTLY if made.missing else DONE


@click.command()
@click.argument("source", metavar="BACKUP", type=click.Path(path_type=Path))
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace the workspace in FOLDER; it is kept aside.")
@click.option(
    "--ledger",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The workspace that tells what was deleted since; default: the one in FOLDER.",
)
@click.option("--without-ledger", is_flag=True, help="Go on where that cannot be read: deleted documents may come back.")
@click.option("--check", "check_only", is_flag=True, help="Only compare every file with its hash.")
@json_option
@pass_session
def restore(
    session: Session,
    source: Path,
    folder: Path | None,
    force: bool,
    ledger: Path | None,
    without_ledger: bool,
    check_only: bool,
    as_json: bool,
) -> None:
    """Bring BACKUP back as the workspace in FOLDER (default: that of --workspace).

    What was taken back since the backup stays taken back: deleted documents, revoked keys, withdrawn answers.
    """
    from appliance.backup.restore import check
    from appliance.backup.restore import restore as bring_back

    with stoppable("stopped; nothing was changed"), Progress() as progress:
        if check_only:
            found = check(source, progress).manifest
            data = {"backup": str(source), "created_at": found.created_at, "files": len(found.files), "bytes": found.bytes}
            emit(data, as_json, lambda: click.echo(f"{source}: {len(found.files)} files are as they were written at {found.created_at}"))
            return
        target = folder or session.given
        if target is None:
            raise click.UsageError("name the FOLDER to restore into")
        done = bring_back(source, target, force=force, ledger=ledger, without_ledger=without_ledger, progress=progress)
    emit(done.to_json(), as_json, lambda: click.echo(f"{done.workspace}: generation {done.generation} as of {done.created_at}"))
    back = done.taken_back
    if back is None:
        say("nothing told what was deleted since the backup; name the former workspace with --ledger if there is one")
    else:
        say(f"taken out again: {back.documents} deleted documents, {back.keys} revoked keys, {back.answers} withdrawn answers")
    if done.replaced is not None:
        say(f"the former workspace is in {done.replaced}; delete it when it is no longer needed")
    if done.redacted:
        say(f"set these again: {', '.join(done.redacted)}")
