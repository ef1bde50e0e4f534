"""Tests of the doctor's compilation for devices that are not present; a CPU imitates them in most tests."""

import importlib.metadata
import json
import os
import subprocess
import sys

import image_folders
import jax
import mask_folders
import numpy as np
import pytest
from made_run import NAMES, make_run

from sft_jax.config import complete
from sft_jax.config.shipped import shipped
from sft_jax.data.loader import StepsPerCall
from sft_jax.doctor import ahead, assumed
from sft_jax.doctor.__main__ import main
from sft_jax.doctor.figures import precision_of, text_lines
from sft_jax.errors import UserError, run_command
from sft_jax.export import export
from sft_jax.run.console import Console
from sft_jax.runtime import absent
from sft_jax.runtime import ahead as process
from sft_jax.runtime.chips import PEAKS, TARGETS, peak_of
from sft_jax.runtime.devices import AbsentDevices, Devices
from sft_jax.runtime.estimate import compile_step
from sft_jax.training.experiment import Experiment
from sft_jax.training.phase_programs import PhasePrograms
from sft_jax.training.start import initial_weights, read_dataset

# These keys are part of the interface.
KEYS = {
    "target", "compiles", "train_bytes", "temp_bytes", "eval_bytes", "largest_batch", "flops", "bytes_accessed",
    "transposes", "copies", "seconds_bandwidth", "seconds_arithmetic",
}  # fmt: skip
RECIPE = {"init": "scratch", "model.name": "tiny", "data.source": "digits:0-4", "data.size": 16, "batch_size": 64}


@pytest.fixture
def cpus(monkeypatch):
    """Replaces the target by CPU devices; returns a function that changes their number and memory."""

    def make(count=1, memory=1 << 30):
        devices = AbsentDevices(jax.devices()[:count], memory)
        monkeypatch.setattr(ahead, "absent_devices", lambda name: devices)
        return devices

    make()
    return make


def examine(config, *batches, name="gpu-h100"):
    lines = []
    return ahead.examine(complete(config), name, list(batches), lines.append), lines


@pytest.mark.long
def test_the_figures_are_those_of_the_program_that_trains(cpus):
    report, lines = examine(RECIPE, 32)
    assert report.keys() >= KEYS
    assert (report["compiles"], report["reason"], report["target"]) == (True, None, "gpu-h100")
    config, devices = complete(RECIPE), Devices(jax.devices()[:1])
    experiment = Experiment(config, read_dataset(config, Console(quiet=True)), devices)
    programs = PhasePrograms(experiment, experiment.phases[-1])
    params, batch_stats, _ = initial_weights(experiment, None)
    state = programs.first_state(params, batch_stats)
    call = next(programs.train_loader.calls(experiment.order(0), steps_per_call=StepsPerCall()))
    assert report["train_bytes"] == compile_step(programs.train_steps, state, call.chunk, experiment.key)
    assert report["other_bytes"] == experiment.validation_loader.resident_bytes > 0
    # All images fit into a step.
    assert report["largest_batch"] == len(experiment.dataset.train)
    assert report["batches"].keys() >= {"32", "64"}
    assert report["batches"]["32"] < report["batches"]["64"] == report["train_bytes"] + report["other_bytes"]
    text = "\n".join([*lines, *text_lines(report)])
    assert "digits:0-4, which is on this machine" in text
    assert "compiles   yes" in text


@pytest.mark.long
def test_the_largest_batch_that_fits_is_reported(cpus):
    fitting, _ = examine(RECIPE)
    cpus(memory=int(1.5 * fitting["batches"]["64"]))
    report, _ = examine(RECIPE)
    assert report["fits"]
    assert 64 <= report["largest_batch"] < fitting["largest_batch"]
    assert report["batches"][str(report["largest_batch"])] <= report["memory_bytes"]


@pytest.mark.long
def test_a_recipe_whose_batch_does_not_fit_is_reported(cpus):
    fitting, _ = examine(RECIPE)
    cpus(memory=fitting["batches"]["64"] - 1)
    report, _ = examine(RECIPE)
    assert not report["fits"]
    assert report["smallest_batch_too_large"] == 64
    assert report["largest_batch"] < 64
    assert "it does not fit into the memory" in next(iter(text_lines(report)))


@pytest.mark.parametrize("batch", [30, 100_000])
def test_impossible_batches_are_refused(cpus, batch):
    cpus(count=8)
    with pytest.raises(UserError, match=f"--batches {batch}: it must be a multiple of 8"):
        examine(RECIPE, batch)


