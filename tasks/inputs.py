"""What a run is given, checked before anything is written; light to import, so that a mistake is reported at once."""

from rass_core.chat import ChatFormat
from rass_core.config import ModelConfig, RassConfig
from rass_core.loading import check_mendable, checked_folder, load_tokenizer
from rass_core.models import model_id
from rass_core.prompts import LoadedPrompts, load_prompts

_given: dict[str, LoadedPrompts] = {}
_checked: set[str] = set()


def read_given(config: RassConfig) -> LoadedPrompts:
    """Return the given prompts, having checked them and that every model is there; each configuration is read once.

    Raises:
        RassError: What is wrong with them.
    """
    key = config.sha256()
    if key not in _given:
        for model in filter(None, (config.model, config.generator, *config.models)):
            model_id(model.reference)
        _given[key] = load_prompts(config.prompts.sources, max_characters=config.prompts.max_characters)
    return _given[key]


def check_inputs(config: RassConfig) -> LoadedPrompts:
    """Return the given prompts, having checked them and that every model is there and chats.

    Raises:
        RassError: What is wrong with them; nothing has been written then.
    """
    loaded, key = read_given(config), config.sha256()
    if key not in _checked:
        for model in filter(None, (config.model, config.generator, *config.models)):
            checked_folder(model.reference)
            chat_of(model)
        if config.mitigate is not None:
            _check_mitigation(config)
        _checked.add(key)
    return loaded


def take_inputs(config: RassConfig) -> LoadedPrompts:
    """Return what `check_inputs` does, and forget it: the next run of this process reads files anew."""
    loaded, key = check_inputs(config), config.sha256()
    _given.pop(key, None)
    _checked.discard(key)
    return loaded


def _check_mitigation(config: RassConfig) -> None:
    """Raise what would else be found only after the selection."""
    from rass_core import utility
    from rass_core.mitigation import train
    from rass_core.questions import dressing_names

    for source in config.evaluate.sources:
        load_prompts([source], max_characters=config.prompts.max_characters)
    dressing_names(config.evaluate.jailbreaks)
    if {"dpo", "sft"} & set(config.mitigate.methods if config.mitigate else ()):
        train.check_installed()
    if {"dpo", "sft", "surgical"} & set(config.mitigate.methods if config.mitigate else ()):
        check_mendable(config.model.reference)
    if config.evaluate.utility is not None:
        utility.check_installed()


def chat_of(model: ModelConfig) -> ChatFormat:
    """Return the chat format of a model without loading its weights.

    Raises:
        ModelError: No tokenizer or no chat template.
    """
    tokenizer = load_tokenizer(model.reference)
    return ChatFormat(tokenizer, model.system_prompt, model.template_kwargs, model.response_prefix)
