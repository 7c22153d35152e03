"""What the gate passed, copied out of the lake: training data in several formats, mitigated models, their cards.

TO/dataset/                Hugging Face dataset folder, with trl/, llama_factory/ and axolotl/ beside its data/
TO/models/VARIANT/         adapter, checkpoint or direction, with its card
TO/report.html
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rass_core.config import RassConfig, stored_config
from rass_core.errors import GateError, LakeError, PromptError
from rass_core.lake.files import whole_folder
from rass_core.lake.schema import TABLES
from rass_core.lake.store import Commit, Lake
from rass_core.mitigate.card import base_name
from rass_core.mitigate.pairs import PreferencePair
from rass_core.paths import check_writable, short, user_path
from rass_core.publish.formats import (
    DatasetCard,
    Origin,
    export_axolotl,
    export_dataset,
    export_llama_factory,
    export_trl,
)

HUB = "hf://"


@dataclass(frozen=True)
class Release:
    """What one run may give away."""

    run_id: str
    config: RassConfig
    variants: Sequence[Mapping[str, Any]]
    """Rows of `variants` that passed."""
    pairs: list[PreferencePair]
    origins: dict[str, Origin]
    """prompt_id → where it comes from; that of a written prompt names the licences of all it was written from."""


def release_of(lake: Lake, variant: str | None = None) -> Release:
    """Return what the newest run with a gate may publish.

    Args:
        lake: Where it ran.
        variant: Only this one; None takes all that passed.

    Raises:
        GateError: No run was gated, the variant is not among them, or it did not pass: the reasons stand in it.
        PromptError: A prompt whose licence is not known.
    """
    run, commits = _newest_gated(lake)
    gates = {row["variant"]: row for row in _read(lake, "gates", commits)}
    asked = list(gates) if variant is None else [variant]
    if variant is not None and variant not in gates:
        raise GateError(f"publish: no variant {variant!r} in run {run['run_id']}; there are {', '.join(sorted(gates))}")
    passed = [name for name in asked if gates[name]["passed"]]
    if not passed:
        reasons = gates[asked[0]]["refusals"]
        raise GateError(f"publish: {', '.join(asked)} did not pass the gate: {reasons[0] if reasons else 'no reason'}")
    rows = [row for row in _read(lake, "variants", commits) if row["variant"] in passed]
    pairs, origins = _pairs(lake, commits)
    return Release(run["run_id"], stored_config(run, str(lake)), rows, pairs, origins)


def publish(lake: Lake, to: str, variant: str | None = None) -> list[str]:
    """Copy what passed to a folder, or to the Hugging Face hub for hf://ORGANISATION/NAME; return where it lies.

    Raises:
        GateError, PromptError: As `release_of`.
        LakeError: The folder is not empty, something in the lake is gone, or the hub did not take it.
    """
    folder = _checked_place(to)
    release = release_of(lake, variant)
    if folder is None:
        with TemporaryDirectory() as temporary:
            _write(lake, release, Path(temporary))
            return _upload(Path(temporary), to.removeprefix(HUB))
    try:
        with whole_folder(folder) as staging:
            _write(lake, release, staging)
    except OSError as error:
        raise LakeError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
    return [str(folder / "dataset"), *(str(folder / "models" / row["variant"]) for row in release.variants)]


def _checked_place(to: str) -> Path | None:
    """Return the folder that is to be made, None for a place on the hub; raise LakeError where it cannot be."""
    if to.startswith(HUB):
        if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", to.removeprefix(HUB)):
            raise LakeError(f"{short(to)}: not a name on the hub; write hf://ORGANISATION/NAME")
        return None
    folder = user_path(to, LakeError, "--to").absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LakeError(f"{folder}: already there and not empty; name a new folder with --to")
    check_writable(folder, LakeError, "--to")
    return folder


def artifact_of(lake_path: Path, variant: Mapping[str, Any]) -> Path:
    """Return the folder of what a variant gives to others: its adapter or checkpoint, else its direction's."""
    folder = lake_path / str(variant["folder"])
    return next((folder / name for name in ("adapter", "checkpoint") if (folder / name).is_dir()), folder)


