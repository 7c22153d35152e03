"""What the probe measures: residual streams, directions, margins and boundaries."""

from typing import Annotated, Required, TypedDict

from rass_core.lake.declaration import Column, Int32, Vector


class Activations(TypedDict, total=False):
    """Residual stream of one model on one prompt, after one block at one token.

    Example:
        SELECT model_id, layer, position, count(*) AS n, any_value(len(vector)) AS d_model
        FROM activations GROUP BY ALL ORDER BY ALL
    """

    prompt_id: Required[Annotated[str, Column("Prompt, an id of `prompts`.")]]
    model_id: Required[Annotated[str, Column("Model that read it, unsteered.")]]
    layer: Required[Annotated[Int32, Column("Decoder block whose output it is.", "block, from 0")]]
    position: Required[
        Annotated[Int32, Column("Token of the chat template; −1 is the last one.", "tokens from the end")]
    ]
    vector: Required[Annotated[Vector, Column("Residual stream, d_model numbers.", "activation")]]


class Directions(TypedDict, total=False):
    """One direction of the residual stream, with where it was read and how it scored.

    Example:
        SELECT kind, method, layer, position, auc, alpha, roles FROM directions WHERE list_contains(roles, 'margin')
    """

    direction_id: Required[Annotated[str, Column("Id of the direction: a digest of what it is.")]]
    model_id: Required[Annotated[str, Column("Model whose streams it was read from.")]]
    kind: Required[
        Annotated[
            str,
            Column(
                "harm: harmful − harmless. refusal: refused − answered at equal label. false_refusal: the same within"
                " pseudo_harmful, orthogonal to harm. pseudo_harm: pseudo_harmful − harmless. content: harm at the"
                " request's own words."
            ),
        ]
    ]
    method: Required[Annotated[str, Column("How it was computed, such as difference_in_means.")]]
    language: Annotated[str | None, Column("Only language it was computed from; null for all of them.")]
    layer: Annotated[
        Int32 | None, Column("Block whose output was read; null for a learned direction.", "block, from 0")
    ]
    position: Annotated[
        Int32 | None,
        Column("Token that was read, −1 the last one; null for a learned direction.", "tokens from the end"),
    ]
    vector: Required[Annotated[Vector, Column("The direction, d_model numbers.", "activation")]]
    auc: Annotated[
        float | None,
        Column(
            "On validation: how well its margin predicts refusal within pseudo_harmful, mean over languages.", "AUC"
        ),
    ]
    alpha: Annotated[float | None, Column("Strength at which adding it induces refusal best; null: not tried.", "α")]
    induce_score: Annotated[
        float | None,
        Column("Of harmless prompts that lean to an answer, those that lean to refusal with α·v added.", "share"),
    ]
    induce_generated: Annotated[
        float | None, Column("Harmless prompts whose generated answer is a coherent refusal with α·v added.", "share")
    ]
    n_generated: Annotated[int | None, Column("Answers behind `induce_generated`.", "responses")]
    bypass_score: Annotated[
        float | None,
        Column("Of harmful prompts that lean to refusal, those that lean to an answer with v ablated.", "share"),
    ]
    kl: Annotated[float | None, Column("KL of the first token on harmless prompts when v is ablated, mean.", "nats")]
    ablate_layers: Annotated[
        list[Int32] | None,
        Column("Blocks after which v was ablated; 0 includes the input of block 0.", "block, from 0"),
    ]
    ablate_strength: Annotated[float | None, Column("Strength λ of that ablation, 0 to 1.", "λ")]
    agreement: Annotated[
        float | None,
        Column("Cosine with the direction of all languages; of a mitigation's direction, with the harm direction."),
    ]
    roles: Annotated[
        list[str] | None,
        Column("What it was chosen for, of margin, harm, add, ablate; null where for nothing."),
    ]
    reason: Annotated[str | None, Column("Why it has these roles, or why a score is missing.")]


class Margins(TypedDict, total=False):
    """Place of one prompt under one model: along the direction of refusal, across it, and along the harm axis.

    Example:
        SELECT p.language, p.text, m.margin, m.distance FROM margins m JOIN prompts p USING (prompt_id)
        WHERE m.split = 'test' ORDER BY abs(m.distance) LIMIT 10
    """

    prompt_id: Required[Annotated[str, Column("Prompt, an id of `prompts`.")]]
    model_id: Required[Annotated[str, Column("Model that read it, unsteered.")]]
    direction_id: Required[Annotated[str, Column("Direction of the margin, an id of `directions`.")]]
    split: Required[
        Annotated[
            str,
            Column(
                "Given prompts: train, validation or test. candidate: written in a round. benchmark: measured for a"
                " benchmark."
            ),
        ]
    ]
    margin: Annotated[
        float | None,
        Column(
            "Projection on the direction: −1 mean of harmless, +1 mean of harmful prompts of its language.", "margin"
        ),
    ]
    orthogonal_score: Annotated[
        float | None,
        Column("Score on the first principal component of what is orthogonal to the direction.", "activation"),
    ]
    distance: Annotated[
        float | None,
        Column("margin − b of `boundaries`: positive on the refusing side; null where b is not known.", "margin"),
    ]
    harm_score: Annotated[
        float | None,
        Column("Place along the harm axis: −1 mean of pseudo_harmful, +1 mean of harmful prompts.", "harm score"),
    ]


