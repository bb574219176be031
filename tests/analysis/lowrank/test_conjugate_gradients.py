import pytest
import torch

from nncompress.analysis.conjugate_gradients import conjugate_gradients


@pytest.fixture
def system():
    """A matrix with positive eigenvalues, what it is to give, and a place to start."""
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**31)
    root, wanted, start = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 12), (9, 4), (9, 4))
    )
    return root @ root.T + 0.1 * torch.eye(9), wanted, start


def test_as_many_steps_as_there_are_unknowns_solve_the_system(system):
    matrix, wanted, start = system
    found = conjugate_gradients(matrix.matmul, wanted - matrix @ start, start, steps=200, enough=1e-24)
    assert torch.allclose(found, torch.linalg.solve(matrix, wanted), rtol=1e-8, atol=1e-8)


def test_every_step_lowers_the_error_that_is_minimised(system):
    matrix, wanted, start = system
    right = torch.linalg.solve(matrix, wanted)
    errors = []
    for steps in range(9):
        off = conjugate_gradients(matrix.matmul, wanted - matrix @ start, start, steps) - right
        errors.append(float((off * (matrix @ off)).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_what_a_singular_matrix_does_not_look_at_stays_as_it_was(system):
    _, wanted, start = system
    seen = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    wanted, start = seen @ wanted[:3], start[:3]
    found = conjugate_gradients(seen.matmul, wanted - seen @ start, start, steps=50)
    assert torch.allclose(seen @ found, wanted)
    assert torch.equal(found[2], start[2])
