"""langchain-tests' ChatModelIntegrationTests through four LangChain packages; run by `tests.conformance.langchain`.

FAREBOX_SUITE_URL, FAREBOX_SUITE_KEY: the gateway. FAREBOX_SUITE_MODEL: what each class asks for.
Source: langchain-tests 1.1, read 2026-11.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_aws import ChatBedrockConverse
from langchain_core.language_models import BaseChatModel
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

URL, KEY, MODEL = (os.environ[f"FAREBOX_SUITE_{name}"] for name in ("URL", "KEY", "MODEL"))


class Suite(ChatModelIntegrationTests):
    """What each package promises of itself stays as the suite has it, but for what is said below."""

    __test__ = False

    @property
    def supports_image_inputs(self) -> bool:
        return False  # the suite fetches its picture from the internet; our own matrix has one of its own

    @property
    def supports_image_tool_message(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return True


class TestOpenAI(Suite):
    __test__ = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        told = {"x-farebox-losses": "lenient"}  # `name` of a message, `parallel_tool_calls`: not every dialect has them
        where = {"base_url": f"{URL}/v1", "api_key": KEY}
        return {"model": MODEL, **where, "stream_usage": True, "default_headers": told}


class TestOpenAIResponses(TestOpenAI):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}


class TestAnthropic(Suite):
    __test__ = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": URL, "api_key": KEY}


class TestGoogle(Suite):
    __test__ = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatGoogleGenerativeAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": URL, "google_api_key": KEY}


# The package guesses both from names that it knows.
CONVERSE = {"disable_streaming": False, "supports_tool_choice_values": ("auto", "any", "tool")}


class TestBedrock(Suite):
    __test__ = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatBedrockConverse

    @property
    def chat_model_params(self) -> dict[str, Any]:
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": KEY, "region_name": "us-east-1"}
        return {"model": MODEL, "endpoint_url": URL, "provider": "amazon", **keys, **CONVERSE}
