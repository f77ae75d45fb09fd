"""A program for test_distributed.py: trains every model in the processes that it is started in.

Also trained are networks with every kind of norm and draw. Each process stores its numbers.
Arguments: where to store them; which models (all if none is named)."""

import contextlib
import os
import sys
import traceback
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from wavescat.models.norms import GhostBatchNorm2d
from wavescat.models.registry import MODELS, build, model_options
from wavescat.training.distributed import (
    World,
    distribute,
    gather,
    mean_over_processes,
    shard,
    without_sync,
)
from wavescat.training.shared_forward import shared_forward

TINY = {"width": 2, "widen": 1, "L": 2}
BATCHES = ((5, 2), (3, 1), (1, 1))  # images, and parts that they are computed in


def registered(name):
    side = 64 if "alexnet" in name else 32
    options = {k: v for k, v in TINY.items() if k in model_options(name)}
    return lambda: build(name, (3, side, side), 4, **options), torch.randn(5, 3, side, side)


def normed(norm, sides=2, before=None):
    "A network with one norm, on images, rows or volumes."
    shape = (5, 3, *[6, 5, 4][:sides])
    return lambda: nn.Sequential(
        before or nn.Identity(), norm(), nn.Flatten(), nn.LazyLinear(4)
    ), torch.randn(shape)


class OwnForward(nn.BatchNorm2d):
    "A norm with a forward of its own: by the mean of absolute values."

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.abs().mean((0, 2, 3), keepdim=True)


class Named(nn.BatchNorm2d):
    "A class of its own that changes nothing of the computation."

    def also(self):
        return 2.0


class Function(nn.Module):
    "A linear layer, some layers beside it, and a function of images and these."

    def __init__(self, function, **layers):
        super().__init__()
        self.head, self.function = nn.Linear(48, 4), function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.head(self.function(self, x).flatten(1))


def one(function, **layers):
    return lambda: Function(function, **layers), torch.randn(5, 3, 4, 4)


def drop_path(net, x):
    return x * (torch.rand(len(x), 1, 1, 1) < 0.5) if net.training else x


def path_of_batch(net, x):
    return net.norm(x) if not net.training or torch.rand(()) < 0.5 else x


def noise(net, x):
    return x + torch.randn_like(x) * torch.rand(len(x), 1, 1, 1) if net.training else x


def places_first(net, x):
    return F.dropout(x.flatten(2).permute(2, 0, 1), 0.5, net.training).permute(1, 2, 0)


def windows(net, x):
    return F.dropout(x.reshape(4 * len(x), 12), 0.5, net.training).reshape(len(x), -1)


def chosen(net, x):
    return torch.bernoulli(x.sigmoid()) * x if net.training else x


def sometimes(net, x):
    return net.a(x) if not net.training or torch.rand(()) < 0.5 else net.b(x)


def followed(net, x):
    net.seen.lerp_(x.mean((0, 2, 3)).detach(), 0.1)
    net.count += 1
    return x


def with_buffers(net):
    net.register_buffer("seen", torch.zeros(3))
    net.register_buffer("count", torch.tensor(0))
    return net


torch.manual_seed(3)
OWN = {
    "rows": normed(lambda: nn.BatchNorm1d(3), 0),
    "lines": normed(lambda: nn.BatchNorm1d(3), 1),
    "volumes": normed(lambda: nn.BatchNorm3d(3), 3),
    "lazy": normed(nn.LazyBatchNorm2d),
    "no affine": normed(lambda: nn.BatchNorm2d(3, affine=False)),
    "no momentum": normed(lambda: nn.BatchNorm2d(3, momentum=None)),
    "no statistics": normed(lambda: nn.BatchNorm2d(3, track_running_stats=False)),
    "nothing": normed(
        lambda: nn.BatchNorm1d(3, affine=False, momentum=None, track_running_stats=False), 0
    ),
    "frozen weights": normed(lambda: nn.BatchNorm2d(3).requires_grad_(False)),
    "instance norm": normed(lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True)),
    "group norm": normed(lambda: nn.GroupNorm(1, 3)),
    "ghosts": normed(lambda: GhostBatchNorm2d(3, 2)),
    "own forward": normed(lambda: OwnForward(3)),
    "own class": normed(lambda: Named(3)),
    "dropout": normed(lambda: nn.Dropout(0.5)),
    "dropout of channels": normed(lambda: nn.Dropout2d(0.5)),
    "alpha dropout": normed(lambda: nn.AlphaDropout(0.5)),
    "functional dropout": one(lambda net, x: F.dropout(x, 0.5, net.training)),
    "drop path": one(drop_path),
    "path of the batch": one(path_of_batch, norm=nn.BatchNorm2d(3)),
    "noise": one(noise),
    "places first": one(places_first),
    "windows": one(windows),
    "chosen": one(chosen),
    "unused": one(lambda net, x: x, left=nn.Conv2d(3, 3, 1)),
    "sometimes unused": one(sometimes, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1)),
    "norm used twice": one(lambda net, x: net.norm(net.norm(x).relu()), norm=nn.BatchNorm2d(3)),
}
_followed = one(followed)
OWN["own buffers"] = (lambda: with_buffers(_followed[0]()), _followed[1])


def step(world, model, joined, images, parts):
    "Loss and gradients of a step that is computed in parts; None where norms can't take one pixel."
    labels = torch.arange(len(images)) % 4
    loss = torch.zeros(())
    chunks = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
    try:
        for i, chunk in enumerate(chunks):
            (x, y), count = shard(world, *chunk)
            more = i + 1 < len(chunks)
            with without_sync(world, joined) if more else contextlib.nullcontext():
                with shared_forward(world, joined):
                    scores = joined(x)
                part = F.cross_entropy(scores, y)
                (part * (count / len(images))).backward()
            loss = loss + part.detach() * count
    except ValueError as error:  # one image of one pixel, in a batch norm
        if "more than 1 value" not in str(error):
            raise
        return None
    numbers = {"loss": mean_over_processes(world, loss) / len(images)}
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return numbers | {k: g.clone() for k, g in gradients.items()}


def trained(world, make, images, own):
    "Losses and gradients of some steps, then the state and the scores."
    torch.manual_seed(0)
    model = make().double()
    images = images.double()
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        model.eval()(images)
    model.train()
    joined = distribute(world, model, unknown=own)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    out = {}
    for k, (size, parts) in enumerate(BATCHES):
        optimizer.zero_grad()
        numbers = step(world, model, joined, images[:size], parts)
        if numbers is not None:
            out |= {f"{k} {name}": v for name, v in numbers.items()}
            optimizer.step()
    out |= {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()

    def scores(indices):
        return torch.cat([model(images[j]) for j in indices.split(3)])

    with torch.no_grad():
        out["scores"] = gather(world, len(images), scores, 3)
    out["next random numbers"] = torch.rand(3)
    return out


def main(to, *names):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    world, out = World(torch.device("cpu"), rank, size), {}
    cases = {name: (*registered(name), False) for name in MODELS} | {
        f"own {k}": (*v, True) for k, v in OWN.items()
    }
    for name in (k for k in cases if not names or k.split()[0] in names):
        make, images, own = cases[name]
        if "VERBOSE" in os.environ:
            print(rank, name, file=sys.stderr, flush=True)
        torch.manual_seed(2)
        try:
            out[name] = trained(world, make, torch.randn_like(images), own)
        except Exception:
            out[name] = traceback.format_exc()
    torch.save(out, f"{to}.{rank}")


if __name__ == "__main__":
    with warnings.catch_warnings(action="ignore"):
        main(*sys.argv[1:])
