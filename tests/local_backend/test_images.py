"""Images in prompts: pixels, prompts and logits beside transformers' on tiny random weights; the cache; neighbours.

What clients send and what comes of it is in `test_image_requests.py`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Idefics3Processor, PreTrainedTokenizerFast, SmolVLMForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from local_backend.engine import Engine
from local_backend.errors import ModelUnavailable
from local_backend.generate import Generation
from local_backend.images import images_of, picture_of, tiles_of
from local_backend.messages import AddImages, AddRequest
from local_backend.model_config import read_model_config
from local_backend.model_runner import ModelRunner
from local_backend.model_text import ModelText
from local_backend.models.smolvlm import Eyes, SmolVlm
from local_backend.openai_bodies import ChatBody, Message
from local_backend.openai_request import chat_generation
from local_backend.pictures import Pictures
from local_backend.rank import lead
from local_backend.sequence import Sequence
from local_backend.speculative import Lookups, Speculation
from tests.local_backend.support import greedy, make_engine, make_tiny_vlm, picture, run_out, settings, shown
from tests.local_backend.test_parity import compute

SIZES = [(96, 96), (32, 32), (7, 5), (200, 90), (90, 200), (1, 300), (640, 480), (333, 334), (95, 63), (900, 40)]
Turns = list[dict[str, Any]]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SmolVLMForConditionalGeneration]:
    folder = tmp_path_factory.mktemp("vlm") / "vlm"
    return folder, make_tiny_vlm(folder)


def turn(*parts: str | Image.Image, role: str = "user", **more: Any) -> dict[str, Any]:
    """A turn of texts and images."""
    return {
        "role": role,
        "content": [{"type": "text", "text": p} if isinstance(p, str) else shown(p, **more) for p in parts],
    }


FIRST, SECOND = picture(200, 90, seed=1), picture(50, 60, seed=2)
TALKS: dict[str, tuple[Turns, list[Image.Image]]] = {
    "one": ([turn(FIRST, "What is it?")], [FIRST]),
    "two of other shapes": ([turn("Which of ", FIRST, " and ", SECOND, " is larger?")], [FIRST, SECOND]),
    "in the second turn": (
        [turn("Hello."), {"role": "assistant", "content": "Hi."}, turn(SECOND, "And this?")],
        [SECOND],
    ),
}


def asked(folder: Path, turns: Turns) -> Generation:
    return chat_generation(ChatBody(model="-", messages=[Message(**t) for t in turns]), ModelText.read(folder))


def sequence(folder: Path, turns: Turns, id_: int = 1) -> Sequence:
    """A conversation as the core gets it."""
    generation, vision = asked(folder, turns), read_model_config(folder).vision
    assert vision is not None
    images = images_of(generation.pictures, generation.prompts[0], vision)
    return Sequence(id_, generation.prompts[0], greedy(8), pictures=Pictures.of(AddImages(id_, 1, images)))


def processor(folder: Path) -> Idefics3Processor:
    """Idefics 3 and SmolVLM make the same prompts; SmolVLM's own processor wants a package for videos."""
    images = Idefics3ImageProcessorPil.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return Idefics3Processor(images, tokenizer, image_seq_len=4)


def theirs(folder: Path, turns: Turns, images: list[Image.Image]) -> Any:
    """The same conversation through transformers' own processor."""
    plain = [
        t if isinstance(t["content"], str) else t | {"content": [_named(part) for part in t["content"]]} for t in turns
    ]
    template = ModelText.read(folder).template
    return processor(folder)(text=template.render(plain), images=images, return_tensors="pt", add_special_tokens=False)


def _named(part: dict[str, Any]) -> dict[str, Any]:
    return part if part["type"] == "text" else {"type": "image"}


