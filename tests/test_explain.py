"""Explaining functions: what they take, what they refuse, and that they leave a model as it was."""

import re

import pytest
import torch
from tolerances import within
from torch import nn
from torch.utils.checkpoint import checkpoint

from wavescat.analysis.attribution import coefficients, path_attribution
from wavescat.analysis.costs import flops
from wavescat.analysis.gradcam import METHODS, gradcam
from wavescat.analysis.guided import guided_backpropagation, guided_gradcam
from wavescat.analysis.map_layers import branches, default_layer, layers
from wavescat.models.inspection import architecture
from wavescat.models.registry import MODELS


def _images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    "Two convolutions, batch norm, dropout; `fail` raises behind them, `count` is a buffer that changes."

    fail = False

    def __init__(self, use_reentrant=None):
        super().__init__()
        self.a, self.bn, self.relu = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
        )
        self.b, self.drop, self.head = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Dropout(0.5),
            nn.Linear(8, 5),
        )
        self.register_buffer("count", torch.zeros(()))
        self.use_reentrant = use_reentrant

    def first(self, x):
        return self.relu(self.bn(self.a(x)))

    def forward(self, x):
        self.count = self.count + 1
        x = (
            self.first(x)
            if self.use_reentrant is None
            else checkpoint(self.first, x, use_reentrant=self.use_reentrant)
        )
        x = self.drop(self.relu(self.b(x))).mean((2, 3))
        torch.rand(3)  # a network may draw numbers at any time
        if self.fail:
            raise KeyboardInterrupt
        return self.head(x)


EXPLAINING = {
    "layers": layers,
    "default_layer": default_layer,
    "branches": branches,
    **{m: lambda model, x, m=m: gradcam(model, x, method=m) for m in METHODS},
    "guided_backpropagation": guided_backpropagation,
    "guided_gradcam": guided_gradcam,
    "coefficients": coefficients,
    "path_attribution": lambda model, x: path_attribution(model, x, steps=2),
    "flops": lambda model, x: flops(model, x.shape[1:]),
    "architecture": lambda model, x: architecture(model, x.shape[1:]),
}
OF_SCATTERING = "coefficients", "path_attribution", "architecture"  # the others explain any network


def _everything(model):
    "All that a function could change of a model, and torch's random numbers."
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": hooks,
        "random": torch.get_rng_state(),
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "wanted": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad.clone() for p in model.parameters()],
    }


@pytest.mark.parametrize("raising", [False, True], ids=["", "raising"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize("name", EXPLAINING)
def test_a_model_is_left_bit_for_bit_as_it_was(name, training, raising, monkeypatch):
    model = MODELS["scatresnet18"]((3, 16, 16), 5, width=2, L=2) if name in OF_SCATTERING else Net()
    model.train(training)
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).train(
        not training
    )  # its own mode, as where it is frozen
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, i)
        p.requires_grad_(i % 2 == 0)
    before, x = _everything(model), _images(2, 3, 16, 16)
    if raising:

        def fail(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Net, "fail", True)
        last = model.stages[-1] if name == "architecture" else model.head
        handles = [last.register_forward_hook(fail)]
        with pytest.raises(KeyboardInterrupt):
            EXPLAINING[name](model, x)
        for h in handles:
            h.remove()
    else:
        EXPLAINING[name](model, x)
    torch.testing.assert_close(_everything(model), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "given, message",
    [
        (lambda x: x[0], "got shape (3, 16, 16)"),
        (lambda x: x[:0], "got shape (0, 3, 16, 16)"),
        (lambda x: x.numpy(), "got shape (2, 3, 16, 16) of ndarray"),
        (lambda x: None, "got NoneType"),
        (list, "got list"),
    ],
)
@pytest.mark.parametrize("name", [n for n in EXPLAINING if n not in (*OF_SCATTERING, "flops")])
def test_what_are_no_images_is_refused_as_it_was_given(name, given, message):
    with pytest.raises(
        ValueError,
        match=re.escape(f"expected images, a tensor (B, C, H, W), one at least, {message}"),
    ):
        EXPLAINING[name](Net(), given(_images(2, 3, 16, 16)))


def test_a_layer_is_named_or_given_or_alone_in_a_list():
    model, x = Net().eval(), _images(2, 3, 16, 16)
    expected = gradcam(model, x, layer="bn")
    for layer in (model.bn, ["bn"], [model.bn], ("bn",)):
        assert torch.equal(gradcam(model, x, layer=layer), expected)
    for layer, message in (
        (["a", "bn"], "layer must be one layer, got 2: ask for the map of each"),
        ([], "layer must be one layer, got 0"),
        (nn.ReLU(), "this ReLU is no layer of the model"),
        (5, "layer must be the name of a layer, or the layer itself, got 5"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            gradcam(model, x, layer=layer)


def test_reentrant_checkpointing_is_named():
    x = _images(2, 3, 16, 16)
    for layer in ("a", "bn"):
        with pytest.raises(
            ValueError, match=f"layer {layer} is computed without gradients.*use_reentrant=False"
        ):
            gradcam(Net(True), x, layer=layer)
    with pytest.raises(ValueError, match="reentrant checkpointing.*use_reentrant=False"):
        guided_backpropagation(Net(True), x)
    plain, saving = Net(), Net(False)
    saving.load_state_dict(plain.state_dict())
    assert torch.equal(gradcam(saving, x, layer="bn"), gradcam(plain, x, layer="bn"))


def test_a_layer_without_influence_is_said_so_whatever_is_frozen():
    class Cut(Net):
        def forward(self, x):
            return self.head(self.a(x).detach().mean((2, 3)))

    for frozen in (False, True):
        with pytest.raises(ValueError, match="layer a has no influence on the scores"):
            gradcam(Cut().requires_grad_(not frozen), _images(2, 3, 16, 16), layer="a")


@pytest.mark.parametrize("name", ["gradcam", "guided_gradcam", "path_attribution"])
def test_explained_under_inference_mode(name):
    torch.manual_seed(0)
    model, x = MODELS["scatresnet18"]((3, 16, 16), 5, width=2, L=2), _images(2, 3, 16, 16)
    expected = EXPLAINING[name](model, x)
    with torch.inference_mode():
        made = MODELS["scatresnet18"]((3, 16, 16), 5, width=2, L=2)
        made.load_state_dict(model.state_dict())
        inside = [EXPLAINING[name](m, i) for m in (model, made) for i in (x, x.clone())]
    outside = EXPLAINING[name](made, x)  # its parameters are inference tensors
    for got in (*inside, outside):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        torch.testing.assert_close(EXPLAINING[name](model, x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model, x = Net().eval(), _images(2, 3, 12, 20)
    maps = gradcam(model.to(dtype), x.to(dtype), 1, layer="bn")
    assert maps.shape == (2, 12, 20) and maps.dtype == dtype
    torch.testing.assert_close(
        maps,
        gradcam(model.float(), x.float(), 1, layer="bn").to(dtype),
        **within("reordered", torch.bfloat16),
    )
