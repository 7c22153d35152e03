"""The stages of the flows as a page: `python -m tasks.reference > docs/stages.md`."""

import inspect
import pkgutil
import sys
from importlib import import_module
from typing import Any

import tasks
from rass_core.text import markdown_table
from tasks.derived import DERIVED
from tasks.stage import STAGES, Stage

COMMAND = "python -m tasks.reference > docs/stages.md"
"""Renews the page."""
_HEAD = f"""\
# Stages

<!-- Generated from the declarations in tasks/; do not edit. Renew: {COMMAND} -->

A flow is a sequence of stages. A stage reads tables of the lake, computes, and commits its rows in one step. Its key is
a digest of its inputs (rows by their content, models by their identity), of the settings below, and of the code of its
module with everything that this imports. If the lake holds rows under that key, the stage is not computed again.
Arguments that are no tables, such as a list of prompts, count too.

- Comments, docstrings and layout of the code do not count; neither does code that a stage does not import, such as that
  of the report.
- A stage *in shards* commits its rows in parts of about `executor.rows_per_shard` prompts, and an executor may spread
  them over machines. An interrupted run continues at the first missing shard. The other stages compute in the process
  of the flow.
- Versions of torch, transformers, vLLM, numpy and scikit-learn count. Code that only stores rows, words errors or runs
  stages does not.
- A stage fails if it reads a setting, or by `session.read` a table, that it does not declare, or writes another table.
"""
_DERIVED_HEAD = """\
## Names for groups of settings

Under *settings*, these names are not keys of the configuration:
"""


def page() -> str:
    """Return the page in Markdown."""
    for module in pkgutil.iter_modules(tasks.__path__, "tasks."):
        import_module(module.name)
    stages = sorted(STAGES.values(), key=lambda each: each.name)
    table = markdown_table(
        ["stage", "what it does", "reads", "writes", "settings", "in shards"], [_row(each) for each in stages]
    )
    derived = markdown_table(["name", "includes"], [(f"`{name}`", each.meaning) for name, each in DERIVED.items()])
    return "\n".join(f"{part.rstrip()}\n" for part in (_HEAD, table, _DERIVED_HEAD, derived))


def _row(stage: Stage[Any]) -> tuple[str, ...]:
    sentence = (inspect.getdoc(stage.compute) or "").split("\n\n")[0].replace("\n", " ")
    listed = (_listed(names) for names in (stage.reads, stage.writes, stage.settings))
    return (f"`{stage.name}`", sentence, *listed, "yes" if stage.in_shards else "")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.stdout.write(page())
