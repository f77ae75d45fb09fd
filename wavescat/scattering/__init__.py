"""The scattering transform: filters, the definition, the fast form, and the layer."""

from .bank import FilterBank, filter_bank
from .layer import Scattering2D
from .learned import LearnedBank
from .oracle import kymatio_scattering
from .published import SvdScattering2D, UnboundedScattering2D
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
