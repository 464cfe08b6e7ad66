"""Writes reference.json: 20 steps of each optimiser as PyTorch takes them.

    python reference.py > reference.json        # torch 2.15

The task is a small least-squares problem, mean((A W - B)^2), whose gradient both sides compute
themselves. Muon is written out from its paper's formula in single precision, because torch.optim.Muon
orthogonalises in bfloat16 and would agree to two digits only.
"""

import json

import torch

STEPS = 20
torch.manual_seed(0)
A, B, W0 = torch.randn(6, 4), torch.randn(6, 3), torch.randn(4, 3)


def gradient(w):
    w = w.detach().requires_grad_()
    ((A @ w - B) ** 2).mean().backward()
    return w.grad


def trace(make):
    w = W0.clone().requires_grad_()
    optimiser = make([w])
    steps = []
    for _ in range(STEPS):
        w.grad = gradient(w)
        optimiser.step()
        steps.append(w.detach().flatten().tolist())
    return steps


def muon(lr=0.02, momentum=0.95, weight_decay=0.1, coefficients=(3.4445, -4.775, 2.0315)):
    """Jordan 2024 with the step size of Liu et al. 2025: Nesterov, five Newton-Schulz steps."""
    a, b, c = coefficients
    w, buffer, steps = W0.clone(), torch.zeros_like(W0), []
    for _ in range(STEPS):
        g = gradient(w)
        buffer = momentum * buffer + g
        x = (g + momentum * buffer).T  # wide: 3 x 4
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        rate = lr * 0.2 * max(W0.shape) ** 0.5
        w = w * (1 - lr * weight_decay) - rate * x.T
        steps.append(w.flatten().tolist())
    return steps


optim = torch.optim
traces = {
    "sgd": trace(lambda p: optim.SGD(p, lr=0.1)),
    "momentum": trace(lambda p: optim.SGD(p, lr=0.05, momentum=0.9)),
    "rmsprop": trace(lambda p: optim.RMSprop(p, lr=0.01, alpha=0.99, eps=1e-8)),
    "adam": trace(lambda p: optim.Adam(p, lr=0.02, betas=(0.9, 0.999), eps=1e-8)),
    "adamw": trace(lambda p: optim.AdamW(p, lr=0.02, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)),
    "muon": muon(),
}


def rounded(values):
    return [float(f"{v:.8g}") for v in values]


print("{")
for name, t in ("a", A), ("b", B), ("w0", W0):
    print(f'"{name}": {json.dumps(rounded(t.flatten().tolist()))},')
print('"traces": {')
lines = [
    f'"{name}": [\n' + ",\n".join(json.dumps(rounded(step)) for step in steps) + "\n]"
    for name, steps in traces.items()
]
print(",\n".join(lines))
print("}}")
