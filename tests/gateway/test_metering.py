"""From reported usage to meters: no token under two meters, none under none."""

from hypothesis import given
from hypothesis import strategies as st

from billing.usage import Meter, Outcome, input_tokens_total, output_tokens_total
from gateway.chat import with_cost
from gateway.errors import NoRouteLeft, Unsupported
from gateway.metering import estimated_usage, outcome_of, quantities, size_of, size_of_texts
from providers import errors as theirs
from providers.neutral import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    TextPart,
    Tool,
    ToolResultPart,
    Usage,
)

counts = st.none() | st.integers(0, 10**9)


@given(st.builds(Usage, counts, counts, counts, counts, counts, counts, counts, counts, counts))
def test_the_meters_add_up_to_the_totals_whatever_a_provider_reports(usage: Usage) -> None:
    used = quantities(usage)
    assert input_tokens_total(used) == (usage.input_tokens or 0)
    assert output_tokens_total(used) == (usage.output_tokens or 0)
    assert all(count > 0 for count in used.values())
    assert used[Meter.REQUESTS] == 1


def test_nested_counts_are_taken_apart() -> None:
    usage = Usage(
        input_tokens=1000,
        output_tokens=300,
        cache_read_tokens=600,
        cache_write_tokens=150,
        cache_write_1h_tokens=50,
        reasoning_tokens=120,
    )
    assert quantities(usage) == {
        Meter.CACHE_READ_TOKENS: 600,
        Meter.CACHE_WRITE_1H_TOKENS: 50,
        Meter.CACHE_WRITE_5M_TOKENS: 100,
        Meter.INPUT_TOKENS: 250,
        Meter.REASONING_TOKENS: 120,
        Meter.OUTPUT_TOKENS: 180,
        Meter.REQUESTS: 1,
    }


def test_an_estimate_keeps_what_was_reported_and_never_passes_the_models_maximum() -> None:
    assert estimated_usage(Usage(input_tokens=7), 100, 30, 50) == Usage(input_tokens=7, output_tokens=10)
    assert estimated_usage(Usage(), 100, 10**6, 50) == Usage(input_tokens=100, output_tokens=50)
    assert estimated_usage(Usage(output_tokens=12), 100, 3, 50) == Usage(input_tokens=100, output_tokens=12)


def test_the_size_counts_all_that_the_model_reads() -> None:
    message = Message(
        "user",
        (
            TextPart("h\u00e9llo"),
            ImagePart(url="https://example.com/a.png"),
            ToolResultPart("call_1", (TextPart("four"), ImagePart(data="AAAA"))),
        ),
    )
    plain = size_of(ChatRequest("m", (message,)))
    assert plain.text_bytes == 4 + 6 + 4
    assert plain.images == 2
    with_tool = size_of(ChatRequest("m", (message,), tools=(Tool("weather", "tells it", {"type": "object"}),)))
    assert with_tool.text_bytes > plain.text_bytes + len("weather")


def test_the_size_counts_what_comes_with_a_request_and_what_it_only_names() -> None:
    parts = (
        AudioPart("wav", "A" * 8),
        FilePart(data="B" * 16),
        FilePart(text="a document"),
        FilePart(url="https://example.com/a.pdf"),
        FilePart(file_id="file_1"),
    )
    size = size_of(ChatRequest("m", (Message("user", parts),)))
    assert (size.attachments, size.unseen) == (8 + 16 + 10, 2)
    assert size_of_texts(("h\u00e9llo", (1, 2, 3))).text_bytes == 6 + 12


def test_each_failure_has_its_outcome() -> None:
    assert outcome_of(theirs.TimedOut("slow", "first_byte")) is Outcome.TIMED_OUT
    assert outcome_of(theirs.Rejected("no")) is Outcome.REJECTED
    assert outcome_of(theirs.Broken("what")) is Outcome.UPSTREAM_FAILED
    assert outcome_of(Unsupported("cannot")) is Outcome.REJECTED
    nested = NoRouteLeft("all failed", attempts=["a"], last=theirs.TimedOut("slow", "connect"))
    assert outcome_of(nested) is Outcome.TIMED_OUT


def test_the_cost_is_told_in_the_usage_and_nowhere_else() -> None:
    tail = b'data: {"tools":[{"usage":{"type":"string"}}],"text":"\\"usage\\":{","usage":{"input_tokens":1}}\n\n'
    told = with_cost(tail, 1_500_000)
    assert told == tail.replace(b'"usage":{"input', b'"usage":{"cost":0.000001500000,"input')
    for silent in (b"data: [DONE]\n\n", b'data: {"usage":null}\n\n', b""):
        assert with_cost(silent, 1) == silent
