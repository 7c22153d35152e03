"""The columns of every table of the lake, in one place.

Every table is a folder of Parquet files below the lake; each row also carries `run_id`
(the run that wrote it) from the folder name. Ids are digests, joins use ids, never order.
"""

import hashlib
import unicodedata

import pyarrow as pa

STRINGS = pa.list_(pa.string())
VECTOR = pa.list_(pa.field("item", pa.float32(), nullable=False))

_DROPPED = pa.list_(pa.struct([("reason", pa.string()), ("n", pa.int32())]))
_STAGE = pa.struct([
    ("stage", pa.string()), ("seconds", pa.float64()), ("cpu_seconds", pa.float64()), ("computed", pa.bool_()),
])  # fmt: skip
_NEED = pa.struct([
    ("metric", pa.string()), ("language", pa.string()), ("tolerance", pa.float64()), ("n_least", pa.int64()),
    ("n_given", pa.int64()), ("n_seen", pa.int64()),
])  # fmt: skip


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


TABLES: dict[str, pa.Schema] = {
    "runs": _schema(
        flow=pa.string(),
        config=pa.string(),
        config_sha256=pa.string(),
        code_version=pa.string(),
        seed=pa.int64(),
        commits=STRINGS,
        started_at=pa.timestamp("us", tz="UTC"),
        finished_at=pa.timestamp("us", tz="UTC"),
        state=pa.string(),
        note=pa.string(),
        stages=pa.list_(_STAGE),
        inputs=STRINGS,
    ),
    "prompts": _schema(
        prompt_id=pa.string(),
        text=pa.string(),
        language=pa.string(),
        label=pa.string(),
        category=pa.string(),
        source=pa.string(),
        licence=pa.string(),
        family=pa.string(),
    ),
    "derivations": _schema(
        prompt_id=pa.string(),
        operator=pa.string(),
        role=pa.string(),
        steering=pa.string(),
        layer=pa.int32(),
        round=pa.int32(),  # from 0; -1 is the trial of the writers
        parent_ids=STRINGS,
        generator_id=pa.string(),
        direction_id=pa.string(),
        alpha=pa.float64(),
        side=pa.string(),
        coherent=pa.bool_(),
        n_tokens=pa.int32(),
    ),
    "activations": _schema(
        prompt_id=pa.string(),
        model_id=pa.string(),
        layer=pa.int32(),
        position=pa.int32(),
        vector=VECTOR,
    ),
    "directions": _schema(
        direction_id=pa.string(),
        model_id=pa.string(),
        kind=pa.string(),
        method=pa.string(),
        language=pa.string(),
        layer=pa.int32(),
        position=pa.int32(),
        vector=VECTOR,
        auc=pa.float64(),
        alpha=pa.float64(),
        induce_score=pa.float64(),
        induce_generated=pa.float64(),
        n_generated=pa.int64(),
        bypass_score=pa.float64(),
        kl=pa.float64(),
        ablate_layers=pa.list_(pa.int32()),
        ablate_strength=pa.float64(),
        agreement=pa.float64(),
        chosen=pa.string(),
        reason=pa.string(),
    ),
    "responses": _schema(
        response_id=pa.string(),
        prompt_id=pa.string(),
        model_id=pa.string(),
        variant=pa.string(),
        sample=pa.int32(),
        dressing=pa.string(),
        text=pa.string(),
        text_sha256=pa.string(),
        finish_reason=pa.string(),
        n_tokens=pa.int32(),
    ),
    "verdicts": _schema(
        subject_id=pa.string(),
        judge=pa.string(),
        outcome=pa.string(),
        score=pa.float64(),
        disagreement=pa.float64(),
        reason=pa.string(),
        kind=pa.string(),  # of a response that gives no plain help: policy, capability …; null in lakes before it
    ),
    "margins": _schema(
        prompt_id=pa.string(),
        model_id=pa.string(),
        direction_id=pa.string(),
        split=pa.string(),
        margin=pa.float64(),
        orthogonal=pa.float64(),
        distance=pa.float64(),
        harm_score=pa.float64(),  # −1 mean of pseudo_harmful, +1 mean of harmful prompts along the harm axis
    ),
    "harm_axes": _schema(  # chosen: the axis on each language's scale; else a layer's figures over all languages
        axis_id=pa.string(),
        model_id=pa.string(),
        language=pa.string(),
        layer=pa.int32(),
        position=pa.int32(),
        vector=VECTOR,
        intercept=pa.float64(),
        inverse_penalty=pa.float64(),
        cv_auc=pa.float64(),
        auc=pa.float64(),
        auc_low=pa.float64(),
        auc_high=pa.float64(),
        new_source=pa.float64(),
        new_source_low=pa.float64(),
        new_source_high=pa.float64(),
        same_source=pa.float64(),
        same_source_low=pa.float64(),
        same_source_high=pa.float64(),
        margin=pa.float64(),
        margin_low=pa.float64(),
        margin_high=pa.float64(),
        n=pa.int64(),
        chosen=pa.bool_(),
        reason=pa.string(),
    ),
    "boundaries": _schema(
        model_id=pa.string(),
        variant=pa.string(),
        direction_id=pa.string(),
        language=pa.string(),
        b=pa.float64(),
        b_low=pa.float64(),
        b_high=pa.float64(),
        k=pa.float64(),
        b_oracle=pa.float64(),
        b_oracle_low=pa.float64(),
        b_oracle_high=pa.float64(),
        misalignment=pa.float64(),
        misalignment_low=pa.float64(),
        misalignment_high=pa.float64(),
        auc=pa.float64(),
        n=pa.int64(),
        n_refused=pa.int64(),
        reason=pa.string(),
        kind=pa.string(),
        kind_reason=pa.string(),
    ),
    "selections": _schema(
        selection_id=pa.string(),
        prompt_id=pa.string(),
        model_id=pa.string(),
        rank=pa.int32(),  # the order of choice: the first n are what a size of n chooses
        margin=pa.float64(),
        distance=pa.float64(),
        cell=pa.string(),
        language=pa.string(),
        category=pa.string(),
        operator=pa.string(),
    ),
    "quotas": _schema(
        selection_id=pa.string(),
        cell=pa.string(),
        language=pa.string(),
        category=pa.string(),
        quota=pa.int32(),
        n_eligible=pa.int32(),
        n_selected=pa.int32(),
        reason=pa.string(),
    ),
    "preferences": _schema(
        prompt_id=pa.string(),
        model_id=pa.string(),
        kind=pa.string(),
        language=pa.string(),
        chosen=pa.string(),
        rejected=pa.string(),
        alpha=pa.float64(),
    ),
    "variants": _schema(
        model_id=pa.string(),
        variant=pa.string(),
        folder=pa.string(),
        is_adapter=pa.bool_(),
        digest=pa.string(),
        settings=pa.string(),
        n_pairs=pa.int64(),
        n_too_long=pa.int64(),
        losses=pa.list_(pa.float64()),
        harm_cosine=pa.float64(),
        reason=pa.string(),
    ),
    "gates": _schema(
        model_id=pa.string(),
        variant=pa.string(),
        passed=pa.bool_(),
        refusals=STRINGS,
        warnings=STRINGS,
        needs=pa.list_(_NEED),
    ),
    "evaluations": _schema(
        model_id=pa.string(),
        variant=pa.string(),
        dataset=pa.string(),
        language=pa.string(),
        metric=pa.string(),
        value=pa.float64(),
        low=pa.float64(),
        high=pa.float64(),
        corrected=pa.float64(),
        corrected_low=pa.float64(),
        corrected_high=pa.float64(),
        n=pa.int64(),
        n_unscored=pa.int64(),
        n_families=pa.int64(),
        n_effective=pa.int64(),
        n_gained=pa.int64(),
        n_lost=pa.int64(),
        p_value=pa.float64(),
        reason=pa.string(),
    ),
    "rounds": _schema(
        model_id=pa.string(),
        round=pa.int32(),
        operator=pa.string(),
        role=pa.string(),
        steering=pa.string(),
        layer=pa.int32(),
        language=pa.string(),
        side=pa.string(),
        alpha=pa.float64(),
        n_candidates=pa.int32(),
        n_coherent=pa.int32(),
        n_new=pa.int32(),
        n_benign=pa.int32(),
        n_refused=pa.int32(),
        n_accepted=pa.int32(),
        n_tokens=pa.int64(),
        dropped=_DROPPED,
        median_abs_distance=pa.float64(),
        distances=pa.list_(pa.float64()),
        reason=pa.string(),
    ),
    "writers": _schema(
        model_id=pa.string(),
        generator_id=pa.string(),
        role=pa.string(),
        steering=pa.string(),
        layer=pa.int32(),
        alpha=pa.float64(),
        n_candidates=pa.int32(),
        n_coherent=pa.int32(),
        n_new=pa.int32(),
        n_benign=pa.int32(),
        n_refused=pa.int32(),
        n_accepted=pa.int32(),
        n_tokens=pa.int64(),
        dropped=_DROPPED,
        chosen=pa.bool_(),
    ),
}
"""Beyond the tables of the design: `harm_axes` holds the axis of `margins.harm_score`, `quotas` reports shortages,
`rounds` what each arm yielded, `writers` what the trial of roles and steerings yielded, `variants` the mitigated models
(their folder below the lake's `models/`), `gates` whether each may be published."""


def digest(*parts: object) -> str:
    """Return 16 hex digits that name these parts; equal parts give equal names anywhere."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def normalise(text: str) -> str:
    """Return the text in NFC with white space folded, as it is stored and compared."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_id(language: str, text: str) -> str:
    """Return the id of a prompt: the same wherever its text came from, case ignored."""
    return digest("prompt", language, normalise(text).casefold())
