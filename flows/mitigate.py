"""Mitigate over-refusal with the selected prompts, measure before and after, and judge what may be published."""

from collections.abc import Sequence

from rass_core.lake.store import Commit
from rass_core.mitigate.pairs import PreferencePair
from tasks.card import write_cards
from tasks.evaluate import compare, evaluate, evaluation_set, gate
from tasks.generate import Probed
from tasks.mitigate import as_given, mitigate_by
from tasks.preferences import build_preferences, mitigating, read_pairs
from tasks.run import Run


def mitigate_steps(run: Run, probed: Probed, rounds: Sequence[Commit], selection: Commit) -> list[Commit]:
    """Return the gate's verdict on each variant; the last steps of the project's method, one per line."""
    preferences = build_preferences(run, probed, rounds, selection)
    return mitigate_pairs_steps(run, probed, read_pairs(run, probed, rounds, preferences))


def mitigate_pairs_steps(run: Run, probed: Probed, pairs: Sequence[PreferencePair]) -> list[Commit]:
    """Return the gate's verdict on the variant that each mitigation method makes of these pairs."""
    asked = evaluation_set(run, probed, pairs)
    before = evaluate(run, as_given(run), asked)
    gates = []
    for method in mitigating(run).variants().values():
        variant = mitigate_by(run, method, pairs, probed)
        after = evaluate(run, variant, asked, before)
        change = compare(run, before, after, asked)
        gates.append(gate(run, variant, change))
        write_cards(run, variant, pairs, after.commit, change, gates[-1])
    return gates
