"""Stage: one variant of the model, mitigated by preference pairs → a folder below the lake's `models/`, `variants`."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from rass_core.errors import BoundaryError
from rass_core.lake.store import Commit
from rass_core.mitigate.learned_direction import fitted_direction
from rass_core.mitigate.lora import merge, train
from rass_core.mitigate.pairs import PreferencePair
from rass_core.mitigate.weight_ablation import removable, surgical
from rass_core.models.settings import ModelConfig
from rass_core.probe.directions import cosine
from rass_core.probe.geometry import Direction
from rass_core.text import digest
from tasks.generate import Probed
from tasks.preferences import mitigating
from tasks.probe import direction_with, directions_of
from tasks.run import Run, chat_of, table, versions

Facts = dict[str, Any]
TRAINED = ("dpo", "sft")
OUTCOME = "outcome.json"
"""Written last into a variant's folder: what came of it, and the digest of its files."""
DIRECTION = "direction.npy"
"""The direction that `steer` takes out while the model runs."""


@dataclass(frozen=True)
class Variant:
    """A model as it is evaluated: as given, or mitigated."""

    name: str
    model: ModelConfig
    """What is loaded."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Its row of `variants`; empty for the model as given."""
    ablated: np.ndarray[Any, Any] | None = None
    """Direction that is taken out while it runs, (d_model,), unit length."""
    strength: float = 1.0
    commit: Commit | None = None


def as_given(run: Run) -> Variant:
    """Return the target itself."""
    return Variant("base", run.config.model)


@task(cache_policy=NO_CACHE, task_run_name="mitigate-{method}")
def mitigate_by(run: Run, method: str, pairs: Sequence[PreferencePair], probed: Probed) -> Variant:
    """Mitigate over-refusal by one method; a training that was stopped goes on from its last checkpoint."""
    settings = mitigating(run)
    direction = None if method in TRAINED else false_refusal_direction(run, pairs, probed)
    how = [
        method,
        run.target_id,
        run.config.model,
        *_settings_of(run, method),
        direction,
        [pair.__dict__ for pair in pairs],
    ]
    folder = run.lake.path / "models" / f"{method}-{run.key(how)[:8]}"
    run.say(f"{method}: {len(pairs)} pairs")

    def compute() -> Mapping[str, pa.Table]:
        facts = _read_facts(folder) or _made(run, method, pairs, probed, direction, folder)
        row = {
            "model_id": run.target_id, "variant": method, "folder": folder.relative_to(run.lake.path).as_posix(),
            "n_pairs": len(pairs), **facts,
        }  # fmt: skip
        return {"variants": table("variants", [row])}

    commit = run.once(method, how, compute)
    facts = _read_facts(folder) or _made(run, method, pairs, probed, direction, folder)
    loaded = "" if method == "steer" else "merged" if facts["is_adapter"] else "checkpoint"
    model = run.config.model if not loaded else run.config.model.at(str(folder / loaded))
    ablated = np.load(folder / DIRECTION) if method == "steer" else None
    row = run.read("variants", commit).to_pylist()[0]
    return Variant(method, model, row, ablated, settings.strength, commit)


