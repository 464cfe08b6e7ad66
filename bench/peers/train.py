"""The PyTorch side of `maquette bench train`.

    python train.py SUITE [--precision f32|bf16] [--threads N] [--compile] [--freeze]

Trains the suite's model on made-up data and answers on stdout, one JSON object per line: first, once
it is warm, `{"name", "parameters"}`; then for every line on stdin, a number of steps,
`{"seconds", "loss", "peak_mb"}`. It ends with its input. `maquette bench` writes the other side.

Each model has the parameters of Maquette's, which `maquette bench` checks, and PyTorch's own fused
operators: `scaled_dot_product_attention`, `AdamW(fused=True)`, `nn.LSTM`.
"""

import argparse
import json
import math
import sys
import time

try:
    import torch
except ImportError as error:
    print(json.dumps({"missing": str(error)}), flush=True)
    sys.exit(0)

from torch import nn
from torch.nn import functional as F

POOL = 8  # batches made beforehand and taken in turn


def reset_peak():
    """Forget the highest resident size so far (Linux)."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak_mb():
    """The highest resident size since `reset_peak`, in units of 10^6 bytes."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return None


class Attention(nn.Module):
    def __init__(self, width, heads, bias, dropout, causal):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        self.heads, self.dropout, self.causal = heads, dropout, causal

    def forward(self, x):
        batch, seq, width = x.shape
        parts = self.qkv(x).split(width, dim=2)
        q, k, v = (p.view(batch, seq, self.heads, width // self.heads).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(batch, seq, width))


class GptBlock(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, heads, bias=False, dropout=dropout, causal=True)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        hidden = F.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.dropout(self.down(hidden))


class Gpt(nn.Module):
    def __init__(self, layers, heads, width, context, vocab, dropout):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(GptBlock(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * layers) if residual else 1))

    def forward(self, inputs, targets):
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(784, 400)
        self.posterior = nn.Linear(400, 40)
        self.back = nn.Linear(20, 400)
        self.pixels = nn.Linear(400, 784)

    def forward(self, x):
        mean, log_variance = self.posterior(F.relu(self.hidden(x))).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        logits = self.pixels(F.relu(self.back(z)))
        nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
        return (nll + kl) / x.shape[0]


class SpatialAttention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.attention = Attention(channels, heads, bias=True, dropout=0.0, causal=False)

    def forward(self, x):
        cells = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(cells).transpose(1, 2).reshape(x.shape)


class ResBlock(nn.Module):
    def __init__(self, d_in, d_out, d_time, heads, attends):
        super().__init__()
        self.norm = nn.GroupNorm(8, d_in)
        self.conv = nn.Conv2d(d_in, d_out, 3, padding=1)
        self.time = nn.Linear(d_time, 2 * d_out)
        self.norm_out = nn.GroupNorm(8, d_out)
        self.conv_out = nn.Conv2d(d_out, d_out, 3, padding=1)
        self.shortcut = nn.Conv2d(d_in, d_out, 1) if d_in != d_out else nn.Identity()
        self.attention = SpatialAttention(d_out, heads) if attends else nn.Identity()

    def forward(self, x, time):
        h = self.conv(F.silu(self.norm(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm_out(h) * (1 + scale) + shift)
        return self.attention(self.shortcut(x) + self.conv_out(h))


class UNet(nn.Module):
    """`maquette_models::UNet`: the residual blocks and levels of diffusers' `UNet2DModel`."""

    def __init__(self, side, widths, blocks, heads, attention):
        super().__init__()
        d_time = 4 * widths[0]
        half = widths[0] // 2
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * torch.arange(half) / half))
        self.time = nn.Sequential(nn.Linear(widths[0], d_time), nn.SiLU(), nn.Linear(d_time, d_time))
        self.input = nn.Conv2d(1, widths[0], 3, padding=1)
        self.down, self.narrow = nn.ModuleList(), nn.ModuleList()
        self.up, self.widen = nn.ModuleList(), nn.ModuleList()
        now = widths[0]
        for level, width in enumerate(widths):
            attends = side >> level in attention
            self.down.append(nn.ModuleList())
            for _ in range(blocks):
                self.down[-1].append(ResBlock(now, width, d_time, heads, attends))
                now = width
            if level + 1 < len(widths):
                self.narrow.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        self.middle = ResBlock(now, now, d_time, heads, True)
        self.middle_after = ResBlock(now, now, d_time, heads, False)
        for level, width in reversed(list(enumerate(widths))):
            attends = side >> level in attention
            self.up.append(nn.ModuleList())
            for _ in range(blocks):
                self.up[-1].append(ResBlock(now + width, width, d_time, heads, attends))
                now = width
            if level > 0:
                now = widths[level - 1]
                self.widen.append(nn.Conv2d(width, now, 3, padding=1))
        self.norm = nn.GroupNorm(8, widths[0])
        self.output = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, x, t, target):
        angles = t[:, None] * self.frequencies
        time = F.silu(self.time(torch.cat([angles.cos(), angles.sin()], dim=1)))
        h = self.input(x)
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, time)
                skips.append(h)
            if level < len(self.narrow):
                h = self.narrow[level](h)
        h = self.middle_after(self.middle(h, time), time)
        for level, blocks in enumerate(self.up):
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), time)
            if level < len(self.widen):
                h = self.widen[level](F.interpolate(h, scale_factor=2, mode="nearest"))
        return F.mse_loss(self.output(F.silu(self.norm(h))), target)


