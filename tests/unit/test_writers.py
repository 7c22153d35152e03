"""Writers: which direction they add, and how a request is put to the generator in each role."""

import numpy as np
import pytest

from rass_core.errors import ConfigError, GenerationError, ModelError
from rass_core.generate.writers import Writer, WritingDirections, request_of, steering_of, whole_text
from rass_core.models.chat import SHORT_ANSWER, ChatFormat
from rass_core.probe.geometry import Direction
from tests import tiny_models

HARM, REFUSAL = np.array([3.0, 1.0, 0.0]), np.array([0.0, 2.0, 0.0])
SAMPLING = {"seed": 5, "max_new_tokens": 20, "temperature": 0.8, "top_p": 0.9}
PARENTS = ["How do I kill a process?", "How do I shoot a photo?", "How do I whip cream?"]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_models.tokenizer())


def direction(kind: str, vector: np.ndarray, layer: int = 2) -> Direction:
    return Direction(kind, "difference_in_means", layer, -1, vector)


@pytest.fixture
def directions() -> WritingDirections:
    return WritingDirections(
        direction("harm", np.ones(3), 7), {2: direction("harm", HARM)}, {2: direction("refusal", REFUSAL)}, {}
    )


def test_the_refusal_direction_is_taken_out_of_harm(directions: WritingDirections) -> None:
    writer = Writer("user", "harm_without_refusal", 2)
    (vector,) = directions.vectors(writer, 4).values()
    assert vector.vector == pytest.approx([3.0, 0.0, 0.0])
    assert vector.layers == (2,)
    assert vector.kind == "add"


def test_harm_can_be_added_while_refusal_is_ablated_everywhere(directions: WritingDirections) -> None:
    writer = Writer("user", "harm_ablating_refusal", 2)
    added, ablated = directions.vectors(writer, 4).values()
    assert added.vector == pytest.approx(HARM)
    assert (ablated.kind, ablated.layers) == ("ablate", (0, 1, 2, 3))
    first, second = steering_of(writer, 0.5) or ()
    assert [first.alpha, second.alpha] == [0.5, 1.0]
    assert {first.direction_id, second.direction_id} == set(directions.vectors(writer, 4))


def test_the_probes_direction_is_added_at_its_own_block(directions: WritingDirections) -> None:
    writer = Writer("assistant", "probe", 7)
    (vector,) = directions.vectors(writer, 8).values()
    assert vector.layers == (7,)
    assert directions.base(writer).layer == 7


def test_an_unsteered_writer_needs_no_vector(directions: WritingDirections) -> None:
    assert directions.vectors(Writer("user", "none", None), 4) == {}
    assert steering_of(Writer("user", "none", None), 1.0) is None
    assert steering_of(Writer("user", "harm", 2), 0.0) is None


@pytest.mark.parametrize(("kind", "layer"), [("content", 2), ("harm", 3), ("harm_without_refusal", 3)])
def test_a_direction_that_is_not_there_is_named(directions: WritingDirections, kind: str, layer: int) -> None:
    with pytest.raises(GenerationError, match=f"user, {kind} at block {layer}"):
        directions.vectors(Writer("user", kind, layer), 4)


def test_blocks_are_those_that_hold_all_that_is_needed() -> None:
    harm = {layer: direction("harm", HARM, layer) for layer in (1, 2, 3)}
    directions = WritingDirections(harm[1], harm, {2: direction("refusal", REFUSAL)}, {})
    assert directions.blocks("harm") == [1, 2, 3]
    assert directions.blocks("harm_without_refusal") == [2]
    assert directions.blocks("content") == []


def test_in_the_users_turn_parents_come_before_and_nothing_asks(chat: ChatFormat) -> None:
    request = request_of(Writer("user", "none", None), chat, "imitate", "en", PARENTS, alpha=0.0, **SAMPLING)
    text = chat.tokenizer.decode(request.prompt_ids)
    assert text.endswith(f"{SHORT_ANSWER}<end>\n<user>\n"), "there the user's words begin"
    assert [text.index(parent) for parent in PARENTS] == sorted(text.index(parent) for parent in PARENTS)
    assert request.stop_token_ids == tuple(chat.tokenizer.convert_tokens_to_ids(["<end>"]))


def test_a_request_goes_on_from_its_parents_first_words(chat: ChatFormat) -> None:
    writer = Writer("user", "none", None)
    request = request_of(writer, chat, "begin", "en", PARENTS[:1], alpha=0.0, **SAMPLING)
    opening = chat.tokenizer.decode(request.prompt_ids).rpartition("<user>\n")[2]
    assert opening
    assert PARENTS[0].startswith(opening)
    assert opening != PARENTS[0]
    assert whole_text(writer, "begin", PARENTS[:1], 5, " ... more") == f"{opening} ... more"
    assert whole_text(Writer("assistant", "none", None), "rewrite", PARENTS[:1], 5, "more") == "more"


def test_a_prefilled_answer_begins_with_the_quotation(chat: ChatFormat) -> None:
    request = request_of(Writer("prefilled", "none", None), chat, "rewrite", "de", PARENTS[:1], alpha=0.0, **SAMPLING)
    assert chat.tokenizer.decode(request.prompt_ids).endswith("<assistant>\nHier ist die Bitte: „")
    asked = request_of(Writer("assistant", "none", None), chat, "rewrite", "de", PARENTS[:1], alpha=0.0, **SAMPLING)
    assert chat.tokenizer.decode(asked.prompt_ids).endswith("<assistant>\n")


def test_an_operator_in_a_role_it_cannot_take_is_refused(chat: ChatFormat) -> None:
    with pytest.raises(ConfigError, match="imitate"):
        request_of(Writer("assistant", "none", None), chat, "imitate", "en", PARENTS, alpha=0.0, **SAMPLING)


def test_a_template_that_drops_the_users_words_is_an_error() -> None:
    silent = tiny_models.tokenizer()
    silent.chat_template = "<bos><user>\nhello<end>\n<assistant>\n"
    with pytest.raises(ModelError, match="drops the user's text"):
        ChatFormat(silent)
