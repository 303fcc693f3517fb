import pytest
import torch

from pointadapt.ops.segment import segment_max, segment_mean


def test_against_a_loop():
    feat, index = torch.randn(40, 3), torch.randint(0, 5, (40,))
    index[:5] = torch.arange(5)
    for group in range(5):
        rows = feat[index == group]
        torch.testing.assert_close(segment_max(feat, index, 5)[group], rows.max(0).values)
        torch.testing.assert_close(segment_mean(feat, index, 5)[group], rows.mean(0))


def test_negative_maximum_and_empty_mean():
    assert segment_max(torch.tensor([[-3.0]]), torch.tensor([0]), 1).item() == -3
    assert segment_mean(torch.ones(1, 2), torch.tensor([1]), 2)[0].tolist() == [0, 0]


def test_gradients():
    feat = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda f: segment_max(f, index, 3), feat)
    assert torch.autograd.gradcheck(lambda f: segment_mean(f, index, 3), feat)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_16_bit_features_are_added_up_in_float32(dtype):
    feat, index = torch.full((5000, 2), 100.0, dtype=dtype), torch.zeros(5000, dtype=torch.long)
    found = segment_mean(feat, index, 1)
    assert found.dtype == dtype and found.tolist() == [[100.0, 100.0]]  # the sum is beyond float16