@pytest.mark.long
def test_a_batch_that_training_would_refuse_is_rounded_up(cpus):
    cpus(count=8)
    report, lines = examine(RECIPE | {"batch_size": 60})
    assert report["batch_size"] == 64
    assert any("training refuses batch_size=60" in line and "--config.batch_size=64" in line for line in lines)
    assert report["all_reduces"] > 0


@pytest.mark.long
def test_a_head_on_features_costs_less(cpus):
    whole, _ = examine(RECIPE)
    head, _ = examine(RECIPE | {"finetune.method": "head"})
    assert head["compiles"]
    assert head["flops"] < whole["flops"] / 100


def test_an_error_of_the_compiler_is_one_line(cpus, monkeypatch):
    def refuse(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM\nmore\nlines")

    monkeypatch.setattr(ahead, "compiled", refuse)
    report, _ = examine(RECIPE)
    assert report.keys() >= KEYS
    assert not report["compiles"]
    assert report["reason"] == "RuntimeError: RESOURCE_EXHAUSTED: Ran out of memory on HBM"
    assert report["largest_batch"] is None
    assert next(iter(text_lines(report))) == f"compiles   no: {report['reason']}"


def test_a_dataset_that_is_not_on_the_machine_is_assumed(tmp_path):
    config = complete(
        {"data.source": "tfds:cifar10", "data.dir": str(tmp_path), "data.train": "train[:90%]", "data.size": 32}
        | {"data.validation": "train[90%:]", "limit_eval_examples": 4000}
    )
    dataset, described = assumed.dataset_shapes(config, Console(quiet=True))
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [45_000, 4_000, 4_000]
    assert dataset.train.images.shape == (45_000, 32, 32, 3)
    assert len(dataset.class_names) == 10
    assert "is not on this machine; assumed: 45,000 / 4,000 / 4,000 images of fixed size" in described
    assert not list(tmp_path.iterdir()), "nothing is downloaded"
    config.data.train = "train[:"
    with pytest.raises(UserError, match=r"split 'train\[:'"):
        assumed.dataset_shapes(config, Console(quiet=True))


@pytest.mark.long
def test_streamed_images_need_a_second_chunk(cpus, monkeypatch):
    labels = np.arange(128, dtype=np.int32) % 5
    split = assumed._StreamedShapes({"label": labels}, 16)
    dataset = assumed.Dataset(split, split, split, tuple("01234"))
    monkeypatch.setattr(ahead, "dataset_shapes", lambda config, console: (dataset, "streamed"))
    report, _ = examine(RECIPE)
    chunk = 8 * 64 * (16 * 16 * 3 + 4)
    assert report["other_bytes"] == chunk, "the next chunk arrives during a call"


@pytest.mark.parametrize(
    ("name", "products", "precision"),
    [
        ("tpu-v5e-1", {"f32": 9, "f32 highest": 1}, "bfloat16"),
        ("gpu-a100", {"f32": 9}, "tf32"),
        ("gpu-t4", {"f32": 9}, "float32"),
        ("gpu-h100", {"f32 highest": 9, "f32": 1}, "float32"),
        ("gpu-h100", {"bf16": 9, "f32 highest": 3}, "bfloat16"),
        ("gpu-h100", {}, None),
    ],
)
def test_the_precision_of_products(name, products, precision):
    assert precision_of(TARGETS[name], products) == precision


def test_every_target_has_peak_figures():
    for chosen in TARGETS.values():
        assert chosen.kind in PEAKS
        assert 0 < chosen.memory < 80 << 30
        assert chosen.peak.float32 < chosen.peak.bfloat16
    assert peak_of("NVIDIA A100-SXM4-80GB") == PEAKS["NVIDIA A100"]
    assert peak_of("cpu") is None


@pytest.mark.parametrize(
    ("name", "packages", "extra"),
    [("tpu-v5e-8", "libtpu", "aot-tpu"), ("gpu-t4", "jax-cuda12-plugin or jax-cuda13-plugin", "aot-gpu")],
)
def test_a_missing_compiler_is_named(name, packages, extra, monkeypatch, capsys):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(absent.importlib.metadata, "version", missing)
    monkeypatch.setattr(sys, "argv", ["doctor", "--config", "configs/digits.py:source", "--target", name])
    assert run_command(main) == 2
    wanted = f"error: --target {name} needs {packages}, which is not installed: pip install -e '.[{extra}]'\n"
    assert capsys.readouterr() == ("", wanted)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "gpu-h100"], "--target requires --config"),
        (["--config", "cifar10", "--target", "gpu-h100", "--sizes"], "instead of --sizes"),
        (["--config", "cifar10", "--batches", "8"], "--batches requires --target"),
        (["--config", "cifar10", "--target", "tpu-v9"], "invalid choice"),
        (["--config", "cifar10", "--target", "gpu-t4", "--batches", "0"], "'0' is no batch size"),
    ],
)
def test_wrong_flags_are_a_one_line_error(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor", *flags])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_compiler_that_aborts_is_an_error(tmp_path, monkeypatch):
    worker = tmp_path / "python"
    worker.write_text('#!/bin/sh\necho \'{"line": "begun"}\'\necho words\necho "Check failed: x" >&2\nexit 134\n')
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setattr(process, "check_compiler", lambda name: None)
    lines = []
    with pytest.raises(UserError, match=r"ended without an answer \(Check failed: x\)"):
        process.ask("sft_jax.doctor.ahead", "gpu-t4", ["gpu-t4", "cifar10", [], []], lines.append)
    assert lines == ["begun"]


def installed(name):
    try:
        absent.check_compiler(name)
    except UserError:
        return False
    return True


def needs_compiler(name):
    return pytest.mark.skipif(not installed(name), reason=f"the compiler for {name} is not installed")


PROGRAM = """
import jax
from sft_jax.runtime.absent import absent_devices
devices = absent_devices({name!r})
program = devices.compile(lambda x: jax.lax.pmean(x @ x, "data"), sharded=(True,))
matrix = jax.ShapeDtypeStruct((devices.count, 256, 256), "float32")
print(devices.count, program.lower(matrix).compile().memory_analysis().argument_size_in_bytes)
"""


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_compiler(name)) for name in TARGETS])
def test_targets_are_known_to_their_compilers(name):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name)],
        env=os.environ | absent.environment(name),
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [name.rpartition("-")[2] if name.startswith("tpu") else "1", str(4 * 256 * 256)]


