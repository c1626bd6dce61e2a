"""jaxtyping's import hook without what it does to others.

It looks for compiled files of its own name while a module of ours is executed, and so for those of
all that this module imports: torch, transformers and 3,600 modules more are compiled again in every
process, some 13 s of CPU.
"""

from functools import partial
from types import ModuleType
from unittest.mock import patch

from jaxtyping import _import_hook


def _execute(loader: _import_hook._JaxtypingLoader, module: ModuleType) -> None:
    """Look for the compiled file of this module alone under that name."""
    own_name = partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", own_name):
        code = loader.get_code(module.__name__)
    assert code is not None
    exec(code, module.__dict__)


_import_hook._JaxtypingLoader.exec_module = _execute
