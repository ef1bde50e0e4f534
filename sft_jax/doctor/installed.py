"""Checks Python and installed packages against the project's metadata."""

import importlib.metadata
import platform
from collections.abc import Iterator

from sft_jax.config.shipped import install_command
from sft_jax.doctor.finding import MISSING, OK, Finding

PROJECT = "sft-jax"
INSTALL = install_command()


def check_installed(project: str = PROJECT) -> list[Finding]:
    """Checks Python, the required packages and the optional ones."""
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet

        metadata = importlib.metadata.metadata(project)
    except ModuleNotFoundError as error:  # PackageNotFoundError is one
        return [Finding("packages", MISSING, f"{error.name} is not installed", (INSTALL,))]
    version, wanted = platform.python_version(), metadata["Requires-Python"]
    fits = SpecifierSet(wanted).contains(version, prereleases=True)
    findings = [Finding("python", OK if fits else MISSING, f"{version}, {'' if fits else 'but '}{wanted} is required")]
    needed = list(_requirements(project, ""))
    problems = [problem for requirement in needed for problem in unmet(requirement)]
    if problems:
        findings.append(Finding("packages", MISSING, "; ".join(problems), (INSTALL,)))
    else:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax"))
        findings.append(Finding("packages", OK, f"all {len(needed)} within the supported range: {versions}, ..."))
    extras = metadata.get_all("Provides-Extra") or []
    absent = [extra for extra in extras if unmet(Requirement(f"{project}[{extra}]"))]
    present = [extra for extra in extras if extra not in absent]
    text = f"installed: {', '.join(present) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    findings.append(Finding("optional", OK, f"{text} ({install_command('NAME')})" if absent else text))
    return findings


def unmet(requirement) -> list[str]:
    """Returns why `requirement` (a `packaging.requirements.Requirement`) is not met, including its extras."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return [f"{requirement.name} is not installed"]
    if not requirement.specifier.contains(version, prereleases=True):
        return [f"{requirement.name} {version} is installed, but {requirement.specifier} is required"]
    return [
        problem
        for extra in sorted(requirement.extras)
        for inner in _requirements(requirement.name, extra)
        for problem in unmet(inner)
    ]


def _requirements(package: str, extra: str) -> Iterator:
    """Yields what `package` requires on this machine, or what its `extra` requires in addition."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(package) or ():
        requirement = Requirement(line)
        if _applies(requirement, extra) and (not extra or not _applies(requirement, "")):
            yield requirement


def _applies(requirement, extra: str) -> bool:
    """Returns whether a requirement holds on this machine if `extra` is installed ("" for none)."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})
