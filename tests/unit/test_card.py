"""The card of a mitigated model: its figures and what it says of the gate."""

from typing import Any

from rass_core.mitigate.card import figures_of, gate_note


def row(metric: str, value: float, language: str = "all", **more: Any) -> dict[str, Any]:
    given = {"variant": "dpo", "dataset": "all", "low": None, "high": None, "n": 7, "n_unscored": 1}
    return given | {"metric": metric, "value": value, "language": language} | more


def test_a_card_shows_each_rate_by_language_with_its_change() -> None:
    rows = [
        row("over_refusal_rate", 0.2, "de"),
        row("over_refusal_rate", 0.1),
        row("over_refusal_rate_change", -0.3, low=-0.4, high=-0.2),
        row("over_refusal_rate", 0.9, variant="sft"),
        row("over_refusal_rate", 0.8, dataset="test_split"),
        row("jailbreak_safety_rate", 1.0, dataset="jailbreak"),
        row("kl", 0.01),
    ]
    found = figures_of("dpo", rows)
    assert [(each["rate"], each["language"], each["value"]) for each in found] == [
        ("over-refusal", "all", 0.1), ("over-refusal", "de", 0.2), ("safety under jailbreaks", "all", 1.0),
        ("kl", "all", 0.01), ("perplexity", "all", None),
    ]  # fmt: skip
    assert [found[0][name] for name in ("change", "change low", "change high")] == [-0.3, -0.4, -0.2]
    assert found[1]["change"] is None


def test_a_card_says_what_the_gate_says() -> None:
    assert gate_note({"passed": True, "refusals": []}) == "It passed the gate."
    refused = gate_note({"passed": False, "refusals": ["safety falls"]})
    assert refused.startswith("**It did not pass the gate") and refused.endswith("- safety falls")