def _made(
    run: Run, method: str, pairs: Sequence[PreferencePair], probed: Probed, direction: Commit | None, folder: Path
) -> Facts:
    """Make the variant in its folder and return its facts; what is unfinished there is taken up."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = _trained(run, method, pairs, folder) if direction is None else _cut(run, method, probed, direction, folder)
    facts["digest"] = _digest(folder)
    (folder / OUTCOME).write_text(json.dumps(facts), encoding="utf-8")
    return facts


def _trained(run: Run, method: str, pairs: Sequence[PreferencePair], folder: Path) -> Facts:
    settings, model = mitigating(run).training, run.config.model
    with run.progress(f"training, {method}", 1) as bar:
        trained = train(
            method, model.reference, pairs, settings, folder, chat_of(model), model.dtype,  # type: ignore[arg-type]
            bar,
        )  # fmt: skip
    with run.status(f"{method}: merging the adapter into the model"):
        merge(model.reference, trained.adapter, folder / "merged", model.dtype)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {
        "is_adapter": True, "settings": settings.model_dump_json(), "n_too_long": trained.n_too_long,
        "losses": [loss for _, loss in trained.losses], "harm_cosine": None, "reason": None,
    }  # fmt: skip


def _cut(run: Run, method: str, probed: Probed, direction: Commit, folder: Path) -> Facts:
    """Take the false-refusal direction out, of the weights or while the model runs."""
    settings, model = mitigating(run), run.config.model
    harm = direction_with("harm", run, probed.directions)
    vector = np.array(run.read("directions", direction).to_pylist()[0]["vector"], np.float64)
    unit = removable(vector, harm.vector)
    if method == "surgical":
        with run.status("surgical: editing the weights"):
            surgical(model.reference, unit, harm.vector, settings.strength, folder / "checkpoint", dtype=model.dtype)
    np.save(folder / DIRECTION, unit)
    told = {"strength": settings.strength, "direction": settings.direction}
    return {
        "is_adapter": False, "settings": json.dumps(told), "n_too_long": 0, "losses": [],
        "harm_cosine": cosine(vector, harm.vector), "reason": None,
    }  # fmt: skip


@task(cache_policy=NO_CACHE)
def false_refusal_direction(run: Run, pairs: Sequence[PreferencePair], probed: Probed) -> Commit:
    """Return the direction that surgical and steer take out: the probe's own, or one fitted to the pairs."""
    settings, model = mitigating(run), run.config.model
    known = directions_of(run, probed.directions)

    def compute() -> Mapping[str, pa.Table]:
        harm = direction_with("harm", run, probed.directions)
        if settings.direction == "drawn":
            vector = _drawn(known, harm).vector
        else:
            kept = [direction.vector for direction in known if direction.kind == "harm" and direction.roles]
            with run.progress("fitting a direction", 1) as bar:
                vector = fitted_direction(
                    model.reference, pairs, np.array(kept), seed=settings.training.seed, chat=chat_of(model),
                    dtype=model.dtype, progress=bar,
                )  # fmt: skip
        row = {
            "direction_id": digest("direction", run.target_id, settings.direction, vector.tobytes().hex()),
            "model_id": run.target_id, "kind": "false_refusal", "method": settings.direction,
            "vector": vector.astype(np.float32).tolist(), "agreement": cosine(vector, harm.vector),
            "reason": "its agreement is the cosine with the harm direction",
        }  # fmt: skip
        return {"directions": table("directions", [row])}

    inputs = [probed.directions, run.target_id, settings.direction, settings.training.seed,
              [pair.__dict__ for pair in pairs]]  # fmt: skip
    return run.once("false-refusal direction", inputs, compute)


def _drawn(known: Sequence[Direction], harm: Direction) -> Direction:
    """Return the probe's false-refusal direction at the place of the harm direction."""
    for direction in known:
        place = (direction.layer, direction.position, direction.language)
        if direction.kind == "false_refusal" and place == (harm.layer, harm.position, None):
            return direction
    raise BoundaryError(
        "no false-refusal direction: the anchors hold no pseudo_harmful prompts that are refused beside some that are "
        "not; give more, or set mitigate.direction to fitted"
    )


def _settings_of(run: Run, method: str) -> list[Any]:
    """Return the settings that a variant hangs on."""
    settings = mitigating(run)
    if method in TRAINED:
        return [settings.training, versions("trl", "peft")]
    return [settings.direction, settings.strength, settings.training.seed]


def _read_facts(folder: Path) -> Facts | None:
    """Return what came of a variant whose files are all there, else None."""
    try:
        facts: Facts = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        return facts if facts["digest"] == _digest(folder) else None
    except (OSError, ValueError, KeyError):
        return None


def _digest(folder: Path) -> str:
    """Return a digest of the weights below a folder."""
    content = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".npy")):
        content.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            content.update(hashlib.file_digest(stream, "sha256").digest())
    return digest(content.hexdigest())
