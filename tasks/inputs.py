"""What a run is given, checked before anything is written; light to import, so that a mistake is reported at once."""

from rass_core.chat import ChatFormat
from rass_core.config import ModelConfig, RassConfig
from rass_core.errors import ModelError
from rass_core.model_folder import check_folder
from rass_core.models import model_id
from rass_core.paths import short
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
            model_id(model.name)
            check_folder(model.name)
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
            chat_of(model)
        if config.mitigate is not None:
            _check_mitigation(config)
        _checked.add(key)
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
    if config.evaluate.utility is not None:
        utility.check_installed()


def chat_of(model: ModelConfig) -> ChatFormat:
    """Return the chat format of a model without loading its weights.

    Raises:
        ModelError: An architecture that transformers does not know, no tokenizer or no chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        AutoConfig.from_pretrained(model.name)
    except Exception as error:  # what stands in a config.json can raise anything
        what = f"its configuration cannot be used ({_line(error)})"
        raise ModelError(f"{short(model.name)}: {what}; name a model that transformers knows") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name)
    except Exception as error:  # a broken tokenizer.json raises a plain Exception
        what = f"no tokenizer can be loaded ({_line(error)})"
        raise ModelError(f"{short(model.name)}: {what}; save one beside the model") from error
    return ChatFormat(tokenizer, model.system_prompt, model.template_kwargs, model.response_prefix)


def _line(error: Exception) -> str:
    return short(" ".join(str(error).split()) or type(error).__name__)