EXPORTED = """
import pathlib, sys, jax
from sft_jax.inference.stablehlo import load_exported
from sft_jax.runtime.absent import absent_devices
program, _ = load_exported(pathlib.Path(sys.argv[1]))
devices = absent_devices({name!r})
compiled = devices.compile(program, sharded=(True,), gather=False)
images = jax.ShapeDtypeStruct((devices.count, 4, 32, 32, 3), "float32")
print(compiled.lower(images).compile().memory_analysis().output_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_compiler(name)) for name in ("tpu-v5e-1", "gpu-h100")])
def test_an_export_compiles(name, tmp_path):
    run = make_run(tmp_path / "run", data__size=32)
    export(run.folder, "best", tmp_path / "file.stablehlo")
    done = subprocess.run(
        [sys.executable, "-c", EXPORTED.format(name=name), str(tmp_path / "file.stablehlo")],
        env=os.environ | absent.environment(name),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4 * len(NAMES) * 4, "logits, which a TPU pads"


RECIPES = sorted(path.stem for path in shipped("configs").glob("*.py"))
# What those that read files get in their place; other data that is not present is assumed.
ARGUMENTS = {"digits": ":source", "folder": ":{folder}/classes"}
FILES = {"sst2": "text:{configs}/messages.csv", "trec": "text:{configs}/messages.csv", "camvid": "masks:{folder}/masks"}
# Transposes of kernels, which are small: cuDNN takes those of 1x1 convolutions in another order, and products instead
# move more bytes.
TRANSPOSES = {"cifar10_best": 40, "lite0": 50, "flowers": 55, "camvid": 65, "messages": 40, "sst2": 40, "trec": 40}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_compiler(name)) for name in ("tpu-v5e-1", "gpu-h100")])
def test_every_recipe_compiles(recipe, name, tmp_path):
    mask_folders.parts(tmp_path / "masks")
    image_folders.fill(tmp_path / "classes", ["one", "other"], 40)
    places = {"configs": shipped("configs"), "folder": tmp_path}
    source = [("data.source", FILES[recipe].format(**places))] if recipe in FILES else []
    request = [name, recipe + ARGUMENTS.get(recipe, "").format(**places), [("data.dir", str(tmp_path)), *source], []]
    report = process.ask("sft_jax.doctor.ahead", name, request, lambda line: None)
    assert report["compiles"], report["reason"]
    assert report["host_transfers"] == 0
    assert report["largest_batch"] >= report["batch_size"]
    if name.startswith("gpu"):
        assert report["transposes"] <= TRANSPOSES.get(recipe, 10)
    if (recipe, name) == ("cifar10", "tpu-v5e-1"):
        assert report["temp_bytes"] < 150 << 20
    json.dumps(report)
