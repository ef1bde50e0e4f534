"""The memory of this machine that arrays may take."""

import psutil

from sft_jax.errors import UserError
from sft_jax.runtime.estimate import size_text

# Fraction of the free memory that images, masks or outputs may take.
MEMORY_FRACTION = 0.5


def check_free(needed: int, what: str, remedy: str) -> None:
    """Raises UserError if `needed` bytes are too many; `what` begins the message and `remedy` ends it."""
    free = psutil.virtual_memory().available
    if needed > MEMORY_FRACTION * free:
        raise UserError(f"{what} need {size_text(needed)} of memory, of which {size_text(free)} are free; {remedy}")