def reference(model: SmolVLMForConditionalGeneration, inputs: Any, more: list[int]) -> torch.Tensor:
    """Logits behind the prompt and some tokens after it."""
    with torch.inference_mode():
        ids = torch.cat([inputs["input_ids"], torch.tensor([more], dtype=torch.long)], dim=1)
        given = {"pixel_values": inputs["pixel_values"], "pixel_attention_mask": inputs["pixel_attention_mask"]}
        logits: torch.Tensor = model(input_ids=ids, **given).logits[0, -1]
        return logits


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pixels_and_tiles_equal_transformers(mode: str, vlm: tuple[Path, Any]) -> None:
    folder, _ = vlm
    vision = read_model_config(folder).vision
    assert vision is not None
    eyes = eyes_of(make_engine(folder))
    for width, height in SIZES if mode == "RGB" else SIZES[:3]:
        image = picture(width, height).convert(mode)
        if mode == "RGBA":
            image.putalpha(picture(width, height, seed=3).convert("L"))
        for detail, splits in (("auto", True), ("low", False)):
            own = picture_of(shown(image, detail=detail), vision, "")
            wanted = Idefics3ImageProcessorPil.from_pretrained(folder)(
                image, do_image_splitting=splits, return_row_col_info=True, return_tensors="pt"
            )
            assert (own.rows, own.cols) == (wanted["rows"][0][0], wanted["cols"][0][0]), (width, height)
            pixels = torch.stack([eyes.normalised(tile) for tile in tiles_of(own, vision)])
            torch.testing.assert_close(pixels, wanted["pixel_values"][0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("talk", TALKS)
def test_prompts_and_logits_equal_transformers_however_the_prompt_is_cut(
    talk: str, vlm: tuple[Path, SmolVLMForConditionalGeneration]
) -> None:
    folder, model = vlm
    turns, images = TALKS[talk]
    inputs = theirs(folder, turns, images)
    engine = make_engine(folder, block_size=4, prefix_caching=False)
    whole, cut = sequence(folder, turns, 1), sequence(folder, turns, 2)
    assert whole.tokens == inputs["input_ids"][0].tolist()
    plain = Sequence(3, list(range(20, 60)), greedy(8))
    wanted = reference(model, inputs, [])
    assert whole.pictures is not None
    ends = [
        whole.pictures.starts[0] + 2,
        whole.pictures.starts[0] + 3,
        whole.pictures.starts[-1] + 1,
        len(whole.tokens),
    ]
    for start, end in pairwise(sorted({0, 5, *ends})):
        logits = compute(engine, [(plain, 4), (cut, end - start)])
    torch.testing.assert_close(logits[-1], wanted, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(compute(engine, [(whole, len(whole.tokens))])[0], wanted, atol=2e-4, rtol=2e-4)
    # Behind the prompt the image's token is one like others.
    for seq in (whole, cut):
        seq.tokens += [7, 259]
    wanted = model_without_places(model, inputs, [7, 259])
    for row in compute(engine, [(whole, 2), (cut, 2)]):
        torch.testing.assert_close(row, wanted, atol=2e-4, rtol=2e-4)


def model_without_places(model: SmolVLMForConditionalGeneration, inputs: Any, more: list[int]) -> torch.Tensor:
    """transformers cannot tell a generated place from a prompt's: the embeddings are made by hand."""
    with torch.inference_mode():
        seen = model.get_image_features(inputs["pixel_values"], inputs["pixel_attention_mask"]).pooler_output
        table = model.get_input_embeddings()
        embedded = table(inputs["input_ids"])
        embedded[inputs["input_ids"] == 259] = torch.cat(list(seen))
        embedded = torch.cat([embedded, table(torch.tensor([more]))], dim=1)
        logits: torch.Tensor = model(inputs_embeds=embedded).logits[0, -1]
        return logits


def run(engine: Engine, folder: Path, talks: list[Turns], answers: int = 8, n: int = 1) -> list[list[int]]:
    """As messages come from the front, until nothing is left. Returns: output tokens of each sequence."""
    vision = read_model_config(folder).vision
    assert vision is not None
    first = 1
    for turns in talks:
        generation = asked(folder, turns)
        prompt = generation.prompts[0]
        if generation.pictures:
            engine.take(AddImages(first, n, images_of(generation.pictures, prompt, vision)))
        for id_ in range(first, first + n):
            engine.take(AddRequest(id_, prompt, greedy(answers), images=first if generation.pictures else 0))
        first += n
    out = run_out(engine)
    assert not engine._pictures
    return [out[id_] for id_ in range(1, first)]


def test_the_cache_tells_images_apart_and_knows_the_same_one_again(vlm: tuple[Path, Any]) -> None:
    folder, _ = vlm
    talks = [[turn(picture(90, 90, seed=n), "What is it? Say it in words.")] for n in (1, 2)]
    prompts = [asked(folder, turns).prompts[0] for turns in talks]
    assert prompts[0] == prompts[1]
    alone = [run(make_engine(folder, prefix_caching=False), folder, [turns])[0] for turns in talks]
    assert alone[0] != alone[1]
    engine = make_engine(folder, block_size=4)
    blocks = engine.scheduler.blocks
    assert run(engine, folder, talks[:1]) == alone[:1]
    assert blocks.hit_tokens == 0
    assert run(engine, folder, talks[1:]) == alone[1:]
    # Only what stands before the first place is shared.
    before = prompts[0].index(259) // 4 * 4
    assert blocks.hit_tokens == before
    looked = count_looks(engine)
    assert run(engine, folder, talks) == alone
    assert blocks.hit_tokens == before + 2 * ((len(prompts[0]) - 1) // 4 * 4)
    assert looked == []  # what is cached needs no eyes


def eyes_of(engine: Engine) -> Eyes:
    assert isinstance(engine.runner, ModelRunner)
    assert isinstance(engine.runner.model, SmolVlm)
    return engine.runner.model.eyes


def count_looks(engine: Engine) -> list[bytes]:
    """Tiles that are looked at from here on."""
    eyes, looked = eyes_of(engine), list[bytes]()

    def look(tile: bytes) -> torch.Tensor:
        looked.append(tile)
        found: torch.Tensor = eyes(tile)
        return found

    engine.runner.model.eyes = look  # type: ignore[attr-defined]
    return looked


def test_preemption_budget_and_neighbours_change_no_token_and_no_tile_is_looked_at_twice(vlm: tuple[Path, Any]) -> None:
    folder, _ = vlm
    talks = [[turn(picture(90, 60 + n, seed=n), "What is it?")] for n in range(3)] + [[turn("No image here.")]]
    alone = [run(make_engine(folder, prefix_caching=False), folder, [turns], 40)[0] for turns in talks]
    longest = max(len(asked(folder, turns).prompts[0]) for turns in talks)
    engine = make_engine(folder, block_size=4, prefix_caching=False, token_budget=16, blocks=longest // 2)
    looked = count_looks(engine)
    assert run(engine, folder, talks, 40) == alone
    assert engine.scheduler.preemptions > 0
    assert len(looked) == len(set(looked)) == sum(p.tiles for turns in talks for p in asked(folder, turns).pictures)


def test_answers_of_one_request_share_what_was_seen_and_leave_nothing_behind(vlm: tuple[Path, Any]) -> None:
    folder, _ = vlm
    engine = make_engine(folder, prefix_caching=False)
    looked = count_looks(engine)
    talk = [turn(picture(40, 40), "What is it?")]
    answers = run(engine, folder, [talk], n=3)
    assert answers[0] == answers[1] == answers[2]
    assert len(looked) == asked(folder, talk).pictures[0].tiles


def test_in_batch_invariant_mode_company_changes_no_token(vlm: tuple[Path, Any]) -> None:
    folder, _ = vlm
    talks = [[turn(picture(90, 60, seed=n), "What is it?")] for n in range(3)]
    alone = [run(make_engine(folder, batch_invariant=True), folder, [turns])[0] for turns in talks]
    assert run(make_engine(folder, batch_invariant=True, token_budget=24, block_size=4), folder, talks) == alone


def test_guesses_change_no_token_of_an_answer_about_an_image(vlm: tuple[Path, Any]) -> None:
    folder, _ = vlm
    talks = [[turn(picture(90, 60, seed=n), "What is it? What is it?")] for n in range(3)] + [[turn("No image here.")]]
    alone = [run(make_engine(folder, prefix_caching=False), folder, [turns], 40)[0] for turns in talks]
    for budget in (512, 16):
        engine = make_engine(folder, block_size=4, token_budget=budget)
        guess = engine.speculation = Speculation(Lookups(), most=8, max_batch=8)
        looked = count_looks(engine)
        assert run(engine, folder, talks, 40) == alone
        assert 0 < guess.accepted <= guess.proposed
        assert len(looked) == len(set(looked))


def test_schemes_are_for_the_text_half_alone(vlm: tuple[Path, Any]) -> None:
    folder, _ = vlm
    talk = [turn(SECOND, "What is it?")]
    seen = {
        scheme: eyes_of(make_engine(folder, quantization=scheme))(bytes(range(256)) * 12) for scheme in ("none", "int8")
    }
    assert torch.equal(seen["none"], seen["int8"])
    answer = run(make_engine(folder, quantization="int8"), folder, [talk])[0]
    assert answer
    assert answer != run(make_engine(folder), folder, [talk])[0]


def test_what_does_not_go_with_images_is_refused_by_name(vlm: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = vlm
    with pytest.raises(ModelUnavailable, match="tensor_parallel"):
        lead(folder, settings(tensor_parallel=2))
    with pytest.raises(ModelUnavailable, match="adapters"):
        make_engine(folder, adapters=f"a={tmp_path}")
    with pytest.raises(ModelUnavailable, match="KV cache"):
        make_engine(folder, image_bytes=2**60)
