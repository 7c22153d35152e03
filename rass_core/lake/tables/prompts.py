"""Prompts, and the results of writing them."""

from typing import Annotated, Required, TypedDict

from rass_core.lake.declaration import Column, Int32


class Prompts(TypedDict, total=False):
    """One prompt, given or written by a generator.

    The view shows the newest row of each prompt_id.

    Example:
        SELECT language, label, count(*) AS n FROM prompts GROUP BY ALL ORDER BY ALL
    """

    prompt_id: Required[Annotated[str, Column("Id of the prompt: a digest of language and text, case ignored.")]]
    text: Required[Annotated[str, Column("Text of the prompt.")]]
    language: Required[Annotated[str, Column("Language, a BCP-47 tag.")]]
    label: Required[
        Annotated[
            str,
            Column(
                "harmful, harmless, or pseudo_harmful: it sounds harmful and is not. Given prompts have their true"
                " label, written ones the moderators' verdict."
            ),
        ]
    ]
    category: Annotated[str | None, Column("Topic, as the source names it.")]
    source: Annotated[str | None, Column("Name of the source; `rass:OPERATOR` for a written prompt.")]
    licence: Annotated[
        str | None, Column("Licence of the source; null for a written prompt, which has those of its parents.")
    ]
    family: Annotated[
        str | None,
        Column("Prompts of one origin share it: translations, variants, offspring. A split never divides it."),
    ]


class Generations(TypedDict, total=False):
    """One text that a generator wrote, as it came; `prompts` holds the requests that cleaning found in such texts.

    Example:
        SELECT operator, finish_reason, count(*) AS n FROM generations GROUP BY ALL ORDER BY ALL
    """

    generation_id: Required[Annotated[str, Column("Id of the text within its round.")]]
    generator_id: Required[Annotated[str, Column("Model that wrote it.")]]
    operator: Required[Annotated[str, Column("What was asked, as in `derivations`.")]]
    role: Required[Annotated[str, Column("Role of the generator: assistant, prefilled, user.")]]
    steering: Required[Annotated[str, Column("What was added to its stream; none for nothing.")]]
    layer: Annotated[Int32 | None, Column("Block after which it was added.", "block, from 0")]
    alpha: Required[Annotated[float, Column("Strength of the steering.", "α")]]
    language: Required[Annotated[str, Column("Language that was asked for, a BCP-47 tag.")]]
    text: Required[Annotated[str, Column("Text, empty where there is none.")]]
    finish_reason: Required[
        Annotated[
            str, Column("stop, length, thinking: it ended there; no answer, declined, filtered: an endpoint gave none.")
        ]
    ]
    n_tokens: Required[Annotated[Int32, Column("Length of the text.", "tokens")]]


class Derivations(TypedDict, total=False):
    """How one prompt was written: from which parents, by which operator, under which steering.

    Example:
        SELECT d.operator, d.alpha, p.text FROM derivations d JOIN prompts p USING (prompt_id) ORDER BY ALL LIMIT 10
    """

    prompt_id: Required[Annotated[str, Column("Prompt that was written, an id of `prompts`.")]]
    operator: Required[
        Annotated[str, Column("What was asked: rewrite, trigger, context, recombine, translate, imitate, begin.")]
    ]
    role: Annotated[str | None, Column("Role of the generator: assistant, prefilled, user.")]
    steering: Annotated[str | None, Column("What was added to its stream, as in docs/generation.md; none for nothing.")]
    layer: Annotated[Int32 | None, Column("Block after which it was added.", "block, from 0")]
    round: Required[Annotated[Int32, Column("Round that wrote it; −1 is the trial of the writers.", "round, from 0")]]
    parent_ids: Annotated[list[str] | None, Column("Prompts it was written from, ids of `prompts`.")]
    generator_id: Annotated[str | None, Column("Model that wrote it.")]
    direction_id: Annotated[str | None, Column("Direction that was added, an id of `directions`.")]
    alpha: Annotated[float | None, Column("Strength of the steering; 0 is unsteered, negative away from refusal.", "α")]
    side: Annotated[str | None, Column("Side of the boundary on which its first parent lies: refusing, complying.")]
    coherent: Annotated[bool | None, Column("True: only coherent prompts are kept.")]
    n_tokens: Annotated[Int32 | None, Column("Tokens that the generator wrote for it.", "tokens")]


