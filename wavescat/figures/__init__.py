"""Figures: `from wavescat import figures` offers the ones listed here, each loaded when it is used."""

import importlib

# name → the module that defines it
_PUBLIC = {
    "COLOURS": "style",
    "MARKERS": "style",
    "STYLE": "style",
    "figure": "style",
    "hide_axes": "style",
    "plain_text": "style",
    "format_of": "files",
    "save": "files",
    "show": "page",
    "show_film": "page",
    "table": "page",
    "training_curves": "curves",
    "accuracy_by_orientations": "accuracy",
    "accuracy_by_size": "accuracy",
    "differences_by_size": "accuracy",
    "accuracy_drops": "dots",
    "accuracy_per_seed": "dots",
    "dot_plot": "dots",
    "leaderboard": "dots",
    "predicted_vs_true": "dots",
    "confusion_matrix": "matrices",
    "heatmap": "matrices",
    "cost_by_setting": "costs",
    "cost_growth": "costs",
    "speedups": "costs",
    "error_gallery": "images",
    "image_gallery": "images",
    "saliency_maps": "images",
    "class_errors": "errors",
    "reliability_diagram": "errors",
    "distance_by_scales": "stability",
    "stability_curves": "stability",
    "path_roses": "roses",
    "measure_orientations": "inputs",
    "PARTS": "parts",
    "filter_grid": "grids",
    "wavelet_rows": "grids",
    "frame_bounds": "frames",
    "littlewood_paley": "frames",
    "match": "matching",
    "Recorder": "recorder",
    "load_recording": "recorder",
    "before_after": "learning",
    "parameter_curves": "learning",
    "film": "films",
    "coefficients_disk": "disk",
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'wavescat.figures' has no attribute {name!r}")
    return getattr(importlib.import_module(f"wavescat.figures.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
