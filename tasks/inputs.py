"""What a run is given, checked before anything is written; light to import, so that a mistake is reported at once."""

from rass_core.config import RassConfig
from rass_core.data.prompts import LoadedPrompts, load_prompts
from rass_core.generate.operators import ROLES, operator_of
from rass_core.judges.panel import check_judged
from rass_core.models.chat import SHORT_ANSWER, chat_of
from rass_core.models.identity import model_id
from rass_core.models.loading import checked_folder

_given: dict[str, LoadedPrompts] = {}
_checked: dict[str, list[str]] = {}
"""Digest of a configuration → what is to be known of the models' templates."""


def read_given(config: RassConfig) -> LoadedPrompts:
    """Return the given prompts, having checked them and that every model is there; each configuration is read once.

    Raises:
        RassError: What is wrong with them.
    """
    key = config.sha256()
    if key not in _given:
        for model in filter(None, (config.model, config.generator, *config.models)):
            model_id(model.reference)
        loaded = load_prompts(config.prompts.sources, max_characters=config.prompts.max_characters)
        check_judged(config.judge, loaded.places)
        _given[key] = loaded
    return _given[key]


def check_inputs(config: RassConfig) -> LoadedPrompts:
    """Return the given prompts, having checked them and that every model is there and chats.

    Raises:
        RassError: What is wrong with them; nothing has been written then.
    """
    loaded, key = read_given(config), config.sha256()
    if key not in _checked:
        notes: list[str] = []
        for model in filter(None, (config.model, config.generator, *config.models)):
            checked_folder(model.reference)
            found = chat_of(model).notes(config.probe.max_new_tokens, loaded.texts())
            notes += [f"{model.name}, {what}: {note}" for what, note in found.items() if what != "date"]
        if config.mitigate is not None:
            _check_mitigation(config)
        _checked[key] = list(dict.fromkeys(notes))
    return loaded


def check_turns(config: RassConfig) -> None:
    """Raise ModelError where the generator may write in the user's turn, and its template loses earlier turns.

    Only for what writes prompts: a probe asks for one turn.
    """
    settings = config.generate
    roles = {writer.role for writer in settings.writers} if settings.writers else set(ROLES)
    shows_turns = any(operator_of(name).has_earlier_turns for name in settings.operators)
    if settings.endpoint is None and "user" in roles and shows_turns:
        chat_of(config.generator or config.model).user_turn_ids([SHORT_ANSWER])


def notes_of(config: RassConfig) -> list[str]:
    """Return what is to be known of the templates of the configuration's models but their dates, a line each."""
    check_inputs(config)
    return _checked[config.sha256()]


def take_inputs(config: RassConfig) -> LoadedPrompts:
    """Return what `check_inputs` does, and forget it: the next run of this process reads files anew."""
    loaded, key = check_inputs(config), config.sha256()
    _given.pop(key, None)
    _checked.pop(key, None)
    return loaded


def _check_mitigation(config: RassConfig) -> None:
    """Raise what would else be found only after the selection."""
    from rass_core.evaluate import lm_eval
    from rass_core.evaluate.samples import attack_names

    for source in config.evaluate.sources:
        check_judged(config.judge, load_prompts([source], config.prompts.max_characters).places)
    attack_names(config.evaluate.jailbreaks)
    for method in config.mitigate.variants().values() if config.mitigate else ():
        method.check(config.model)
    if config.evaluate.utility is not None:
        lm_eval.check_installed()
