"""Parts, both ways. A part of the wire is one part of the neutral form, but for a lone signature, which seals the text
before it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from providers.dialects.gemini import wire
from providers.dialects.names import widen_name
from providers.dialects.sealed import Sealed, seal, unseal
from providers.neutral import (
    AudioPart,
    FilePart,
    ImagePart,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)

# A call that the model of another provider made has no signature, and Gemini 3 refuses unsigned calls. This word, which
# is valid base64, is Google's way out. Source: "Thought signatures", FAQ, read 2026-11.
NO_SIGNATURE: Final = "skip_thought_signature_validator"

# Parts that ran at Google: kept whole in the arguments of a server call, shown again only to this dialect.
SERVER_CALLS: Final = ("executableCode", "toolCall")

# Marks an id that we made because the API gave none (Vertex never does): such an id is not sent there.
MADE_ID: Final = "call-g-"


def made_id(scope: str, number: int) -> str:
    """An id for a call without one. scope: the response's id, so that two turns of a conversation never meet."""
    return f"{MADE_ID}{scope}-{number}" if scope else f"{MADE_ID}{number}"


# --- in ---------------------------------------------------------------------------------------------------------------


def part_in(part: wire.Part, make_id: str) -> Part | None:
    """make_id: for a function call without one. None for a part that says nothing we know.

    A function response is not read here: its id depends on the calls before it."""
    signature = part.thought_signature
    if part.text is not None:
        if part.thought:
            return thought_in(part.text, signature)
        return TextPart(part.text, signature=signature)
    if part.function_call is not None:
        call = part.function_call
        if not call.name:
            return None  # the tail of streamed arguments, which nobody asked for
        arguments = msgspec.json.encode(call.args if call.args is not None else {}).decode()
        return ToolCallPart(call.id or make_id, widen_name(call.name), arguments, signature=signature)
    if part.inline_data is not None:
        return media_in(part.inline_data.mime_type, part.inline_data.data)
    if part.file_data is not None:
        return file_in(part.file_data)
    for name, raw in (("executableCode", part.executable_code), ("toolCall", part.tool_call)):
        if raw is not None:
            arguments = msgspec.json.encode({name: raw}).decode()
            return ToolCallPart(str(raw.get("id") or make_id), name, arguments, kind="server", signature=signature)
    if part.code_execution_result is not None:
        output = part.code_execution_result.get("output")
        failed = part.code_execution_result.get("outcome") not in (None, "OUTCOME_OK")
        content = (TextPart(output if isinstance(output, str) else ""),)
        ident = str(part.code_execution_result.get("id") or "")
        return ToolResultPart(ident, content, name="codeExecutionResult", is_error=failed)
    if part.tool_response is not None:
        ident = str(part.tool_response.get("id") or "")
        content = (TextPart(msgspec.json.encode(part.tool_response).decode()),)
        return ToolResultPart(ident, content, name="toolResponse")
    if part.thought or signature is not None:
        return thought_in("", signature) if part.thought else TextPart("", signature=signature)
    return None


def paired(part: Part, last_call: str) -> Part:
    """A result of what ran at Google, under the id of the call it follows: the wire pairs them by order alone."""
    if isinstance(part, ToolResultPart) and not part.tool_call_id:
        return replace(part, tool_call_id=last_call)
    return part


def thought_in(text: str, signature: str | None) -> ReasoningPart:
    found = _opened(signature)
    if found is None:
        return ReasoningPart(text, signature, dialect=wire.NAME)
    return ReasoningPart(text, found.signature, found.redacted, found.id, found.dialect)


def _opened(signature: str | None) -> Sealed | None:
    if signature is None:
        return None
    try:
        text = base64.b64decode(signature, altchars=b"-_").decode("ascii")
    except (binascii.Error, ValueError):
        return None  # Google's own bytes
    return unseal(text)


def media_in(mime_type: str | None, data: str) -> Part:
    kind = (mime_type or "").lower()
    # google-genai writes base64 in the URL alphabet; every other API wants the plain one.
    data = data.translate(_PLAIN_BASE64)
    if kind.startswith("image/"):
        return ImagePart(mime_type, data)
    if kind.startswith("audio/"):
        return AudioPart(kind.removeprefix("audio/"), data)
    return FilePart(mime_type, data=data)


_PLAIN_BASE64: Final = str.maketrans("-_", "+/")


def file_in(file: wire.FileData) -> Part:
    if file.mime_type is not None and file.mime_type.startswith("image/"):
        return ImagePart(file.mime_type, url=file.file_uri)
    return FilePart(file.mime_type, url=file.file_uri)


def result_in(response: wire.FunctionResponse, ident: str) -> ToolResultPart:
    """`output` and `error` are the API's own words for what a tool says; any other object is the answer itself."""
    content: list[Part] = []
    is_error = False
    match response.response:
        case {"output": str(text), **rest} if not rest:
            content.append(TextPart(text))
        case {"error": str(text), **rest} if not rest:
            content.append(TextPart(text))
            is_error = True
        case None:
            pass
        case value:
            content.append(TextPart(msgspec.json.encode(value).decode()))
    content += [found for part in response.parts or () if (found := part_in(part, "")) is not None]
    return ToolResultPart(ident, tuple(content), name=response.name, is_error=is_error)


