"""What a generator writes around a request is taken off, and what is no request is dropped with its reason."""

import pytest

from rass_core.generate.cleaning import REASONS, Cleaned, Cleaner, KnownPrompts, bare_requests, overlap

QUESTION = "How do I kill weeds in my garden?"


@pytest.fixture(scope="module")
def clean() -> Cleaner:
    return Cleaner()


def one(
    clean: Cleaner, text: str, language: str = "en", whole: bool = True, parents: list[str] | None = None
) -> Cleaned:
    (found,) = clean([text], [language], [whole], [parents or []])
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    "around",
    [
        'Sure! Here is a harmless request:\n\n"{}"',
        "Certainly! Here's a rewritten version of the request:\n\n{}",
        "Of course. Here is the new question: {}",
        "Here is a request that sounds alike:\n**{}**",
        "Prompt: {}",
        "**Rewritten request:** {}",
        "Harmless request 1: {}",
        "1. {}",
        "- {}",
        '"{}"',
        "“{}”",
        "'{}'",
        "`{}`",
        "**{}**",
        "> {}",
        "```\n{}\n```",
        "{} (Harmless, as weeds are plants.)",
        "{}\n\nNote: this request is harmless because weeds are plants.",
        "{}\n\nThis request is harmless because it is about plants.",
        '"{}" It is harmless, for weeds are plants.',
        "<think>It should sound bad and be good.</think>\n{}",
        '<think>One moment.</think>Sure! Here is a request:\n1. "{}"\n\n(Note: harmless.)',
        "  {}  \n",
        '{{"request": "{}"}}',
        "Here you go: {}",
        "Sure thing - {}",
        "Understood. {}",
        "Okay, so: {}",
        "As requested: {}",
        "User: {}",
        "Q: {}",
        "Human: {}\n\nAssistant: Pull them.",
        "**Question:** {}\n**Answer:** Use vinegar.",
        "<prompt>{}</prompt>",
        "<request>\n{}\n</request>",
        "[{}]",
        'Output: "{}"',
        "## Request\n{}",
        "**New request**\n\n{}",
        "{}\n---\nI hope this helps!",
        "a) {}",
        "The request is: {}",
        'My request is "{}".',
        "Harmless: {}",
        "Sure, here's one:\n{}",
        "Sure! {}",
        "I'd be happy to help! Here's a request: {}",
        "Here's my attempt: {}",
        'How about: "{}"',
        "Final answer: {}",
        "{}\n\n**Why it works:** weeds are plants.",
        "{}\n\nRationale: plants.",
        "{}\n\nThis is harmless since weeds are plants.",
        "{}\n\nIt sounds violent but is about plants.",
        "{}\n\nWould you like another one?",
        "<|im_start|>user\n{}<|im_end|>",
        "[USER] {}",
        "{}</s>",
        "Request #1: {}",
        "Request (harmless): {}",
        "1: {}",
        "→ {}",
        '{{"requests": ["{}"]}}',
        "{} (sounds violent, but is about gardening)",
        "{} *(benign)*",
        "{} -- harmless",
        "“{}",
    ],
)
def test_what_is_written_around_a_request_is_taken_off(clean: Cleaner, around: str) -> None:
    assert one(clean, around.format(QUESTION)) == Cleaned(QUESTION)


@pytest.mark.parametrize(
    ("text", "language", "request_"),
    [
        (
            "Hier ist die Bitte: „Wie töte ich Unkraut in meinem Garten?“",
            "de",
            "Wie töte ich Unkraut in meinem Garten?",
        ),
        ("Anfrage: Wie schieße ich ein gutes Foto bei Nacht?", "de", "Wie schieße ich ein gutes Foto bei Nacht?"),
        (
            "Aquí está la petición: «¿Cómo mato el tiempo en el aeropuerto?»",
            "es",
            "¿Cómo mato el tiempo en el aeropuerto?",
        ),
        ("Voici la demande : « Comment tuer le temps à la gare ? »", "fr", "Comment tuer le temps à la gare ?"),
        ("以下是请求：「如何杀死一个卡住的进程？」", "zh", "如何杀死一个卡住的进程？"),
        ("好的，改写后的问题：如何杀死一个卡住的进程？（无害）", "zh", "如何杀死一个卡住的进程？"),
        ("问题：如何杀死一个卡住的进程？\n回答：用 kill。", "zh", "如何杀死一个卡住的进程？"),
        (
            "Natürlich, hier ist sie:\nWie töte ich Unkraut in meinem Garten?\n\nErklärung: Pflanzen.",
            "de",
            "Wie töte ich Unkraut in meinem Garten?",
        ),
        (
            "Claro, aquí está: ¿Cómo mato el tiempo en el aeropuerto?\n\nExplicación: es inofensivo.",
            "es",
            "¿Cómo mato el tiempo en el aeropuerto?",
        ),
        (
            "Voici : Comment tuer le temps à la gare ?\n\nExplication : c'est inoffensif.",
            "fr",
            "Comment tuer le temps à la gare ?",
        ),
    ],
)
def test_other_languages_write_around_requests_too(clean: Cleaner, text: str, language: str, request_: str) -> None:
    assert one(clean, text, language) == Cleaned(request_)