def _newest_gated(lake: Lake) -> tuple[Mapping[str, Any], list[Commit]]:
    lake.check_whole("runs")  # else an older run would be published
    rows = lake.query(
        "SELECT * FROM runs WHERE state IN ('Completed', 'Rejected') ORDER BY started_at DESC, run_id DESC"
    ).to_pylist()
    for run in rows:
        commits = lake.commits_of(run)
        if any(file.table == "gates" for commit in commits for file in commit.files):
            return run, commits
    raise GateError(f"publish: {lake} holds no gated run; `rass run` a configuration with a section mitigate")


def _read(lake: Lake, table: str, commits: Sequence[Commit]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = lake.read(table, commits=commits, columns=TABLES[table].names).to_pylist()
    return rows


def _pairs(lake: Lake, commits: Sequence[Commit]) -> tuple[list[PreferencePair], dict[str, Origin]]:
    prompts = {row["prompt_id"]: row for row in _read(lake, "prompts", commits)}
    parents: dict[str, set[str]] = {}
    for row in _read(lake, "derivations", commits):
        parents.setdefault(row["prompt_id"], set()).update(row["parent_ids"] or ())
    rows = sorted(_read(lake, "preferences", commits), key=lambda row: (row["kind"], row["prompt_id"]))
    pairs = [
        PreferencePair(
            row["prompt_id"],
            row["kind"],
            prompts[row["prompt_id"]]["text"],
            row["language"],
            row["chosen"],
            row["rejected"],
        )
        for row in rows
    ]
    origins = {}
    for pair in pairs:
        licences = _licences(pair.prompt_id, prompts, parents)
        if not licences:
            source = prompts[pair.prompt_id]["source"]
            raise PromptError(
                f"publish: prompt {pair.prompt_id} of {source} has no licence; name it with the source's `licence` in "
                "the configuration, and run again"
            )
        origins[pair.prompt_id] = Origin(prompts[pair.prompt_id]["source"], ", ".join(sorted(licences)))
    return pairs, origins


def _licences(prompt_id: str, prompts: Mapping[str, Mapping[str, Any]], parents: Mapping[str, set[str]]) -> set[str]:
    """Return the licences of a prompt, or of all that it was written from; empty where one is not known."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [prompt_id]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        licence = prompts[each]["licence"]
        if licence is not None:
            found.add(licence)
        elif parents.get(each):
            waiting += sorted(parents[each])
        else:
            return set()
    return found


def _write(lake: Lake, release: Release, folder: Path) -> None:
    """Write the whole release into a folder."""
    config, dataset = release.config, folder / "dataset"
    system_prompt = config.model.system_prompt
    licences = {origin.licence for origin in release.origins.values()}
    card = DatasetCard(
        f"{config.name}: preference pairs",
        base_name(config.model.reference),
        min(licences).lower() if len(licences) == 1 and "," not in min(licences) else "other",
        notes=["`trl/`, `llama_factory/` and `axolotl/` hold the same pairs as these trainers read them."],
    )
    export_dataset(release.pairs, dataset, card, release.origins, system_prompt)
    export_trl(release.pairs, dataset / "trl", system_prompt)
    export_llama_factory(release.pairs, dataset / "llama_factory", system_prompt=system_prompt)
    export_axolotl(release.pairs, dataset / "axolotl", system_prompt)
    for row in release.variants:
        source = artifact_of(lake.path, row)
        if not (source / "README.md").is_file():
            raise LakeError(f"{source}: missing from the lake; run the configuration again to make it")
        wanted = shutil.ignore_patterns("outcome.json", "training.json", "merged", "checkpoints")
        shutil.copytree(source, folder / "models" / row["variant"], ignore=wanted)
    report = lake.path / "report.html"
    if report.is_file():
        shutil.copy2(report, folder / "report.html")


def _upload(folder: Path, name: str) -> list[str]:
    """Put the dataset and each model into a private repository of the hub: NAME, and NAME-VARIANT."""
    from huggingface_hub import HfApi

    api = HfApi()
    parts = [(folder / "dataset", name, "dataset")]
    parts += [(each, f"{name}-{each.name}", "model") for each in sorted((folder / "models").iterdir())]
    found = []
    try:
        for source, repository, kind in parts:
            api.create_repo(repository, repo_type=kind, exist_ok=True, private=True)
            found.append(str(api.upload_folder(repo_id=repository, folder_path=source, repo_type=kind)))
    except Exception as error:  # the hub, the network and a missing token raise anything
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise LakeError(
            f"{HUB}{name}: not taken by the hub ({line[:200]}); `hf auth login`, or name a folder"
        ) from error
    return found
