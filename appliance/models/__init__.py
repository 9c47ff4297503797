"""Model references and the store that fetches, checks and converts models once."""

from appliance.models.catalogue import Kind, known
from appliance.models.files import Progress
from appliance.models.refs import ModelRef
from appliance.models.store import ModelInfo, ModelStore

__all__ = ["Kind", "ModelInfo", "ModelRef", "ModelStore", "Progress", "known"]
