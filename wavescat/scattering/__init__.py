"""The scattering transform: filters, the definition, the fast form, and the layer."""

from .filters import FilterBank, LearnedBank, filter_bank
from .layer import Scattering2D, SvdScattering2D, UnboundedScattering2D, kymatio_scattering
from .transform import scattering2d

__all__ = [
    "FilterBank",
    "LearnedBank",
    "Scattering2D",
    "SvdScattering2D",
    "UnboundedScattering2D",
    "filter_bank",
    "kymatio_scattering",
    "scattering2d",
]
