"""What handlers ask for beside their own parameters. The router provides all three."""

from __future__ import annotations

from litestar.di import NamedDependency

from gateway.admin.auth.roles import Actor, Sight
from gateway.admin.services import Services

Office = NamedDependency[Services]
Caller = NamedDependency[Actor]
Within = NamedDependency[Sight]
"""As parameter `sight`: what a list may show."""
