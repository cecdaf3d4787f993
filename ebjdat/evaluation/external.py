"""A classifier that was not trained here, as a model that the evaluation stages can open.

It comes from a factory: ``module:function``, called without arguments, returns a torch module that maps images
(N,C,H,W) float32 in [0, 1] to logits (N,10); ``robustbench:NAME`` is an entry of RobustBench's model zoo. Its weights
are kept beside the factory's name, so that every stage, and every worker of AutoAttack, meets the same model. What
would spoil an evaluation silently is refused at the door.
"""

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat import files
from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import Loss, cross_entropy, input_gradient, margin, zero_share
from ebjdat.config import IMPORTED
from ebjdat.data.gaussians import CLASSES
from ebjdat.errors import UserError
from ebjdat.evaluation.unreliable import LARGEST_ZERO_SHARE
from ebjdat.model.store import load_model, model_digest, read_payload, save_payload
from ebjdat.run import EXTERNAL
from ebjdat.statistics import wilson

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
LOOKED_AT = 8
"""Test images that a new model is tried on."""
GRADIENTS = 100
"""Test images whose gradients are looked at."""

_CAUSES = (
    ("in-place|inplace", "it writes into its input: work on a copy (x.clone())"),
    (
        "[Ii]nference tensor|inference mode|not require grad|not have been used",
        "it detaches, runs under no_grad or inference_mode, or is an int8 model; give the float model",
    ),
    ("dtype|Input type|expected scalar type", "its weights are not float32: cast images and weights inside the model"),
    ("shape|size|channels|dimension", "it was made for images of another shape"),
)
"""Words of PyTorch's errors, and what they mean here."""


class Float32(nn.Module):
    """A model of half precision gives its logits in float32, so that losses and energies are computed there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,10) float32."""
        logits = self.model(x)
        return logits.float() if isinstance(logits, Tensor) and logits.is_floating_point() else logits


def model_of(name: str) -> str:
    """``external-<name>``, as in records and tables. UserError: other characters than a-z, 0-9, single hyphens."""
    name = name.removeprefix(EXTERNAL)
    if len(name) > 40 or not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: expected at most 40 of a-z, 0-9 and single hyphens between them")
    return EXTERNAL + name


def find_factory(spec: str) -> Callable[[], Any]:
    """The function that ``module:function`` names; the current folder and PYTHONPATH are searched.

    Raises:
        UserError: no such module or function, or the module cannot be imported.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise UserError(f"--factory {spec!r}: expected module:function, such as my_module:make_model")
    if module == "robustbench":  # an entry for CIFAR-10 and the L-infinity ball (arXiv:2010.09670)
        try:
            from robustbench.utils import load_model as load_entry
        except ModuleNotFoundError as error:
            raise UserError(f"--factory {spec}: {error}; install robustbench from its repository") from None
        folder = str(files.scratch("robustbench"))
        return functools.partial(load_entry, model_name=name, model_dir=folder, dataset="cifar10", threat_model="Linf")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"--factory {spec}: {module} needs the package {error.name}: install it") from None
        raise UserError(f"--factory {spec}: {error}; run from its folder, or set PYTHONPATH") from None
    except AttributeError:
        raise UserError(f"--factory {spec}: module {module} has no {name}") from None
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise UserError(f"--factory {spec}: importing {module} raised {_told(error)}") from error
    if not callable(found) or isinstance(found, nn.Module):
        raise UserError(f"--factory {spec}: {name} is no function that makes a model, but {type(found).__name__}")
    return found


def make(spec: str) -> Float32:
    """The factory's model on the CPU, in eval mode, without parameter gradients.

    UserError: the factory fails, or returns no torch module.
    """
    factory = find_factory(spec)
    try:
        model = factory()
        if isinstance(model, nn.Module):
            return Float32(model).cpu().eval().requires_grad_(False)
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise UserError(f"--factory {spec}: raised {_told(error)}") from error
    raise UserError(f"--factory {spec}: expected a torch.nn.Module, got {type(model).__name__}")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"


def check(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Ask for logits of real images x (N,C,H,W) with labels y (N,), alone and together, and for the input's gradient.

    Raises:
        UserError: an attack on this model would mean nothing; the message says why.
    """
    together = _logits(model, x)
    alone = torch.cat([_logits(model, x[:1]), _logits(model, x[1:3]), _logits(model, x[3:])])
    if not bool(together.isfinite().all()):
        raise UserError("the model's logits are not finite")
    if bool((together >= 0.0).all()) and torch.allclose(together.sum(1), torch.ones(len(x)), atol=1e-2):
        raise UserError("the model gives probabilities (not negative, sum 1), whose gradients vanish: return logits")
    _compare(together, _logits(model, x), 1e-4, "when it is asked again: noise or dropout that eval() leaves on")
    # 5 %, because kernels of half precision depend on the batch.
    _compare(together, alone, 5e-2, "in another batch: statistics of the batch at test time")
    # Of the margin, because the cross-entropy of a confident model may be flat where the model is not.
    if zero_share(_gradients(model, x, y, margin)) == 1.0:
        raise UserError("the gradient of the model's input is zero on every image tried: it rounds, or compares")


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N,10) of x, which stays as it was."""
    given = x.clone()
    try:
        with torch.no_grad():
            logits = model(given)
    except Exception as error:  # whatever the user's own code raises
        raise _failed(f"the model fails on {len(x)} images of shape {tuple(x.shape[1:])}", error) from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(x), CLASSES):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        squeezed = ": it squeezes the batch axis away" if found == (CLASSES,) else ""
        raise UserError(f"the model must give logits (N, {CLASSES}); {len(x)} images gave {found}{squeezed}")
    if not logits.is_floating_point():
        raise UserError(f"the model gives {logits.dtype}: return logits, not classes")
    if not torch.equal(given, x):
        raise UserError("the model writes into its input: work on a copy (x.clone())")
    return logits


def _compare(logits: Tensor, other: Tensor, tolerance: float, why: str) -> None:
    """Refuse logits that differ by more than a share of their spread over images; ``why`` follows in the sentence."""
    difference, spread = float((logits - other).abs().max()), float((logits - logits.mean(0)).abs().max())
    if not difference <= tolerance * max(spread, 1e-6):
        raise UserError(f"the model answers differently (a logit by {difference:.3g}) {why}")


def _gradients(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Gradients (N,C,H,W) of a loss by each image; UserError where there is none, or it is not finite."""
    try:
        gradients = input_gradient(model, x, y, loss, Batches(LOOKED_AT))
    except Exception as error:  # whatever the user's own code raises
        raise _failed("the model gives no gradient of its input, which attacks need", error) from error
    if not bool(gradients.isfinite().all()):
        raise UserError("the gradient of the model's input is not finite")
    return gradients


