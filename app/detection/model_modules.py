"""Python modules of a model's folder, run from the very bytes that were hashed.

Each model's modules are a package of their own, named after their content: two models may both have a
``detector.py``, and a changed file is imported anew. Inside it, neighbours are imported relatively
(``from .postprocess import merge``).
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from app.detection.model_content import ModelContent

PACKAGE_PREFIX = "framebox_model_"


def import_beside(content: ModelContent, module_name: str) -> ModuleType:
    """Return a module of the model's folder. Raises what it raises; ModelFault if its file has changed."""
    package = PACKAGE_PREFIX + content.fingerprint(0)[:32]
    if package not in sys.modules:
        # Stays, for imports that the model makes later: one small object for each version of a model.
        sys.meta_path.append(_FolderImporter(content, package))
    return importlib.import_module(f"{package}.{module_name}")


class _FolderImporter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and runs the modules of one model. Writes no bytecode into the folder, and reads none."""

    def __init__(self, content: ModelContent, package: str) -> None:
        self._content = content
        self._package = package

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - names alone decide
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == self._package:
            return ModuleSpec(fullname, self, is_package=True)
        file = self._file(fullname)
        if file is None:
            return None
        origin = str(self._content.files.folder / file)
        spec = ModuleSpec(fullname, self, origin=origin, is_package=file.endswith("/__init__.py"))
        spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        file = self._file(module.__name__)
        if file is not None:
            code = compile(self._content.read(file), str(module.__file__), "exec", dont_inherit=True)
            exec(code, vars(module))  # noqa: S102 - the administrator's code is what is asked for

    def _file(self, fullname: str) -> str | None:
        if not fullname.startswith(f"{self._package}."):
            return None
        path = fullname.removeprefix(f"{self._package}.").replace(".", "/")
        candidates = (f"{path}/__init__.py", f"{path}.py")
        return next((file for file in candidates if file in self._content.digests), None)