class LstmLm(nn.Module):
    def __init__(self, vocab, width, layers):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        # PyTorch has two offsets per gate, which add up to one.
        for layer in range(layers):
            getattr(self.lstm, f"bias_hh_l{layer}").requires_grad_(False)
        self.head = nn.Linear(width, vocab)

    def forward(self, inputs, targets):
        logits = self.head(self.lstm(self.tokens(inputs))[0])
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def generator():
    """The generator of PyTorch's DCGAN example, for 32x32, with offsets where no norm takes them away.
    On one pixel the first transposed convolution is a linear layer."""
    return nn.Sequential(
        nn.Linear(100, 256 * 4 * 4), nn.Unflatten(1, (256, 4, 4)), nn.BatchNorm2d(256), nn.ReLU(True),
        nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(True),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
        nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def discriminator(normed):
    """Its discriminator, up to the logit; batch norm is left out where a penalty is of each image alone."""

    def layer(d_in, d_out):
        conv = nn.Conv2d(d_in, d_out, 4, 2, 1, bias=not normed)
        return [conv, *([nn.BatchNorm2d(d_out)] if normed else []), nn.LeakyReLU(0.2, inplace=True)]

    return nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True),
        *layer(64, 128), *layer(128, 256),
        nn.Conv2d(256, 1, 4, 1, 0), nn.Flatten(0),
    )  # fmt: skip


def gradients(judge, x):
    """Of each score with respect to its image, `[batch, numbers]`, to be differentiated once more."""
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(judge(x).sum(), x, create_graph=True)[0].flatten(1)


def wgan_gp(judge, real, fake):
    share = torch.rand(len(real), 1, 1, 1)
    norms = gradients(judge, share * real + (1 - share) * fake).norm(dim=1)
    return 10 * (norms - 1).square().mean()


def r1(judge, real, fake):
    return 10 / 2 * gradients(judge, real).square().sum(dim=1).mean()


# What discriminator and generator minimise of the logits of real and of made images, and a penalty.
softplus = F.softplus
GAN_LOSSES = {
    "non-saturating": (lambda r, f: softplus(-r).mean() + softplus(f).mean(), lambda r, f: softplus(-f).mean(), None),
    "minimax": (lambda r, f: softplus(-r).mean() + softplus(f).mean(), lambda r, f: -softplus(f).mean(), None),
    "least-squares": (
        lambda r, f: ((r - 1).square().mean() + f.square().mean()) / 2, lambda r, f: (f - 1).square().mean() / 2, None,
    ),
    "hinge": (lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda r, f: -f.mean(), None),
    "relativistic": (lambda r, f: softplus(f - r).mean(), lambda r, f: softplus(r - f).mean(), None),
    "wasserstein-clip": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean(), None),
    "wgan-gp": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean(), wgan_gp),
    "r1": (lambda r, f: softplus(-r).mean() + softplus(f).mean(), lambda r, f: softplus(-f).mean(), r1),
}  # fmt: skip


def fused_adamw(model, lr, betas, weight_decay):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def one_loss(model, optimizer, batches, clip, settings):
    """A step of a model that returns its own loss."""
    forward = torch.compile(model) if settings.compile else model

    def step(index):
        with settings.autocast():
            loss = forward(*batches[index % POOL])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return loss.item()

    return sum(p.numel() for p in model.parameters() if p.requires_grad), step


