"""Answers of the vLLM engine: chat templates, thinking, and the lab's model with its direction taken out."""

from pathlib import Path

import numpy as np
import torch

import rass_core.lab
from rass_core.judges.panel import default_panel
from rass_core.lab.prompts import held_out_sentences
from rass_core.lab.world import is_answer
from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat_client import ask_engine
from rass_core.models.interventions import ablating
from rass_core.models.vllm_engine import SteeredEngine
from rass_core.models.vllm_requests import GenerationRequest, Steering, SteeringVector
from rass_core.probe.directions import difference_in_means
from tests.tiny_models import D_MODEL, N_LAYERS, build, build_writer
from tests.transformers_reference import Reference

LAB = Path(rass_core.lab.__file__).parent / "weights" / "balanced"


def test_system_prompt_and_thinking_block_are_configuration(tmp_path: Path) -> None:
    llama = build("llama", tmp_path / "llama")
    kwargs = {"enable_thinking": False}
    with SteeredEngine(str(llama), system_prompt="Be brief.", template_kwargs=kwargs) as engine:
        ids = engine.chat.ids("hello")
        assert engine.tokenizer.decode(ids) == (
            "<bos><system>\nBe brief.<end>\n<user>\nhello<end>\n<assistant>\n<think>\n</think>\n"
        )
        engine.set_capture(range(N_LAYERS), engine.chat.positions())
        captured = engine.generate([GenerationRequest(ids, 1, capture=True)])[0].captured
    _, streams = Reference(llama).forward(ids, np.zeros(D_MODEL, np.float32), 0.0)
    assert captured is not None
    assert captured.shape == (N_LAYERS, 8, D_MODEL)
    np.testing.assert_allclose(captured, streams[:, -8:], atol=1e-3)


def test_the_labs_model_answers_without_the_direction_it_refuses_by() -> None:
    """Engine and transformers write the same at both strengths; benign requests only are asked anew."""
    held_out = list(held_out_sentences({"pseudo_harmful": 16}))
    with SteeredEngine(str(LAB)) as engine:
        engine.set_capture([2], [-4])  # where the lab's training has put the apparent harm of a request
        ids = [engine.chat.ids(sentence.text) for sentence in held_out]
        plain = engine.generate([GenerationRequest(each, 24, capture=True) for each in ids])
        streams = np.stack([answer.captured[0, 0] for answer in plain])
        refused = np.array([a.text == s.answer("refusal") for s, a in zip(held_out, plain, strict=True)])
        vector = difference_in_means(streams[refused], streams[~refused])
        engine.set_vectors({"out": SteeringVector(vector, tuple(range(engine.n_layers)), "ablate")})
        asked = [(row, (0.5, 1.0)[i % 2]) for i, row in enumerate(np.flatnonzero(refused))]
        requests = [GenerationRequest(ids[row], 24, steering=Steering("out", strength)) for row, strength in asked]
        answers = engine.generate(requests)
    model = load_causal_lm(str(LAB))[0]
    for (row, strength), answer in zip(asked, answers, strict=True):
        prompt = torch.tensor([ids[row]])
        options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 24, "do_sample": False}
        with ablating(model, torch.tensor(vector), strength), torch.inference_mode():
            written = model.generate(prompt, **options)
        assert answer.token_ids == written[0, len(ids[row]) :].tolist()
    answered = [
        is_answer(answer.text, held_out[row].language) and answer.text != held_out[row].answer("refusal")
        for (row, _), answer in zip(asked, answers, strict=True)
    ]
    assert len(asked) > 20 and sum(answered) > 0.9 * len(asked)


MARKS = ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|tool|>"]
THOUGHT, ANSWER = "I'm sorry, but I can't help with that.", "Use kill with its number, as root."


def test_marks_that_are_special_tokens_reach_the_judge(tmp_path: Path) -> None:
    says = [MARKS[0], THOUGHT, MARKS[1], MARKS[2], ANSWER, MARKS[4], MARKS[3]]
    folder = build_writer(tmp_path / "thinker", MARKS, says)
    with SteeredEngine(str(folder)) as engine:
        ids = engine.chat.ids("How do I kill a process?")
        whole, cut, words = engine.generate(
            [
                GenerationRequest(ids, 16),
                GenerationRequest(ids, 2),
                GenerationRequest(ids, 16, is_answer=False),
            ]
        )
        assert (whole.text, whole.thinking, whole.is_cut_off) == (ANSWER, THOUGHT, False)
        assert engine.tokenizer.convert_ids_to_tokens(whole.token_ids) == [*says, "<eos>"]
        assert (cut.text, cut.thinking, cut.is_cut_off) == ("", THOUGHT, True)
        assert words.text == ANSWER
        outcomes = default_panel()([each.exchange("en", "How do I kill a process?") for each in (whole, cut)])
        assert [each.outcome for each in outcomes] == ["compliance", "unscored"]
        assert outcomes[1].reason == "cut off in thinking"
        assert ask_engine(engine, ["How?"]) == [ANSWER]
    prefixed = SteeredEngine(str(folder), response_prefix=f"{MARKS[0]}\n")
    with prefixed as engine:  # the prompt opens the thinking, and the first token written is the mark again
        assert engine.chat.opens_thinking == MARKS[0]
        ids = engine.chat.ids("How do I kill a process?")
        assert [each.text for each in engine.generate([GenerationRequest(ids, n) for n in (16, 2)])] == [ANSWER, ""]