class DroppedCount(TypedDict, total=False):
    """Why written texts were no new prompts."""

    reason: Required[Annotated[str, Column("Reason, as in docs/generation.md.")]]
    n: Required[Annotated[Int32, Column("Texts dropped for it.", "texts")]]


class Rounds(TypedDict, total=False):
    """What one arm wrote in one round: operator, role, language, side and α, counted.

    Each count is of those before it: candidates, new, benign, refused, accepted.

    Example:
        SELECT alpha = 0 AS unsteered, sum(n_accepted) AS accepted, sum(n_tokens) AS tokens FROM rounds GROUP BY 1
    """

    model_id: Required[Annotated[str, Column("Model for which the prompts were written.")]]
    round: Required[Annotated[Int32, Column("Round.", "round, from 0")]]
    operator: Required[Annotated[str, Column("As in `derivations`.")]]
    role: Annotated[str | None, Column("Role of the generator, as in `derivations`.")]
    steering: Annotated[str | None, Column("What was added to its stream, as in `derivations`.")]
    layer: Annotated[Int32 | None, Column("Block after which it was added.", "block, from 0")]
    language: Required[Annotated[str, Column("Language asked for.")]]
    side: Annotated[str | None, Column("Side of the boundary on which the parents lie: refusing, complying.")]
    alpha: Required[Annotated[float, Column("Strength of the steering; 0 is the unsteered control.", "α")]]
    n_candidates: Required[Annotated[Int32, Column("Texts written.", "texts")]]
    n_coherent: Required[Annotated[Int32, Column("Texts that were measured and answered.", "texts")]]
    n_new: Required[Annotated[Int32, Column("New requests in the language asked for.", "texts")]]
    n_benign: Required[Annotated[Int32, Column("New requests that the moderators call benign.", "texts")]]
    n_refused: Required[Annotated[Int32, Column("Benign new requests that the model refuses.", "texts")]]
    n_accepted: Required[
        Annotated[Int32, Column("Refused ones that lie within `generate.width` and `select.max_harm_score`.", "texts")]
    ]
    n_tokens: Required[Annotated[int, Column("Tokens written for all of them.", "tokens")]]
    dropped: Annotated[list[DroppedCount] | None, Column("Why texts were no new requests.")]
    median_abs_distance: Annotated[float | None, Column("Median of `distances`.", "margin")]
    distances: Annotated[list[float] | None, Column("|m − b| of each benign new request that has one.", "margin")]
    reason: Annotated[str | None, Column("Why there is no median.")]


class Writers(TypedDict, total=False):
    """What one writer, a role and a steering, wrote in the trial at one α.

    Example:
        SELECT role, steering, layer, alpha, 1000 * n_accepted / n_tokens AS per_1000_tokens, chosen FROM writers
    """

    model_id: Required[Annotated[str, Column("Model for which the prompts were written.")]]
    generator_id: Required[Annotated[str, Column("Model that wrote them.")]]
    role: Required[Annotated[str, Column("Role of the generator, as in `derivations`.")]]
    steering: Required[Annotated[str, Column("What was added to its stream, as in `derivations`.")]]
    layer: Annotated[Int32 | None, Column("Block after which it was added.", "block, from 0")]
    alpha: Required[Annotated[float, Column("Strength of the steering.", "α")]]
    n_candidates: Required[Annotated[Int32, Column("Texts written.", "texts")]]
    n_coherent: Required[Annotated[Int32, Column("Texts that were measured and answered.", "texts")]]
    n_new: Required[Annotated[Int32, Column("New requests in the language asked for.", "texts")]]
    n_benign: Required[Annotated[Int32, Column("New requests that the moderators call benign.", "texts")]]
    n_refused: Required[Annotated[Int32, Column("Benign new requests that the model refuses.", "texts")]]
    n_accepted: Required[Annotated[Int32, Column("Accepted ones, as in `rounds`.", "texts")]]
    n_tokens: Required[Annotated[int, Column("Tokens written for all of them.", "tokens")]]
    dropped: Annotated[list[DroppedCount] | None, Column("Why texts were no new requests.")]
    chosen: Required[Annotated[bool, Column("Whether the rounds use this writer.")]]