def _failed(what: str, error: Exception) -> UserError:
    causes = (cause for words, cause in _CAUSES if re.search(words, str(error)))
    return UserError(f"{what} ({_told(error)}): {next(causes, 'it must take float32 images (N,C,H,W) in [0, 1]')}")


def look(model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, list[str]]:
    """The model's accuracy on images x (N,C,H,W) with labels y (N,), and what is odd about it but no fault."""
    right = int(correct(model, x, y, Batches(500)).sum())
    accuracy = f"{100 * right / len(x):.1f} % of {len(x)} test images are classified correctly"
    warnings = []
    if wilson(right, len(x))[0] <= 1.0 / CLASSES:
        warnings.append(f"{accuracy}, about chance: inputs in [0, 255], or weights not loaded?")
    zero = zero_share(_gradients(model, x[:GRADIENTS], y[:GRADIENTS], cross_entropy))
    if zero > LARGEST_ZERO_SHARE:
        warnings.append(
            f"the cross-entropy of {100 * zero:.0f} % of {len(x[:GRADIENTS])} test images has no gradient: logits on a "
            "scale so large that it rounds to zero? attacks by it find nothing"
        )
    return accuracy, warnings


def save(folder: Path, spec: str, x: Tensor, y: Tensor) -> str:
    """Make the factory's model, check it, keep it in ``folder``; returns its fingerprint.

    Writes ``best.pt`` (factory, weights, answers) and ``external.json``. The fingerprint hashes weights, architecture
    as printed, the factory's name, the source of its file (not what that file imports), and logits of fixed images.
    x are test images (N,C,H,W) in [0, 1], y their labels (N,). UserError: the factory or its model cannot be used.
    """
    model = make(spec)
    check(model, x[:LOOKED_AT], y[:LOOKED_AT])
    state = model.model.state_dict()
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"--factory {spec}: {other[0]} in its state_dict is no tensor, so its weights cannot be kept")
    made_by = find_factory(spec)
    source = inspect.getsourcefile(inspect.unwrap(getattr(made_by, "func", made_by)))
    images = torch.rand((LOOKED_AT, *x.shape[1:]), generator=torch.Generator().manual_seed(0))
    answers = _logits(model, images)
    described = {
        "factory": spec,
        "source": files.file_hash(source) if source else None,
        "weights": model_digest(model.model),
        "architecture": files.digest(str(model.model), 64),
        # Another machine's last bits must not change it.
        "answers": files.digest((100 * answers / answers.abs().max().clamp_min(1e-6)).round().long().tolist(), 64),
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    payload = {"factory": spec, "state": state, "images": images, "answers": answers}
    _restore(payload, f"--factory {spec}")
    fingerprint = files.digest(described)
    save_payload(folder / "best.pt", payload)
    files.write_json(folder / IMPORTED, described | {"fingerprint": fingerprint})
    return fingerprint


def _restore(payload: dict[str, Any], where: str) -> Float32:
    """A fresh model of the factory with the kept weights, which must answer as it did.

    Raises:
        UserError: the weights do not fit, or do not determine the answers.
    """
    model = make(payload["factory"])
    try:
        model.model.load_state_dict(payload["state"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{where} does not fit its factory any longer: {str(error).splitlines()[0]}") from None
    why = (
        f"when {where} makes it again and its kept weights are loaded: weights outside of state_dict (in a list, say: "
        "use ModuleList or register_buffer), or an edited factory"
    )
    _compare(payload["answers"], _logits(model, payload["images"]), 5e-2, why)
    return model


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """A model that :func:`save` kept, from its factory with its weights, in eval mode.

    Raises:
        UserError: the file is missing or damaged, the factory is gone, or the model does not answer as it did.
    """
    payload = read_payload(Path(path))
    if "architecture" in payload:  # an imported checkpoint
        return load_model(path, device)
    if not {"factory", "state", "images", "answers"} <= payload.keys():
        raise UserError(f"{path} is not a model of stages.evaluate_model; run it again")
    return _restore(payload, str(path)).to(device)


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of the model kept in ``folder`` (``.../<model>/<seed>``). UserError: none was taken in."""
    path = folder / IMPORTED
    if not path.is_file():
        name, seed = folder.parent.name.removeprefix(EXTERNAL), folder.name
        command = f"python -m stages.evaluate_model --factory module:function --name {name} --seed {seed}"
        raise UserError(f"{path} is missing: take the model in with `{command}`, or with `stages.import_checkpoint`")
    return str(files.read_json(path)["fingerprint"])