# --- out --------------------------------------------------------------------------------------------------------------


def text_out(part: TextPart) -> dict[str, Any]:
    out: dict[str, Any] = {"text": part.text}
    if part.signature is not None:
        out["thoughtSignature"] = part.signature
    return out


def thought_out(part: ReasoningPart, text: str | None = None) -> dict[str, Any]:
    """Thinking on its way to a client: another dialect's seal goes as bytes that only we can read back."""
    out: dict[str, Any] = {"text": part.text if text is None else text, "thought": True}
    if part.dialect == wire.NAME:
        if part.signature is not None:
            out["thoughtSignature"] = part.signature
    elif part.signature is not None or part.redacted is not None or part.id is not None:
        sealed = seal(Sealed(part.dialect, part.signature, part.redacted, part.id))
        out["thoughtSignature"] = base64.b64encode(sealed.encode()).decode()
    return out


def call_out(part: ToolCallPart, *, with_id: bool = True) -> dict[str, Any]:
    call: dict[str, Any] = {"name": part.name, "args": arguments_out(part)}
    if with_id and part.id and not part.id.startswith(MADE_ID):
        call["id"] = part.id
    out: dict[str, Any] = {"functionCall": call}
    if part.signature is not None:
        out["thoughtSignature"] = part.signature
    return out


def arguments_out(part: ToolCallPart) -> dict[str, Any]:
    """An object, always: free text and what a model wrote wrong go in as a field."""
    if part.kind == "custom":
        return {"input": part.arguments}
    if not part.arguments:
        return {}
    try:
        found = msgspec.json.decode(part.arguments)
    except (msgspec.DecodeError, RecursionError):
        return {"input": part.arguments}
    return found if isinstance(found, dict) else {"input": found}


def server_call_out(part: ToolCallPart) -> dict[str, Any] | None:
    """Google's own part again. None for what ran at another provider."""
    if part.name not in SERVER_CALLS:
        return None
    try:
        raw = msgspec.json.decode(part.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None
    out: dict[str, Any] = {name: raw[name] for name in SERVER_CALLS if name in raw}
    if out and part.signature is not None:
        out["thoughtSignature"] = part.signature
    return out or None


def server_result_out(part: ToolResultPart) -> dict[str, Any] | None:
    text = "".join(inner.text for inner in part.content if isinstance(inner, TextPart))
    if part.name == "codeExecutionResult":
        out: dict[str, Any] = {"outcome": "OUTCOME_FAILED" if part.is_error else "OUTCOME_OK", "output": text}
        if part.tool_call_id and not part.tool_call_id.startswith(MADE_ID):
            out["id"] = part.tool_call_id
        return {"codeExecutionResult": out}
    if part.name == "toolResponse":
        try:
            return {"toolResponse": msgspec.json.decode(text, type=dict[str, Any])}
        except (msgspec.DecodeError, RecursionError):
            return None
    return None


def response_out(part: ToolResultPart) -> dict[str, Any]:
    """The `response` object of a tool's texts."""
    text = "\n".join(inner.text for inner in part.content if isinstance(inner, TextPart))
    if part.is_error:
        return {"error": text}
    if text.startswith("{"):
        try:
            found = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            found = None
        # An object that is itself {"output": text} would be read back as that text.
        if isinstance(found, dict) and set(found) not in ({"output"}, {"error"}):
            return found
    return {"output": text} if text or not part.content else {}


def media_out(part: Part) -> dict[str, Any] | None:
    """Pictures, sounds and files. None for what has no content that Google could read (another provider's file id)."""
    match part:
        case ImagePart(media_type, str(data)):
            return _inline(media_type or "image/png", data)
        case ImagePart(media_type, None, str(url)):
            return _reference(media_type or _guessed(url, "image/jpeg"), url)
        case AudioPart(audio_format, str(data)):
            return _inline(f"audio/{audio_format or 'wav'}", data)
        case FilePart(text=str(text)):
            return {"text": text}
        case FilePart(media_type, data=str(data)):
            return _inline(media_type or "application/pdf", data)
        case FilePart(media_type, url=str(url)):
            return _reference(media_type or _guessed(url, None), url)
        case FilePart(media_type, file_id=str(file_id)) if "://" in file_id:
            return _reference(media_type, file_id)
        case RefusalPart(text):
            return {"text": text}
    return None


def _inline(mime_type: str, data: str) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime_type, "data": data}}


def _reference(mime_type: str | None, uri: str) -> dict[str, Any]:
    return {"fileData": {"mimeType": mime_type, "fileUri": uri} if mime_type else {"fileUri": uri}}


_BY_ENDING: Final[Mapping[str, str]] = {
    "gif": "image/gif",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "mp4": "video/mp4",
    "pdf": "application/pdf",
    "png": "image/png",
    "txt": "text/plain",
    "webp": "image/webp",
}


def _guessed(url: str, otherwise: str | None) -> str | None:
    """Vertex wants a type with every URI; the ending is all there is to go by."""
    try:
        ending = urlsplit(url).path.rpartition(".")[2].lower()
    except ValueError:
        return otherwise
    return _BY_ENDING.get(ending, otherwise)
