"""What a run records of its beginning: config.json and dataset.json.gz."""

from typing import Any

from sft_jax.run.console import Console
from sft_jax.run.folder import Run
from sft_jax.training.experiment import Experiment
from sft_jax.training.plan import change_lines


def record_run(
    experiment: Experiment,
    run: Run,
    console: Console,
    *,
    step: int,
    resume: bool,
    command: list[str],
    licence: str | None = None,
) -> None:
    """Writes the records of a new run; if a run is resumed with another configuration, reports and records the changes.

    Args:
      experiment: what is trained.
      run: where it is recorded.
      console: told about changes.
      step: the number of steps done.
      resume: whether the user asked to resume.
      command: the command line.
      licence: of the weights that a new run starts from, if it is known.

    Raises:
      UserError: the run's files cannot be read or written, or a file that its configuration names has changed.
    """
    facts: dict[str, Any] = {"devices": str(experiment.devices), "command": command} | experiment.task.facts()
    if not run.exists():
        if resume:
            console.line(f"nothing to resume in {run.folder}; starting a new run")
        if experiment.dataset.record is not None:
            run.write_dataset_record(experiment.dataset.record)
        if licence is not None:
            facts["licence"] = licence
        run.write_config(experiment.config, **facts)
        return
    before, record = run.config(), run.record()
    experiment.task.check_facts(record, run.folder)
    if "licence" in record:
        facts["licence"] = record["licence"]
    kept = run.update_config(experiment.config, **facts)
    if kept is not None:
        for line in change_lines(experiment, before, step):
            console.line(line)
        console.line(f"           {run.config_file} is updated; the old one is kept as {kept.name}")
