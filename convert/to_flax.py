"""Converts weights of any family: `python convert/to_flax.py --arch NAME --output FILE.safetensors`.

The same program as `resnet_to_flax.py`, whose name is older than the other families.
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("resnet_to_flax.py")), run_name="__main__")
