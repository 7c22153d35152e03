"""Peak memory and time of fitting a direction and of training, each in a process of its own.

"Before" holds what the code did until it bounded its memory: all pairs of a step in one graph, with logits of every
token. It takes several times the memory, so it runs on `N_BEFORE` pairs of each kind only.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.common import public_prompts

N_PAIRS, N_BEFORE, FITTING_STEPS = 7, 2, 1
N_TRAINED = 16
ANSWER = "Here is a short answer that names what matters, gives one example and says where to read more about it. " * 2
REFUSAL = (
    "I'm sorry, but I can't help with that. If you are in danger, please call your local emergency number now. " * 2
)


def measure(model_folder: Path, data_folder: Path) -> list[dict[str, Any]]:
    """Return one row per step: seconds and the peak of memory in GB, as bounded now; before where it is known."""
    found = []
    for what in ("fitting", "sft", "dpo"):
        command = [sys.executable, "-m", "benchmarks.speed.memory", what, str(model_folder), str(data_folder)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        now = json.loads(answer.stdout.splitlines()[-1])
        found.append({"what": now["what"], "after_s": now["seconds"], "peak_after_gb": now["peak_gb"], **now["size"]})
    return found


def pairs_of(data: Path, n: int) -> list[Any]:
    """Return n pairs of each kind with answers of about 45 tokens, on public prompts."""
    from rass_core.mitigate.pairs import KINDS, PreferencePair

    texts = public_prompts(data, n * len(KINDS))
    pairs = []
    for number, text in enumerate(texts):
        kind = KINDS[number % len(KINDS)]
        answers = (REFUSAL, ANSWER) if kind == "safety" else (ANSWER, REFUSAL)
        pairs.append(PreferencePair(str(number), kind, text, "en", *answers))
    return pairs


def fit(model: str, data: Path) -> dict[str, Any]:
    """Fit a direction for a step."""
    import numpy as np
    from transformers import AutoConfig

    from rass_core.mitigate.learned_direction import learned_direction

    pairs = pairs_of(data, N_PAIRS)
    d_model = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config().hidden_size
    learned_direction(model, pairs, np.eye(d_model)[:1], steps=FITTING_STEPS)
    return {"what": "fitting a direction, one step", "size": {"pairs": len(pairs)}}


def teach(method: Any, model: str, data: Path) -> dict[str, Any]:
    """Train for one step of 16 pairs."""
    from rass_core.mitigate.base import method_of
    from rass_core.mitigate.lora import train

    pairs = pairs_of(data, -(-N_TRAINED // 3))[:N_TRAINED]
    with tempfile.TemporaryDirectory() as folder:
        train(method_of(method, training={"epochs": 1.0}), model, pairs, Path(folder))
    return {"what": f"{method}, one step", "size": {"pairs": len(pairs)}}


def main() -> None:
    """Run one of them and print what it took, JSON on the last line."""
    import torch

    torch.set_num_threads(1)
    what, model, data = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    started = time.process_time()
    done = fit(model, data) if what == "fitting" else teach(what, model, data)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({**done, "seconds": round(time.process_time() - started, 1), "peak_gb": round(peak_gb, 2)}))


if __name__ == "__main__":
    main()
