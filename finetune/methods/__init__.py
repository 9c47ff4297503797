"""The training methods, one short file each."""

from __future__ import annotations

from pathlib import Path

from finetune.methods.base import Method
from finetune.methods.dora import Dora
from finetune.methods.dpo import Dpo
from finetune.methods.freeze import Freeze
from finetune.methods.full import Full
from finetune.methods.galore import Galore
from finetune.methods.lora import Lora
from finetune.methods.lora_plus import LoraPlus
from finetune.methods.pissa import Pissa
from finetune.methods.prefix import Prefix
from finetune.methods.pretrain import Pretrain
from finetune.methods.qlora import QLora
from finetune.methods.rslora import RsLora
from finetune.settings import TrainSettings


def method_of(settings: TrainSettings, work: Path) -> Method:
    """The method that `settings` name; `work` is a scratch folder for it."""
    methods: dict[str, type[Method]] = {
        "lora": Lora,
        "qlora": QLora,
        "dora": Dora,
        "rslora": RsLora,
        "pissa": Pissa,
        "lora+": LoraPlus,
        "prefix": Prefix,
        "freeze": Freeze,
        "full": Full,
        "galore": Galore,
        "dpo": Dpo,
        "pretrain": Pretrain,
    }
    return methods[settings.method](settings, work)
