"""How many simulated migrations a second, on one core: `python -m benchmarks.simulation`.

Undisturbed ones, and every eighth of all single faults, with whatever follows from them; with light machines and with
emulated ones.  In seconds of the processor, so that whoever else uses the host disturbs little.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from migrate.cli.exploring import simulated
from migrate.faults.campaign import prepare_worker
from migrate.faults.explore import Experiment, single_plans
from migrate.faults.plan import Plan
from migrate.simulation.machines import LightMachines, RealMachines
from migrate.specs.files import read_spec_file

SPEC = Path(__file__).parents[1] / "examples" / "web-server.json"


def rate(experiment: Experiment, plans: Sequence[Plan]) -> float:
    for plan in plans:  # so that pure functions remember, as they do in a campaign
        experiment.run(plan)
    begun = time.process_time()
    for plan in plans:
        experiment.run(plan)
    return len(plans) / (time.process_time() - begun)


def main() -> None:
    spec = simulated(read_spec_file(SPEC).spec)
    for foundry in (LightMachines(), RealMachines()):
        experiment = Experiment(spec=spec, foundry=foundry)
        prepare_worker(experiment)
        undisturbed = rate(experiment, [Plan(faults=())] * 100)
        faults = rate(experiment, list(single_plans(experiment))[::8])
        print(f"{type(foundry).__name__}: {undisturbed:,.0f} undisturbed, {faults:,.0f} with a fault, a second")


if __name__ == "__main__":
    main()
