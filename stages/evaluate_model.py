"""Evaluate a classifier of yours like the models trained here, under both protocols, and put it in the tables.

The factory is `module:function`; called without arguments it returns a torch module that maps images (N,C,H,W) in
[0, 1] to logits (N,10). `robustbench:NAME` is an entry of RobustBench's model zoo. Without a factory the model is the
one that `stages.import_checkpoint` made under this name; where it has a replay buffer, it generates, too. Transfer
attacks need the surrogates' images: `dvc repro craft`.
"""

import argparse
import subprocess
import sys
from dataclasses import replace

from ebjdat import command
from ebjdat.config import Setup, load_params, resolve
from ebjdat.errors import UserError
from ebjdat.record import STAGES
from ebjdat.run import Run


def run_stage(stage: str, *arguments: str) -> None:
    """One stage of the pipeline, in a process of its own. UserError: it failed; it has said why."""
    code = subprocess.run([sys.executable, "-m", f"stages.{stage}", *arguments], check=False).returncode
    if code:
        raise UserError(f"the stage {stage} ended with exit code {code}; mend its cause and run the same command again")


def take_in(setup: Setup, factory: str | None, *, transfer: bool) -> None:
    """Keep the factory's model, or find the imported one; look for the images of transfer attacks before hours pass.

    Raises:
        UserError: the factory or its model cannot be used, or crafted images are missing.
    """
    from ebjdat.data.prepared import load_prepared
    from ebjdat.evaluation import external
    from ebjdat.evaluation.transfer import load_crafted

    data, run = load_prepared(setup.run.data_dir), setup.run
    n = setup.evaluation.transfer.images if transfer else 0
    for other in (replace(run, model=name) for name in (setup.surrogates if transfer else ())):
        images = data.x_test[:n], data.y_test[:n]
        load_crafted(other.crafted(), other.model_dir / "best.pt", *images, setup.evaluation.radius)
    if factory is not None:
        external.save(run.model_dir, factory, data.x_test, data.y_test)
    print(f"{run.model_dir}: {factory or 'imported'}, fingerprint {external.fingerprint_of(run.model_dir)}")
    accuracy, warnings = external.look(external.load(run.model_dir / "best.pt"), data.x_test[:1000], data.y_test[:1000])
    print(accuracy)
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)


def main() -> None:
    """Take the model in, run the stages, make the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factory", help="for example my_module:make_model; default: the imported checkpoint")
    parser.add_argument("--name", required=True, help="name in records and tables: a-z, 0-9 and hyphens")
    parser.add_argument("--seed", type=int, help="of the surrogates; default: the first of params.yaml")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="default: all that the model can")
    arguments = parser.parse_args()

    from ebjdat.evaluation import external

    params = load_params()
    seed = params.seeds[0] if arguments.seed is None else arguments.seed
    setup = resolve(params, Run(params.profile, external.model_of(arguments.name), seed))
    generates = not arguments.factory and (setup.run.model_dir / "buffer.npz").is_file()
    able = [stage for stage in STAGES if generates or stage != "generate"]
    chosen = [stage for stage in STAGES if stage in (arguments.stages or able)]
    take_in(setup, arguments.factory, transfer="transfer" in chosen)
    for stage in chosen:
        run_stage(stage, "--model", setup.run.model, "--seed", str(seed))
    run_stage("log")
    run_stage("tables")
    print(
        f"{setup.run.model}: tables in results/{params.profile}/tables, records in {setup.run.record('clean').parent}"
    )


if __name__ == "__main__":
    command.run(main)
