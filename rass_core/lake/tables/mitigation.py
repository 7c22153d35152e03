"""Selected prompts, the pairs made of them, the models trained on these, and whether they may be published."""

from typing import Annotated, Required, TypedDict

from rass_core.lake.declaration import Column, Int32, Vector


class Gradients(TypedDict, total=False):
    """What training on one prompt would change: the projected gradient of the log-odds of refusing it.

    Example:
        SELECT model_id, count(*) AS n, any_value(len(vector)) AS width FROM gradients GROUP BY 1
    """

    prompt_id: Required[Annotated[str, Column("Prompt, an id of `prompts`.")]]
    model_id: Required[Annotated[str, Column("Model that read it.")]]
    log_odds: Required[Annotated[float, Column("Log-odds of opening a refusal against an answer.", "nats")]]
    vector: Required[Annotated[Vector, Column("Gradient over the decoder blocks' weights, projected at random.")]]


class Selections(TypedDict, total=False):
    """One selected prompt: benign, refused, near the boundary.

    Example:
        SELECT s.rank, p.language, p.text, s.margin FROM selections s JOIN prompts p USING (prompt_id) ORDER BY s.rank
    """

    selection_id: Required[Annotated[str, Column("Selection it belongs to.")]]
    prompt_id: Required[Annotated[str, Column("Prompt, an id of `prompts`.")]]
    model_id: Required[Annotated[str, Column("Model that refuses it.")]]
    rank: Required[Annotated[Int32, Column("Order of choice: a selection of size n is the first n.", "from 1")]]
    margin: Annotated[float | None, Column("As in `margins`.", "margin")]
    distance: Annotated[float | None, Column("As in `margins`.", "margin")]
    cell: Required[Annotated[str, Column("Cell of the quotas, LANGUAGE/CATEGORY.")]]
    language: Required[Annotated[str, Column("Language of the prompt.")]]
    category: Required[Annotated[str, Column("Topic of the prompt; none where it has none.")]]
    operator: Annotated[str | None, Column("Operator that wrote it, as in `derivations`.")]


class Quotas(TypedDict, total=False):
    """One cell of a selection: how many prompts were wanted, could be had and were taken.

    Example:
        SELECT cell, quota, n_eligible, n_selected, reason FROM quotas WHERE n_selected < quota
    """

    selection_id: Required[Annotated[str, Column("Selection it belongs to.")]]
    cell: Required[Annotated[str, Column("LANGUAGE/CATEGORY.")]]
    language: Required[Annotated[str, Column("Language.")]]
    category: Required[Annotated[str, Column("Topic.")]]
    quota: Required[Annotated[Int32, Column("Prompts wanted.", "prompts")]]
    n_eligible: Required[Annotated[Int32, Column("Benign refused prompts, without near-duplicates.", "prompts")]]
    n_selected: Required[Annotated[Int32, Column("Prompts selected.", "prompts")]]
    reason: Annotated[str | None, Column("Why it fell short of the quota.")]


class Preferences(TypedDict, total=False):
    """One preference pair for the mitigation: a prompt with a chosen and a rejected answer.

    Example:
        SELECT e.kind, p.text, e.chosen, e.rejected FROM preferences e JOIN prompts p USING (prompt_id) LIMIT 10
    """

    prompt_id: Required[Annotated[str, Column("Prompt, an id of `prompts`.")]]
    model_id: Required[Annotated[str, Column("Model that is to be mitigated.")]]
    kind: Required[
        Annotated[
            str,
            Column(
                "over_refusal: selected, chosen is a steered helpful answer. safety: harmful, chosen is the refusal."
                " general: harmless, chosen is the model's own answer."
            ),
        ]
    ]
    language: Required[Annotated[str, Column("Language of the prompt.")]]
    chosen: Required[Annotated[str, Column("Answer to be learnt.")]]
    rejected: Required[Annotated[str, Column("Answer to be avoided.")]]
    alpha: Annotated[float | None, Column("Strength by which the chosen answer was steered off refusal.", "α")]


class Variants(TypedDict, total=False):
    """One mitigated model.

    Example:
        SELECT variant, folder, n_pairs, harm_cosine FROM variants ORDER BY variant
    """

    model_id: Required[Annotated[str, Column("Model that it was made from.")]]
    variant: Required[Annotated[str, Column("Method that made it.")]]
    folder: Required[Annotated[str, Column("Folder below the lake.")]]
    is_adapter: Required[Annotated[bool, Column("True: a LoRA adapter. False: a checkpoint, or a direction.")]]
    digest: Required[Annotated[str, Column("Digest of its weights.")]]
    settings: Required[Annotated[str, Column("Settings of the method as JSON.")]]
    n_pairs: Required[Annotated[int, Column("Preference pairs given to it.", "pairs")]]
    n_too_long: Required[Annotated[int, Column("Pairs left out because they are too long.", "pairs")]]
    losses: Annotated[list[float] | None, Column("Training loss, in the order of the steps.", "nats")]
    harm_cosine: Annotated[
        float | None, Column("Cosine of the removed direction with the harm direction, before it was made orthogonal.")
    ]
    reason: Annotated[str | None, Column("Unused.")]


class GateNeed(TypedDict, total=False):
    """How many prompts one tolerance of the gate needs."""

    metric: Required[Annotated[str, Column("Rate that may not fall.")]]
    language: Required[Annotated[str, Column("Language; all: over all of them.")]]
    tolerance: Required[Annotated[float, Column("Fall that is tolerated.", "share")]]
    n_required: Required[Annotated[int, Column("Independent prompts needed if no response changes.", "prompts")]]
    n_required_with_changes: Annotated[
        int | None, Column("The same with the share of changes that was seen; null where not known.", "prompts")
    ]
    n_effective: Required[Annotated[int, Column("Independent prompts judged, as in `evaluations`.", "prompts")]]


class Gates(TypedDict, total=False):
    """Whether one mitigated model may be published, and why not.

    Example:
        SELECT variant, passed, unnest(refusals) AS refusal FROM gates
    """

    model_id: Required[Annotated[str, Column("Model that the variant was made from.")]]
    variant: Required[Annotated[str, Column("Method that mitigated it.")]]
    passed: Required[Annotated[bool, Column("Whether it may be published.")]]
    refusals: Required[Annotated[list[str], Column("Reasons against it; empty where passed.")]]
    warnings: Required[Annotated[list[str], Column("What should be read, and does not stop it.")]]
    needs: Annotated[list[GateNeed] | None, Column("Prompts that each tolerance needs.")]
