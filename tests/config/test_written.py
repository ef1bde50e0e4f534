"""Recipes that are written by the search and by fit."""

import runpy

from sft_jax.config import complete, flatten, load_config
from sft_jax.config.written import recipe


def test_a_recipe_has_every_setting(tmp_path):
    values = {
        "epochs": 7,
        "init": 'a "quoted" \\ path',
        "data.per_class": 3,
        "data.flip": False,
        "data.mean": (0.1, 0.2, 0.3),
        "data.size_schedule": (("16", 0.5),),
        "finetune.freeze": ("conv1.*", r"bn\d.*"),
        "optimizer.learning_rate": 1e-5,
    }
    path = tmp_path / "best.py"
    docstring = 'So """well""" \\ done.\n\n    run it'
    path.write_text(recipe(complete(values), docstring=docstring, about="Returns it.", marks={"epochs": "tuned"}))
    assert flatten(load_config(str(path))) == flatten(complete(values))
    assert 'So """well""" \\ done.' in runpy.run_path(str(path))["__doc__"]
    assert "    config.epochs = 7  # tuned\n" in path.read_text()
