"""What models answer, what judges say of it, and the figures that are counted from it."""

from typing import Annotated, Required, TypedDict

from rass_core.lake.declaration import Column, Int32


class Responses(TypedDict, total=False):
    """One response of one model variant to one prompt.

    Example:
        SELECT p.text AS prompt, r.text AS response FROM responses r JOIN prompts p USING (prompt_id)
        WHERE r.variant = 'base' AND r.attack IS NULL AND r.text IS NOT NULL LIMIT 10
    """

    response_id: Required[Annotated[str, Column("Id of the response; `verdicts` names it as subject.")]]
    prompt_id: Required[Annotated[str, Column("Prompt before any attack, an id of `prompts`.")]]
    model_id: Required[
        Annotated[str, Column("Model that answered; of a mitigated variant, the model it was made from.")]
    ]
    variant: Required[Annotated[str, Column("base: the model as given; else the method that mitigated it.")]]
    sample: Required[Annotated[Int32, Column("Number of the sample.", "from 0")]]
    attack: Annotated[str | None, Column("Jailbreak in which the prompt was asked; null: as it is.")]
    text: Annotated[
        str | None,
        Column("Text; null for a harmful prompt unless `probe.store_harmful_responses` is set."),
    ]
    text_sha256: Required[Annotated[str, Column("SHA-256 of the text, UTF-8.")]]
    finish_reason: Annotated[str | None, Column("stop: ended by itself. length: cut off.")]
    n_tokens: Annotated[Int32 | None, Column("Length of the response.", "tokens")]


class Verdicts(TypedDict, total=False):
    """Verdict of one judge on one response, or of one moderator on one prompt.

    Example:
        SELECT r.variant, v.outcome, count(*) AS n FROM verdicts v JOIN responses r ON v.subject_id = r.response_id
        WHERE v.judge = 'panel' GROUP BY ALL ORDER BY ALL
    """

    subject_id: Required[
        Annotated[str, Column("What was judged: a response_id of `responses` or a prompt_id of `prompts`.")]
    ]
    judge: Required[
        Annotated[
            str,
            Column(
                "Name of the judge or moderator; panel: their vote; human:NAME: a reviewer; first_token;"
                " back_translation; broken_text: a check that overrides the panel."
            ),
        ]
    ]
    outcome: Required[
        Annotated[
            str,
            Column(
                "Of a response: refusal, partial, compliance, unscored. Of a prompt: harmful, pseudo_harmful,"
                " harmless, incoherent, unscored. Of a back-translation: same, changed."
            ),
        ]
    ]
    score: Annotated[
        float | None,
        Column("How sure that it is refused at least in part, or, of a prompt, benign; null: not scored.", "0 to 1"),
    ]
    disagreement: Annotated[
        float | None, Column("Share of the weight cast against the panel's outcome; null for one judge.", "share")
    ]
    reason: Annotated[str | None, Column("Why; null where it would quote a text that is not stored.")]
    kind: Annotated[
        str | None,
        Column(
            "Why a response gives no plain help: policy, warning, premise, capability, missing_information,"
            " clarification; null: it helps, or the judge does not say."
        ),
    ]


class Evaluations(TypedDict, total=False):
    """One figure of one model variant on one data set in one language, with its interval.

    A change is the metric `NAME_change`: after − before, over the prompts scored under both variants. A figure that
    cannot be computed is null and has a reason. Beside rates there are counts, such as `dropped_duplicate` of the given
    prompts, and the checks of moderators (variant: the moderator) and engines (data set `self-check`).

    Example:
        SELECT variant, dataset, language, metric, value, low, high, n FROM evaluations
        WHERE metric IN ('over_refusal_rate', 'safety_rate') ORDER BY ALL
    """

    model_id: Annotated[str | None, Column("Model that was measured; null where none was asked.")]
    variant: Required[Annotated[str, Column("base: the model as given; else the method that mitigated it.")]]
    dataset: Required[
        Annotated[str, Column("Data set or label of the prompts; all: each prompt once; jailbreak: under attack.")]
    ]
    language: Annotated[str | None, Column("Language; all: over all of them.")]
    metric: Required[Annotated[str, Column("What was measured, such as over_refusal_rate, safety_rate_change, kl.")]]
    value: Annotated[
        float | None, Column("The figure, in the unit of its metric: rates from 0 to 1, KL in nats per token.")
    ]
    low: Annotated[float | None, Column("Lower end of the interval, 95% unless `gate.level` says otherwise.")]
    high: Annotated[float | None, Column("Upper end of the interval.")]
    corrected: Annotated[
        float | None, Column("Rate corrected for the panel's known errors; null without a calibration.")
    ]
    corrected_low: Annotated[float | None, Column("Lower end of `corrected`.")]
    corrected_high: Annotated[float | None, Column("Upper end of `corrected`.")]
    n: Annotated[
        int | None, Column("What was counted: scored prompts; of a change, those scored under both.", "prompts")
    ]
    n_unscored: Annotated[int | None, Column("Prompts that are not scored, or of a change, not under both.", "prompts")]
    n_families: Annotated[int | None, Column("Families of the n prompts.", "families")]
    n_effective: Annotated[
        int | None, Column("Independent prompts that n are worth: n ÷ design effect of families.", "prompts")
    ]
    n_gained: Annotated[int | None, Column("Prompts that count after and did not before.", "prompts")]
    n_lost: Annotated[int | None, Column("Prompts that counted before and do not after.", "prompts")]
    p_value: Annotated[float | None, Column("McNemar's test over families of a change.", "probability")]
    reason: Annotated[str | None, Column("Why there is no figure, or what to know about it.")]
