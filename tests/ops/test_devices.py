"""What is said when memory does not suffice."""

import numpy as np
import pytest
import torch

from pointadapt.errors import UserError
from pointadapt.ops.devices import enough_memory

MORE_THAN_ANY = 1 << 55


def full_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize(
    ("ask", "whose"),
    [
        (lambda: torch.empty(MORE_THAN_ANY), "this machine's"),
        (lambda: np.zeros(MORE_THAN_ANY), "this machine's"),
        (full_gpu, "the GPU's"),
    ],
)
def test_full_memory_becomes_a_sentence_with_the_cure(ask, whose):
    with pytest.raises(UserError, match=f"^{whose} memory .*: lower tile$"):
        enough_memory("lower tile")(ask)()


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), enough_memory("lower tile"):
        torch.ones(2, 3) @ torch.ones(2, 3)