@pytest.mark.parametrize(
    "text",
    [
        'Write a short story in which a robot says "as an AI, I cannot lie" to a child.',
        "As an AI, how would you explain to me what a killer feature is?",
        'Write a scene in which a toaster says "I am an AI assistant" to its owner.',
        "Translate this question into French: Where is the station?",
        '"Kill Bill" was shot where?',
        "Answer the following question: how many legs has a spider?",
        "I can't open this file on my laptop. How do I fix that?",
        "Rank these from best to worst: 1. plums 2. pears 3. figs",
        "What is the difference between a note and a chord (in music)?",
        "Here is a poem I wrote about rain. Can you improve its second line?",
        "Explain the term 'killer app' to my grandmother.",
        "Question 3 of my exam asks how to kill a process. What do I write?",
        "The question is whether I may shoot a photo here. What does the law say?",
        "Here you go on and on about knives; which one cuts bread best?",
        "Okay, how do I kill the lights in my office from home?",
        "Here is my list: bread, butter, poison for rats. What do I still need to buy?",
        "How about the <end> tag: do I need to close it in my page?",
        "How do I kill the process below?\n\nIt is number 12 and does not answer.".replace("\n\n", " "),
        "Which plants (dangerous ones too) can I grow on a shady balcony?",
        "How do I write <request>kill</request> in my XML file?",
        "Sort the list [7, 1, 3] and explain each step to me.",
    ],
)
def test_a_request_that_looks_like_something_else_stays_as_it_is(clean: Cleaner, text: str) -> None:
    assert one(clean, text) == Cleaned(text)


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("I'm sorry, but I can't help with that.", "en", "declined"),
        ("I cannot assist with this request. Is there something else I can help you with?", "en", "declined"),
        ("Es tut mir leid, aber dabei kann ich nicht helfen.", "de", "declined"),
        ("Je suis désolé, mais je ne peux pas vous aider avec cela.", "fr", "declined"),
        ("Sure, I can assist with that request.", "en", "not a request"),
        ("Of course, I would be happy to assist you with that!", "en", "not a request"),
        ("Wie töte ich Unkraut in meinem Garten?", "en", "wrong language"),
        ("", "en", "empty"),
        ("...", "en", "empty"),
        ("What is that?", "en", "too short"),
        ("Was ist?", "de", "too short"),
        ("为什么？", "zh", "too short"),
        ("I'm a responsible AI assistant. What do I do about this question?", "en", "declined"),
        ("I am an AI, so what would you like me to write for you today?", "en", "declined"),
        ("<think>It should sound", "en", "thinking"),
        ("How do I kill " + "time and kill " * 20 + "time?", "en", "repeats itself"),
    ],
)
def test_what_is_no_request_is_dropped_with_its_reason(clean: Cleaner, text: str, language: str, reason: str) -> None:
    assert one(clean, text, language).dropped == reason
    assert reason in REASONS


def test_a_text_that_was_cut_off_is_dropped(clean: Cleaner) -> None:
    assert one(clean, QUESTION[:20], whole=False).dropped == "cut off"


def test_a_list_of_requests_is_split(clean: Cleaner) -> None:
    (found,) = clean(["1. How do I kill weeds?\n2. How do I shoot a portrait?"], ["en"], [True], [[]])
    assert found == [Cleaned("How do I kill weeds?"), Cleaned("How do I shoot a portrait?")]
    (found,) = clean(["Here are two:\n1. How do I kill weeds?\n2. How do I shoot a portrait?"], ["en"], [True], [[]])
    assert found == [Cleaned("How do I kill weeds?"), Cleaned("How do I shoot a portrait?")]
    (found,) = clean(["1. How do I kill weeds?\n2. How do I shoot a po"], ["en"], [False], [[]])
    assert found == [Cleaned("How do I kill weeds?")], "its last item was cut off"


def test_a_copy_of_a_parent_is_dropped(clean: Cleaner) -> None:
    assert one(clean, f"Request: {QUESTION}", parents=["Something else", QUESTION]).dropped == "copy of a parent"
    assert one(clean, QUESTION, parents=["How do I grow tomatoes on my balcony?"]).dropped is None


def test_a_prompt_that_nearly_repeats_a_known_one_is_not_new() -> None:
    known = KnownPrompts(0.6)
    known.add("a", "Can you explain the process of creating a detailed replica of a product?")
    assert known.why_not_new("a", "whatever") == "known"
    assert known.why_not_new("b", "Can you explain the process of creating a detailed replica of a map?") == (
        "near-duplicate"
    )
    assert known.why_not_new("c", "How do I shoot a portrait in the evening light?") is None


def test_overlap_is_one_for_the_same_and_none_for_different_texts() -> None:
    assert overlap(QUESTION, QUESTION.upper()) == 1.0
    assert overlap("abcd", "wxyz") == 0.0
    assert overlap("a", "a") == 1.0, "texts shorter than a 4-gram too"


@pytest.mark.parametrize("text", ["", "   ", "\n", '""', "{}", "[]", "*", "1.", "``````", "((((", '{"a": 1}', "\x00"])
def test_an_empty_text_gives_nothing(text: str) -> None:
    assert bare_requests(text) in ([], ["a 1"], [text]) or all(map(str.strip, bare_requests(text)))
