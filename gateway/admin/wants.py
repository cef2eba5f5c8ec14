"""What handlers ask for beside their own parameters. The router provides both."""

from __future__ import annotations

from litestar.di import NamedDependency

from gateway.admin.auth.roles import Actor
from gateway.admin.services import Services

Office = NamedDependency[Services]
Caller = NamedDependency[Actor]
