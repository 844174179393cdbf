"""RIPPLe: Rubin sky to neural-network tensors, and back as ranked strong-lens candidates."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

#: Public name -> module that defines it, and its name there. Loaded when it is used: `import ripple` loads
#: neither torch nor lsst nor numpy.
_PLACES: dict[str, tuple[str, str]] = {
    "open": ("ripple.notebook.artefact", "open_directory"),
    "open_artefact": ("ripple.storage.artefact", "open_artefact"),
    "open_coadd": ("ripple.rubin.open", "open_coadd_file"),
    "open_survey": ("ripple.notebook.survey", "open_survey"),
    "verify": ("ripple.storage.artefact", "verify"),
    "write_cutouts": ("ripple.storage.arrays", "write_cutouts"),
    "write_tensors": ("ripple.storage.arrays", "write_tensors"),
    "denormalize": ("ripple.notebook.fluxes", "denormalize"),
    "TensorDataset": ("ripple.learn.data.dataset", "TensorDataset"),
    "Artefact": ("ripple.notebook.artefact", "Artefact"),
    "Cutout": ("ripple.notebook.cutout", "Cutout"),
    "Cutouts": ("ripple.notebook.cutouts", "Cutouts"),
    "Model": ("ripple.notebook.model", "Model"),
    "Scores": ("ripple.notebook.artefact", "Scores"),
    "Survey": ("ripple.notebook.survey", "Survey"),
    "similar": ("ripple.notebook.similar", "similar"),
}
#: Verbs as functions. `import` is a keyword, and `ripple.report` is a package.
_VERBS = (
    "simulate", "fetch", "import_cutouts", "preprocess", "inject", "train", "score", "search",
    "committee", "compare", "explain", "completeness", "write_report", "vet", "consensus", "match", "embed",
    "export", "import_model", "export_model",
)  # fmt: skip

if TYPE_CHECKING:
    from ripple.learn.data.dataset import TensorDataset as TensorDataset
    from ripple.notebook.artefact import Artefact as Artefact
    from ripple.notebook.artefact import Scores as Scores
    from ripple.notebook.artefact import open_directory as open  # noqa: F401
    from ripple.notebook.cutout import Cutout as Cutout
    from ripple.notebook.cutouts import Cutouts as Cutouts
    from ripple.notebook.fluxes import denormalize as denormalize
    from ripple.notebook.model import Model as Model
    from ripple.notebook.similar import similar as similar
    from ripple.notebook.survey import Survey as Survey
    from ripple.notebook.survey import open_survey as open_survey
    from ripple.rubin.open import open_coadd_file as open_coadd  # noqa: F401
    from ripple.storage.arrays import write_cutouts as write_cutouts
    from ripple.storage.arrays import write_tensors as write_tensors
    from ripple.storage.artefact import open_artefact as open_artefact
    from ripple.storage.artefact import verify as verify


def __getattr__(name: str) -> object:
    if name in _PLACES:
        module, defined = _PLACES[name]
        return getattr(importlib.import_module(module), defined)
    if name in _VERBS:
        return importlib.import_module("ripple.notebook.verbs").function(name)
    raise AttributeError(f"module 'ripple' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*_PLACES, *_VERBS, "__version__"))
