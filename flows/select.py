"""Flow `select`: keep the best of what was written."""

from prefect import flow

from flows.generate import generate_steps
from flows.probe import probe_steps
from rass_core.config import RassConfig
from tasks.prompts import read_prompts
from tasks.report import report, show_report, show_run
from tasks.run import recorded
from tasks.select import select_prompts


@flow(name="select", flow_run_name="{config.name}")
def select(config: RassConfig) -> str:
    """Select from the candidates that the lake holds."""
    with recorded("select", config) as run:
        with run.from_lake("rass generate"):
            probed = probe_steps(run, read_prompts(run))
            rounds = generate_steps(run, probed)
        if rounds:
            select_prompts(run, probed, rounds)
        show_run(run)
        path = report(run)
        show_report(run, path)
        return str(path)
