"""The image encoder's last stage inside the network: trained, but for batch norm, and passed once a step."""

import pytest
import torch
from torch import nn

from network_settings import loss_of, sizes_of
from st_gchb.nn import (
    GraphBatch,
    STGCHBNetwork,
    TrainedStage,
    _last_stage as stage_module,
)

N, VIEWS, CHANNELS = 9, 2, 3
EDGES = torch.tensor([[0, 1, 1, 2, 2, 3, 5, 6], [1, 0, 2, 1, 3, 2, 6, 5]])


class Small(nn.Module):
    """Convolution, batch norm with statistics of its own, dropout, mean; counts its calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(CHANNELS, 4, 2), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.norm.running_mean.uniform_(-1, 1)
        self.calls = 0

    def forward(self, maps):
        self.calls += 1
        return self.drop(torch.relu(self.norm(self.conv(maps)))).mean((2, 3))


def maps(n=N):
    return torch.rand(n, VIEWS, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(1)).half()


def batch(n=N):
    rows = torch.arange(n)
    expression = torch.rand(n, 5, generator=torch.Generator().manual_seed(2))
    return GraphBatch(maps(n), expression, EDGES, torch.tensor([0] * 5 + [1] * (n - 5)), rows, rows)


def network(**sizes):
    torch.manual_seed(0)
    settings = sizes_of(4, 5, n_hidden=6, n_embedding=6, dropout=0.0, **sizes)
    made = STGCHBNetwork(settings, Small())
    for branch in (made.image, made.expression):
        branch.fixed.matrix.fill_(1.0)
    return made


def test_features_are_the_mean_over_views_whatever_the_type():
    stage = TrainedStage(Small())
    one, two = (stage(maps()[:, [view]]) for view in range(VIEWS))
    torch.testing.assert_close(stage(maps()), (one + two) / 2)
    assert stage(maps()).dtype == torch.float32


def test_the_stage_stays_in_evaluation_mode_and_its_batch_norm_as_it_was():
    made = network()
    before = {name: value.clone() for name, value in made.stage.state_dict().items()}
    made.train()
    assert made.training
    assert not any(layer.training for layer in made.stage.stage.modules())
    optimizer = torch.optim.SGD([one for one in made.parameters() if one.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack(list(made.loss(batch(), loss_of()).values())).sum().backward()
        optimizer.step()
    changed = {name for name, value in made.stage.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"stage.conv.weight", "stage.conv.bias"}
    made.eval()
    made.train()
    torch.testing.assert_close(made.stage(maps()), made.stage(maps()), rtol=0, atol=0)


@pytest.mark.parametrize("graph", ["gcn", "none"])
@pytest.mark.parametrize("term", ["alignment", "dgi_image", "bottleneck_image"])
def test_gradients_of_every_term_reach_the_stage_in_one_pass(term, graph):
    made = network(image_graph=graph)
    terms = made.loss(batch(), loss_of(dgi_image=1.0, bottleneck=1.0))
    assert made.stage.stage.calls == 1
    terms[term].backward()
    assert made.stage.stage.conv.weight.grad.abs().sum() > 0


def test_gradients_of_the_infomax_stage_reach_it_too():
    made = network(image_graph="gcn")
    made.pretraining_loss(batch(), loss_of(dgi_image=1.0))["dgi_image"].backward()
    assert made.stage.stage.conv.weight.grad.abs().sum() > 0


def test_a_large_step_gives_the_same_gradients_part_by_part(monkeypatch):
    found = []
    for at_once in (64, 4):
        monkeypatch.setattr(stage_module, "_AT_ONCE", at_once)
        made = network()
        made.loss(batch(), loss_of())["alignment"].backward()
        found.append(made.stage.stage.conv.weight.grad)
        calls = made.stage.stage.calls
    # Two spots at once, of two views each: five parts, each passed once more on the way back.
    assert calls == 10
    torch.testing.assert_close(found[0], found[1])


def test_a_block_with_its_halo_is_represented_as_in_the_whole_slice():
    made = network(image_graph="gcn").eval()
    whole = made.image(made.image_inputs(maps()), EDGES).embedding
    nodes = torch.tensor([1, 0, 2])  # 1, and all that is one hop away
    inside = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]])
    degree = torch.tensor([2.0, 1.0, 2.0])
    part = made.image(made.image_inputs(maps()[nodes]), inside, degree).embedding
    torch.testing.assert_close(part[0], whole[1])
    assert (part[2] - whole[2]).abs().max() > 1e-4
