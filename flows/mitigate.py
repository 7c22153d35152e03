"""Mitigate over-refusal with the selected prompts, measure before and after, and judge what may be published."""

from collections.abc import Sequence

from rass_core.lake.store import Commit
from rass_core.mitigate.pairs import PreferencePair
from tasks.card import write_cards
from tasks.evaluate import evaluate, evaluation_set, gate, measure_change
from tasks.mitigate import as_given, mitigate_by
from tasks.preferences import build_preferences, mitigating, read_pairs
from tasks.probed import Probed
from tasks.session import Session


def mitigate_steps(session: Session, probed: Probed, rounds: Sequence[Commit], selection: Commit) -> list[Commit]:
    """Return the gate's verdict on each variant; the last steps of the project's method, one per line."""
    preferences = build_preferences(session, probed, rounds, selection)
    return mitigate_pairs_steps(session, probed, read_pairs(session, probed, rounds, preferences))


def mitigate_pairs_steps(session: Session, probed: Probed, pairs: Sequence[PreferencePair]) -> list[Commit]:
    """Return the gate's verdict on the variant that each mitigation method makes of these pairs."""
    asked = evaluation_set(session, probed, pairs)
    before = evaluate(session, as_given(session), asked)
    gates = []
    for method in mitigating(session).variants().values():
        variant = mitigate_by(session, method, pairs, probed)
        after = evaluate(session, variant, asked, before)
        change = measure_change(session, before, after, asked)
        gates.append(gate(session, variant, change))
        write_cards(session, variant, pairs, after.commit, change, gates[-1])
    return gates
