"""Wavelet scattering in convolutional networks: layers, models, and studies that can be run again."""

import importlib

__version__ = "0.1.0"

# name → the module that defines it; loaded when it is first asked for, since torch takes seconds
_PUBLIC = {
    "Scattering2D": "scattering.layer",
    "scattering2d": "scattering.transform",
    "FilterBank": "scattering.bank",
    "LearnedBank": "scattering.learned",
    "filter_bank": "scattering.bank",
    "ScatteringTransformer": "scattering.estimators",
    "Experiment": "runs.experiment",
    "experiment": "runs.experiment",
    "run": "training.run",
    "load_model": "training.inference",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'wavescat' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wavescat.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
