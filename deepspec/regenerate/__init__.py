"""Text that the target itself writes: answers to the prompts of any source, by the engine or by a server."""

from deepspec.regenerate.local import EngineWriter
from deepspec.regenerate.server import Server, ServerWriter
from deepspec.regenerate.session import Regeneration, RegenerationReport, regenerate

__all__ = ["EngineWriter", "Regeneration", "RegenerationReport", "Server", "ServerWriter", "regenerate"]
