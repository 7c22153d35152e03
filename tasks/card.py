"""The card of a mitigated model: what it is, what it learnt from, what was measured and what the gate says."""

import json
from collections.abc import Sequence

from rass_core.lake.store import Commit
from rass_core.mitigate.card import ModelCard, figures_of, gate_note, write_card
from rass_core.mitigate.pairs import PreferencePair, counts
from rass_core.publish.release import artifact_of
from tasks.mitigate import Variant
from tasks.session import Session


def write_cards(
    session: Session, variant: Variant, pairs: Sequence[PreferencePair], after: Commit, change: Commit, gate: Commit
) -> None:
    """Write the card into the variant's folder, in place of the one that its making left there."""
    card = ModelCard(
        base=session.config.model.reference,
        method=variant.name,
        is_adapter=bool(variant.facts["is_adapter"]),
        settings=json.loads(variant.facts["settings"]),
        data=counts(pairs),
        figures=figures_of(variant.name, session.read("evaluations", after, change).to_pylist()),
        notes=[gate_note(session.read("gates", gate).to_pylist()[0])],
    )
    write_card(artifact_of(session.lake.path, variant.facts), card)
