"""May it go on? Who asks (keys), what it may cost at worst (budget), and whether there is room for it (limits)."""

from gateway.admission.gate import Admission, Gate
from gateway.admission.keys import KeyStore
from gateway.admission.principal import Budget, Limit, Principal

__all__ = ["Admission", "Budget", "Gate", "KeyStore", "Limit", "Principal"]
