"""Our own engine, a process of its own on loopback: the OpenAI dialect behind a token made at its start.

It takes the knobs of the open engines (top_k, min_p, repetition_penalty ...), so nothing is left out.
"""

from __future__ import annotations

from providers.base import Call, Capabilities
from providers.openai_like import OpenAILike


class Local(OpenAILike):
    name = "local"
    # Images: if its model takes them, as its deployment says.
    capabilities = Capabilities(operations=frozenset({"chat", "completions", "embeddings"}), file_input=False)

    def headers(self, call: Call) -> tuple[tuple[str, str], ...]:
        return (("x-farebox-tenant", call.tenant),) if call.tenant else ()
