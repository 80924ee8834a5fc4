"""The aesthetic predictors from files as LAION's."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from restored import restore

from dollar_jax.convert import aesthetic as keys
from dollar_jax.convert.tables import convert
from dollar_jax.errors import UserError
from dollar_jax.models import aesthetic


class Mlp(torch.nn.Module):
    """With its dropout and without activations, as LAION's."""

    def __init__(self):
        super().__init__()
        widths = (768, 1024, 128, 64, 16, 1)
        first, second, third, *rest = (torch.nn.Linear(n, m) for n, m in pairwise(widths))
        dropout = torch.nn.Dropout
        self.layers = torch.nn.Sequential(first, dropout(0.2), second, dropout(0.2), third, dropout(0.1), *rest)

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    ("make", "widths"),
    [(lambda: torch.nn.Linear(768, 1), [768, 1]), (Mlp, [768, 1024, 128, 64, 16, 1])],
    ids=["linear", "MLP"],
)
def test_ratings_of_both_predictors(make, widths):
    torch.manual_seed(0)
    theirs = make().eval()
    state_dict = {key: value.numpy() for key, value in theirs.state_dict().items()}
    config = keys.config({key: value.shape for key, value in state_dict.items()})
    assert config == {"widths": widths}
    network, table = aesthetic.build(**config), keys.table(config)
    params = convert(table, state_dict, jax.eval_shape(network.init, jax.random.key(0)))
    x = np.random.default_rng(0).normal(size=(5, 768)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor(x)).numpy()[:, 0]
    ratings = network.apply(params, jnp.asarray(x))
    assert ratings.shape == (5,)
    assert np.abs(ratings - wanted).max() < 1e-4 * np.abs(wanted).max()
    back = restore(table, params)
    assert back.keys() == state_dict.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, state_dict[key])


def test_user_errors():
    with pytest.raises(UserError, match=r"at least two numbers and ends with 1, not \[768, 2\]"):
        aesthetic.build(widths=(768, 2))
    with pytest.raises(UserError, match="no aesthetic predictor of LAION: it has layers"):
        keys.config({"layers.0.weight": (1024, 768)})
    with pytest.raises(UserError, match=r"1 or 5 layers: \[768, 16, 1\] fits neither"):
        keys.table({"widths": [768, 16, 1]})
