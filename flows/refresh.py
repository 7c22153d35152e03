"""Flow `refresh`: the whole method, for schedules and for `rass run`."""

from prefect import flow

from flows.generate import generate_steps
from flows.mitigate import mitigate_steps
from flows.probe import compare_steps, probe_steps
from rass_core.config import RassConfig
from tasks.evaluate import stop_at_gate
from tasks.moderators import check_moderators
from tasks.prompts import read_prompts
from tasks.recording import recorded
from tasks.report import report, show_boundaries, show_evaluation, show_gate, show_report, show_run
from tasks.select import select_prompts


@flow(name="refresh", flow_run_name="{config.name}")
def refresh(config: RassConfig) -> str:
    """Probe the model, write prompts towards its boundary, select the benign ones that it refuses, mitigate, report.

    A mitigated model that the gate does not pass is kept and marked, and the run ends as failed.
    """
    with recorded("refresh", config) as session:
        prompts = read_prompts(session)
        check_moderators(session, prompts)
        probed = probe_steps(session, prompts)
        show_boundaries(session, probed.boundaries)
        compare_steps(session, prompts)
        rounds = generate_steps(session, probed)
        gates = []
        if rounds:
            selection = select_prompts(session, probed, rounds)
            if config.mitigate is not None:
                gates = mitigate_steps(session, probed, rounds, selection)
                show_evaluation(session, session.commits)
                show_gate(session, gates)
        show_run(session)
        path = report(session)
        show_report(session, path)
        stop_at_gate(session, gates)
        return str(path)
