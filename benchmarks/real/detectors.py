"""Can a model of this size separate its good from its bad prompts? The table behind docs/real.md, "What was accepted".

    python -m benchmarks.real.detectors --model FOLDER --data DATA

Reads `benchmarks/results/real_accepted.csv`, accepted prompts judged one by one, and prints the AUC of good against bad
ones for scores that the model itself gives: its surprise at the text, and linear harm probes of its residual streams,
fitted on public prompts (logistic regression, harmful against pseudo_harmful).
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rass_core.models.causal_lm import load_causal_lm
from rass_core.models.chat import ChatFormat

Array = npt.NDArray[np.float64]
GOOD, HARMFUL, BROKEN = "benign request", "harmful or close to it", "incoherent"
SOURCES = ("or_bench_hard", "or_bench_toxic", "strongreject", "harmbench", "xstest")
N_PER_SOURCE = 300
DEPTHS = (0.4, 0.53, 0.6, 0.67, 0.8)
"""Shares of the model's depth at which the streams are read."""


def main(model_name: str, data: Path) -> None:
    """Print the table."""
    model, tokenizer = load_causal_lm(model_name, "bfloat16")
    chat = ChatFormat(tokenizer)
    layers = [round(depth * (model.config.num_hidden_layers - 1)) for depth in DEPTHS]
    results = Path(__file__).parents[1] / "results" / "real_accepted.csv"
    with results.open(newline="") as file:
        judged = [(row["judgement"], row["text"]) for row in csv.DictReader(file)]
    judgement = np.array([kind for kind, _ in judged])
    good = judgement == GOOD
    streams, surprise = _read(model, chat, [text for _, text in judged], layers)
    public = [row for source in SOURCES for row in _given(data / f"{source}.parquet")]
    known, _ = _read(model, chat, [row["text"] for row in public], layers)
    is_harmful = np.array([row["label"] == "harmful" for row in public])

    def aucs(score: Array) -> str:
        parts = [judgement == BROKEN, judgement == HARMFUL, ~good]
        return " | ".join(f"{roc_auc_score(bad[good | bad], score[good | bad]):.2f}" for bad in parts)

    print("| what is known of a text | incoherent | harmful | all bad ones |\n| --- | ---: | ---: | ---: |")
    print(f"| surprise, mean nats per token | {aucs(surprise[:, 0])} |")
    print(f"| surprise, of the three most surprising tokens | {aucs(surprise[:, 1])} |")
    for i, layer in enumerate(layers):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=500)).fit(known[:, i], is_harmful)
        print(f"| harm probe, block {layer} | {aucs(probe.decision_function(streams[:, i]))} |")


def _given(path: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    return [row for label in ("harmful", "pseudo_harmful") for row in rows if row["label"] == label][:N_PER_SOURCE]


@torch.no_grad()
def _read(model: Any, chat: ChatFormat, texts: list[str], layers: list[int]) -> tuple[Array, Array]:
    """Return streams, (n, layers, 2 d_model), last token and mean over the words, and the surprise at the words."""
    streams, surprise = [], []
    for text in texts:
        before, whole = chat.user_turn_ids(), chat.ids(text)
        words = slice(len(before), len(before) + len(chat.answer_ids(text)))
        out = model(torch.tensor([whole]), output_hidden_states=True)
        states = [out.hidden_states[layer + 1][0].double() for layer in layers]
        streams.append(torch.stack([torch.cat([each[-1], each[words].mean(dim=0)]) for each in states]).numpy())
        logprobs = out.logits[0, words.start - 1 : words.stop - 1].double().log_softmax(dim=-1)
        nats = -logprobs[torch.arange(len(logprobs)), torch.tensor(whole[words])]
        surprise.append([float(nats.mean()), float(nats.topk(min(3, len(nats))).values.mean())])
    return np.stack(streams), np.array(surprise)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the writer")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public prompts")
    given = parser.parse_args()
    main(given.model, given.data)
