"""Rows of a data set on the Hugging Face hub, where this machine can reach it."""

from __future__ import annotations

import re
from pathlib import Path

from finetune.reading import Row, finite
from finetune.types import DatasetError

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Seconds until a hub that does not answer counts as out of reach.
_PATIENCE = 10


class Unreachable(Exception):
    """The hub does not answer (then `silent`, and need not be asked again), or does not have it."""

    def __init__(self, reason: str, silent: bool) -> None:
        super().__init__(reason)
        self.silent = silent


def hub_rows(name: str, subset: str | None, folder: str | None, split: str) -> list[Row]:
    """Every row of the split. Raises Unreachable, and DatasetError for what cannot be a data set's name."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise DatasetError(f"hf_hub_url: {name!r} is no data set's name on the hub; expected ORGANISATION/NAME")
    if Path(name).exists():
        here = Path(name).resolve()
        raise DatasetError(f"hf_hub_url: {name!r} is also {here}, which would be read in its place; start from another folder")
    import huggingface_hub
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    # Its first base is the error of whichever HTTP library the hub's client uses.
    failures: tuple[type[BaseException], ...] = (HfHubHTTPError.__bases__[0], OSError, ValueError)
    offline = huggingface_hub.is_offline_mode()
    try:
        if not offline:
            # One question with a limit: loading would go on trying for half a minute.
            huggingface_hub.HfApi().dataset_info(name, timeout=_PATIENCE)
        rows = load_dataset(name, name=subset, data_dir=folder, split=split)
    except failures as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreachable(reason, silent=not offline and not isinstance(error, HfHubHTTPError | ValueError)) from error
    return [Row(name, number, finite(row)) for number, row in enumerate(rows.to_list(), 1)]
