"""EB-JDAT: train, attack and sample one classifier that is accurate, robust and generative.

>>> import ebjdat
>>> model = ebjdat.load("models/digits/ebjdat-jempp/0")

``load`` opens a trained or exported model, ``export`` writes one for others, ``Classifier`` is what
``load`` returns. They are looked up at first use, so that a stage that needs no PyTorch loads none.
"""

import importlib as _importlib
from typing import Any as _Any

__all__ = ["Classifier", "export", "load"]

__version__ = "0.6.0"

_HOMES = {"Classifier": "ebjdat.api", "load": "ebjdat.api", "export": "ebjdat.exporting"}


def __getattr__(name: str) -> _Any:
    """One of the public names, from the module that defines it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ebjdat' has no attribute {name!r}")
    found = getattr(_importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The module's names, those not looked up yet included."""
    return sorted({*globals(), *__all__})
