"""Flow `select`: keep the best of what was written."""

from prefect import flow

from flows.generate import generate_steps
from flows.probe import probe_steps
from rass_core.config import RassConfig
from tasks.prompts import read_prompts
from tasks.recording import recorded
from tasks.report import report, show_report, show_run
from tasks.select import select_prompts


@flow(name="select", flow_run_name="{config.name}")
def select(config: RassConfig) -> str:
    """Select from the candidates that the lake holds."""
    with recorded("select", config) as session:
        with session.from_lake("rass generate"):
            probed = probe_steps(session, read_prompts(session))
            rounds = generate_steps(session, probed)
        if rounds:
            select_prompts(session, probed, rounds)
        show_run(session)
        path = report(session)
        show_report(session, path)
        return str(path)
