"""Rounding by the inputs' second moments, against rounding alone."""

import pytest
import torch

from vitrail_export.gptq import inverse_factor, moments, round_with_moments
from vitrail_export.quantize import restore, round_rows

torch.set_num_threads(1)


def correlated(tokens=512, inputs=256):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(inputs // 4, inputs, generator=generator)
    return torch.randn(tokens, inputs // 4, generator=generator) @ mix + 0.1 * torch.randn(
        tokens, inputs, generator=generator
    )


def weights(outputs=48, inputs=256):
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))


def test_the_factor_is_that_of_the_inverse():
    x = correlated(inputs=64)
    matrix = x.T @ x / len(x) + torch.eye(64)
    factor = inverse_factor(matrix)
    torch.testing.assert_close(factor.T @ factor @ matrix, torch.eye(64), atol=1e-3, rtol=0)
    assert not factor.tril(-1).any()


def test_outputs_are_nearer_than_those_of_rounding_alone():
    x, weight = correlated(), weights()
    codes, scales = round_with_moments(weight, moments(x), bits=4, block=128)
    steps = codes.float().reshape(len(weight), -1, 128) - 8
    fitted = (steps * scales[..., None]).reshape_as(weight)
    rounded = torch.from_numpy(restore(round_rows(weight.numpy(), bits=4, block=128), bits=4))
    errors = [(x @ (each - weight).T).square().mean() for each in (fitted, rounded)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_within_their_bits_and_the_order_of_inputs_is_kept(bits):
    x, weight = correlated() * torch.linspace(0.1, 3, 256), weights()
    codes, scales = round_with_moments(weight, moments(x), bits=bits, block=32)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) < 1 << bits
    restored = ((codes.float() - (1 << (bits - 1))) * scales[..., None]).reshape_as(weight)
    assert torch.corrcoef(torch.stack([restored.flatten(), weight.flatten()]))[0, 1] > 0.9


def test_inputs_that_never_come_do_not_spoil_the_rest():
    x = correlated()
    x[:, :40] = 0
    codes, scales = round_with_moments(weights(), moments(x), bits=4, block=128)
    assert scales.isfinite().all()
    assert (codes.float().std() > 1).item()