def gpt(settings, layers, heads, width, context, batch, vocab, dropout):
    model = Gpt(layers, heads, width, context, vocab, dropout)
    texts = [torch.randint(vocab, (batch, context + 1)) for _ in range(POOL)]
    batches = [(text[:, :-1].contiguous(), text[:, 1:].contiguous()) for text in texts]
    optimizer = fused_adamw(model, 1e-3, (0.9, 0.99), 0.1)
    return one_loss(model, optimizer, batches, 1.0, settings)


def vae(settings):
    model = Vae()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batches = [(torch.rand(128, 784),) for _ in range(POOL)]
    return one_loss(model, optimizer, batches, None, settings)


def unet(settings):
    model = UNet(32, [64, 128, 128], 2, 16, [16, 8])
    batch = lambda: (torch.randn(32, 1, 32, 32), 1000 * torch.rand(32), torch.randn(32, 1, 32, 32))
    optimizer = fused_adamw(model, 1e-4, (0.9, 0.999), 0.0)
    return one_loss(model, optimizer, [batch() for _ in range(POOL)], 1.0, settings)


def lstm(settings):
    model = LstmLm(65, 256, 2)
    texts = [torch.randint(65, (32, 65)) for _ in range(POOL)]
    batches = [(text[:, :-1].contiguous(), text[:, 1:].contiguous()) for text in texts]
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    return one_loss(model, optimizer, batches, 1.0, settings)


def dcgan(settings):
    """One step of PyTorch's DCGAN example. As there, the discriminator is not frozen while the
    generator learns; `--freeze` does that too."""
    judged, answered, penalty = GAN_LOSSES[settings.loss]
    makes, judges = generator(), discriminator(normed=penalty is None)
    for module in [*makes.modules(), *judges.modules()]:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.02)
    clipped = settings.loss == "wasserstein-clip"
    if clipped:
        optimizer = lambda model: torch.optim.RMSprop(model.parameters(), lr=5e-5)
    else:
        optimizer = lambda model: torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
    moves_makes, moves_judges = optimizer(makes), optimizer(judges)
    make, judge = makes, judges
    if settings.compile:
        make, judge = torch.compile(makes), torch.compile(judges)
    images = [2 * torch.rand(64, 3, 32, 32) - 1 for _ in range(POOL)]

    def step(index):
        # 1. The discriminator on real images and on made ones. A compiled module cannot be
        # differentiated twice, so a penalty goes through the plain one.
        moves_judges.zero_grad(set_to_none=True)
        images_now = images[index % POOL]
        with settings.autocast():
            made = make(torch.randn(64, 100))
            real = judge(images_now)
            loss = judged(real, judge(made.detach()))
            if penalty is not None:
                loss = loss + penalty(judges, images_now, made.detach())
        loss.backward()
        moves_judges.step()
        if clipped:
            with torch.no_grad():
                for weight in judges.parameters():
                    weight.clamp_(-0.01, 0.01)
        # 2. The generator, through the discriminator.
        moves_makes.zero_grad(set_to_none=True)
        if settings.freeze:
            judges.requires_grad_(False)
        with settings.autocast():
            if settings.loss == "relativistic":
                with torch.no_grad():
                    real = judge(images_now)
            fooled = answered(real.detach(), judge(made))
        fooled.backward()
        moves_makes.step()
        if settings.freeze:
            judges.requires_grad_(True)
        return loss.item() + fooled.item()

    return sum(p.numel() for model in (makes, judges) for p in model.parameters()), step


SUITES = {
    "gpt-tiny": lambda s: gpt(s, 4, 4, 128, 64, 12, 65, 0.0),
    "gpt-baby": lambda s: gpt(s, 6, 6, 384, 256, 8, 65, 0.2),
    "gpt-8k": lambda s: gpt(s, 6, 6, 384, 256, 8, 8192, 0.2),
    "dcgan32": dcgan,
    "unet32": unet,
    "vae-mnist": vae,
    "lstm": lstm,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--loss", choices=GAN_LOSSES, default="non-saturating", help="of dcgan32")
    parser.add_argument("--freeze", action="store_true", help="dcgan32 without needless gradients")
    settings = parser.parse_args()
    bf16 = settings.precision == "bf16"
    settings.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)

    parameters, step = SUITES[settings.suite](settings)
    taken = 0
    for _ in range(3):
        step(taken)
        taken += 1
    reset_peak()
    how = "compiled" if settings.compile else "eager"
    version = torch.__version__.split("+")[0]
    print(json.dumps({"name": f"PyTorch {version} {how}", "parameters": parameters}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            loss = step(taken)
            taken += 1
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "loss": loss, "peak_mb": peak_mb()}), flush=True)


main()
