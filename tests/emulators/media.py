"""Sound and images of the OpenAI family as they look on the wire: whisper by the second, gpt-4o-transcribe and
gpt-image by the token, tts by the character.

Source: openai-python 3.54 and groq-python 1.7 types, read 2026-11."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import io
import json
import wave
from typing import Any

from tests.emulators import scripted
from tests.emulators.server import Emulator, Out, Request, play_transport_fault

SAMPLE_RATE = 8_000
TOKENS_PER_S, IMAGE_TOKENS = 10, 272


def wav(seconds: float) -> bytes:
    """Silence of that length."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(bytes(2 * int(SAMPLE_RATE * seconds)))
    return out.getvalue()


def form_of(request: Request) -> tuple[dict[str, str], dict[str, bytes]]:
    """Fields and files, read by the standard library's parser and not by ours."""
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    fields, files = {}, {}
    for part in message.iter_parts():  # type: ignore[attr-defined]
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if part.get_filename() is None:
            fields[name] = content.decode()
        else:
            files[name] = content
    return fields, files


class MediaEmulator(Emulator):
    name = "media"

    def __init__(self, *, api_key: str = "sk-test", **server: Any) -> None:
        super().__init__(**server)
        self.api_key = api_key

    async def handle(self, request: Request, out: Out) -> None:
        sent = request.headers.get("api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if sent != self.api_key:
            return await self._error(out, 401, "Incorrect API key provided")
        match "/".join(request.path.split("/")[-2:]):
            case "audio/transcriptions" | "audio/translations":
                await self._hear(request, out)
            case "audio/speech":
                await self._speak(request, out)
            case "images/generations":
                await self._draw(request.json(), out, 0)
            case "images/edits":
                fields, files = form_of(request)
                await self._draw(fields, out, len(files))
            case _:
                await self._error(out, 404, f"Invalid URL ({request.path})")
        return None

    async def _hear(self, request: Request, out: Out) -> None:
        fields, files = form_of(request)
        if "file" not in files or "model" not in fields:
            return await self._error(out, 400, "file and model are required")
        if fields["model"] == "fault-500":
            return await self._error(out, 500, "The server had an error")
        with wave.open(io.BytesIO(files["file"])) as file:
            seconds = file.getnframes() / file.getframerate()
        self.stats.answers += 1
        text, form = f"{len(files['file'])} bytes of silence", fields.get("response_format", "json")
        tokens = int(seconds * TOKENS_PER_S)
        usage: dict[str, Any] = {"type": "duration", "seconds": seconds}
        if "4o" in fields["model"]:
            self.stats.input_tokens += tokens + 3
            self.stats.output_tokens += scripted.count(text)
            usage = {
                "type": "tokens",
                "input_tokens": tokens + 3,
                "input_token_details": {"text_tokens": 3, "audio_tokens": tokens},
                "output_tokens": scripted.count(text),
                "total_tokens": tokens + 3 + scripted.count(text),
            }
        if fields.get("stream") == "true":
            await out.start(200, "text/event-stream")
            for piece in scripted.pieces(text):
                await out.chunk(_event({"type": "transcript.text.delta", "delta": piece}))
                if fields["model"] == "4o-that-fails":
                    error = {"message": "The server had an error", "type": "server_error"}
                    await out.chunk(_event({"error": error}))
                    return await out.end()
            await out.chunk(_event({"type": "transcript.text.done", "text": text, "usage": usage}))
            return await out.end()
        if form in ("text", "srt", "vtt"):
            return await out.whole(200, text.encode(), {"content-type": "text/plain; charset=utf-8"})
        answer: dict[str, Any] = {"text": text, "usage": usage}
        if form == "verbose_json":
            answer |= {"task": "transcribe", "language": "english", "duration": seconds, "segments": [], "words": []}
        return await out.json(200, answer)

    async def _speak(self, request: Request, out: Out) -> None:
        body = request.json()
        self.stats.answers += 1
        sound = wav(0.1 * len(body["input"]))
        if body["model"] == "fault-cut":
            await play_transport_fault("cut-mid-frame", out, "audio/wav", [sound[:500], sound[500:]])
            return None
        if body.get("stream_format") == "sse":
            await out.start(200, "text/event-stream")
            await out.chunk(_event({"type": "speech.audio.delta", "audio": base64.b64encode(sound).decode()}))
            usage = {"input_tokens": 7, "output_tokens": 40, "total_tokens": 47}
            await out.chunk(_event({"type": "speech.audio.done", "usage": usage}))
            return await out.end()
        await out.start(200, "audio/wav")
        for at in range(0, len(sound), 4_000):
            await out.chunk(sound[at : at + 4_000])
        return await out.end()

    async def _draw(self, body: dict[str, Any], out: Out, given: int) -> None:
        if body["model"] == "fault-500":
            return await self._error(out, 500, "The server had an error")
        count = int(body.get("n") or 1)
        self.stats.answers += 1
        picture = base64.b64encode(b"\x89PNG" + body["prompt"].encode()).decode()
        answer: dict[str, Any] = {"created": 1_700_000_000, "data": [{"b64_json": picture}] * count}
        if "gpt-image" in body["model"]:
            text = scripted.count(body["prompt"])
            seen, made = given * 100, count * IMAGE_TOKENS
            details = {"text_tokens": text, "image_tokens": seen}
            usage = {"input_tokens": text + seen, "input_tokens_details": details, "output_tokens": made}
            answer["usage"] = {**usage, "total_tokens": text + seen + made}
            if body.get("stream"):
                await out.start(200, "text/event-stream")
                more = {"b64_json": picture, "size": "1024x1024", "quality": "low", "created_at": 1_700_000_000}
                await out.chunk(_event({"type": "image_generation.partial_image", "partial_image_index": 0, **more}))
                done = {"type": "image_generation.completed", "usage": answer["usage"], **more}
                await out.chunk(_event(done))
                return await out.end()
        return await out.json(200, answer)

    async def _error(self, out: Out, status: int, message: str) -> None:
        self.stats.errors += 1
        kind = "server_error" if status >= 500 else "invalid_request_error"
        await out.json(status, {"error": {"message": message, "type": kind, "param": None, "code": None}})


def _event(value: dict[str, Any]) -> bytes:
    name = value.get("type", "error")
    return f"event: {name}\ndata: {json.dumps(value)}\n\n".encode()


SERVED = {"media": MediaEmulator}
