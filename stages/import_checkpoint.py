"""Make a run of a checkpoint that the public code of JEM, JEM++, SADAJEM or EB-JDAT saved.

Weights and replay buffer of FILE go to models/<profile>/external-<name>/<seed>/, which every evaluation stage takes as
`--model external-<name>`. No code in FILE is run.
"""

import argparse
from pathlib import Path

from ebjdat import command, files
from ebjdat.config import load_params, resolve
from ebjdat.run import Run


def main() -> None:
    """Read, check, write; print what was found and how many of 100 test images are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="checkpoint of PyTorch, or safetensors")
    parser.add_argument("--name", required=True, help="name in records and tables: a-z, 0-9 and hyphens")
    parser.add_argument("--variant", help="recipe of its chains; to be said where the norm is batch: jempp or sadajem")
    parser.add_argument("--seed", type=int, help="of the surrogates it meets; default: the first of params.yaml")
    arguments = parser.parse_args()

    import torch

    from ebjdat.data.prepared import load_prepared
    from ebjdat.evaluation import external
    from ebjdat.model import description, released
    from ebjdat.model.store import load_model

    params = load_params()
    seed = params.seeds[0] if arguments.seed is None else arguments.seed
    run = Run(params.profile, external.model_of(arguments.name), seed)
    data = load_prepared(run.data_dir)
    found = released.read(arguments.file, data.shape)
    variant = released.variant_of(found.architecture.norm, arguments.variant, params.variants)
    fingerprint = released.write(run.model_dir, found, variant, arguments.file)
    files.write_json(run.model_dir / description.NAME, description.describe(resolve(params, run), data).plain())
    with torch.no_grad():
        answers = load_model(run.model_dir / "best.pt")(data.x_test[:100]).argmax(1)
    right = int((answers == data.y_test[:100]).sum())
    network = f"WideResNet-{found.architecture.depth}-{found.architecture.width}, norm {found.architecture.norm}"
    buffer = 0 if found.buffer is None else len(found.buffer)
    print(f"{run.model_dir}: {network}, variant {variant}, replay buffer {buffer} images, fingerprint {fingerprint}")
    print(f"{right} of {len(answers)} test images are right")


if __name__ == "__main__":
    command.run(main)