class HarmAxes(TypedDict, total=False):
    """The harm axis of one model in one language, or the figures of one layer.

    Rows that are `chosen` hold the axis, one per language: harm_score = ⟨stream, vector⟩ + intercept. The other rows
    hold the figures of a layer over all languages. AUCs separate harmful from pseudo_harmful prompts of the test split;
    `_low` and `_high` are the ends of 95% intervals. See docs/misalignment.md.

    Example:
        SELECT layer, position, cv_auc, auc, same_source, margin FROM harm_axes WHERE NOT chosen ORDER BY layer
    """

    axis_id: Annotated[str | None, Column("Id of the axis in this language; null where not chosen.")]
    model_id: Required[Annotated[str, Column("Model whose streams it was fitted on.")]]
    language: Required[Annotated[str, Column("Language of the scale; all for the figures of a layer.")]]
    layer: Annotated[Int32 | None, Column("Decoder block.", "block, from 0")]
    position: Annotated[Int32 | None, Column("Token of the chat template, −1 the last one.", "tokens from the end")]
    vector: Annotated[
        Vector | None, Column("The axis, d_model numbers, scaled for this language.", "harm score/activation")
    ]
    intercept: Annotated[float | None, Column("Added to the product with the stream.", "harm score")]
    inverse_penalty: Annotated[float | None, Column("C of the logistic regression.")]
    cv_auc: Annotated[
        float | None, Column("AUC of cross-validation on train and validation, by which the place was chosen.", "AUC")
    ]
    auc: Annotated[float | None, Column("AUC along the harm axis; prompt families are new to it.", "AUC")]
    auc_low: Annotated[float | None, Column("Lower end of `auc`.", "AUC")]
    auc_high: Annotated[float | None, Column("Upper end of `auc`.", "AUC")]
    new_source: Annotated[
        float | None, Column("The same on pairs of prompts whose sources the fit has not seen.", "AUC")
    ]
    new_source_low: Annotated[float | None, Column("Lower end of `new_source`.", "AUC")]
    new_source_high: Annotated[float | None, Column("Upper end of `new_source`.", "AUC")]
    same_source: Annotated[float | None, Column("The same on pairs of prompts of one source.", "AUC")]
    same_source_low: Annotated[float | None, Column("Lower end of `same_source`.", "AUC")]
    same_source_high: Annotated[float | None, Column("Upper end of `same_source`.", "AUC")]
    margin: Annotated[float | None, Column("AUC along the margin, for comparison.", "AUC")]
    margin_low: Annotated[float | None, Column("Lower end of `margin`.", "AUC")]
    margin_high: Annotated[float | None, Column("Upper end of `margin`.", "AUC")]
    n: Annotated[int | None, Column("Prompts behind `auc`.", "prompts")]
    chosen: Required[Annotated[bool, Column("True: the axis. False: figures of a layer, or why there is no axis.")]]
    reason: Annotated[str | None, Column("Why there is no axis.")]


class Boundaries(TypedDict, total=False):
    """Where along the margin one model begins to refuse in one language, and where it should.

    P(refuse | m) = σ(k·(m − b)), fitted on the test split. `_low` and `_high` are the ends of 95% intervals.

    Example:
        SELECT language, b, b_low, b_high, b_oracle, misalignment, kind, reason FROM boundaries ORDER BY language
    """

    model_id: Required[Annotated[str, Column("Model that was measured.")]]
    variant: Required[Annotated[str, Column("base: the model as given.")]]
    direction_id: Required[Annotated[str, Column("Direction of the margin, an id of `directions`.")]]
    language: Required[Annotated[str, Column("Language of the prompts.")]]
    b: Annotated[
        float | None, Column("Margin at which half of the prompts are refused; null: not identified.", "margin")
    ]
    b_low: Annotated[float | None, Column("Lower end of `b`.", "margin")]
    b_high: Annotated[float | None, Column("Upper end of `b`.", "margin")]
    k: Annotated[
        float | None, Column("Steepness at b; null where refused and answered prompts do not overlap.", "1/margin")
    ]
    b_oracle: Annotated[float | None, Column("b*: margin at which half of the prompts are truly harmful.", "margin")]
    b_oracle_low: Annotated[float | None, Column("Lower end of `b_oracle`.", "margin")]
    b_oracle_high: Annotated[float | None, Column("Upper end of `b_oracle`.", "margin")]
    misalignment: Annotated[float | None, Column("b* − b: positive where the model refuses too early.", "margin")]
    misalignment_low: Annotated[float | None, Column("Lower end of `misalignment`.", "margin")]
    misalignment_high: Annotated[float | None, Column("Upper end of `misalignment`.", "margin")]
    auc: Annotated[float | None, Column("How well the margin predicts refusal within pseudo_harmful.", "AUC")]
    n: Required[Annotated[int, Column("Scored prompts of the test split.", "prompts")]]
    n_refused: Required[Annotated[int, Column("Those of them that are refused.", "prompts")]]
    reason: Annotated[str | None, Column("Why a figure is null, or how it was pooled over languages.")]
    kind: Annotated[str | None, Column("Kind of misalignment that the intervals show, as in docs/misalignment.md.")]
    kind_reason: Annotated[str | None, Column("What fell short or could not be tested.")]
