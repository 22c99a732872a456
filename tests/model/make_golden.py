#!/usr/bin/env python3
"""Golden loss, logits and gradients of whole 2-layer models, by PyTorch autograd in double precision.

    python3 make_golden.py > golden.json        (needs torch; the tests only read golden.json)

Weights are a formula of (index, position) that golden_test.cpp repeats, so that no weights need to be stored. Written from
the papers' formulas: RMS norm (Zhang & Sennrich 2019), rotary embedding in the rotate-half convention (Su et al. 2021),
grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020).
"""
import json
import math
import struct

import torch

torch.set_default_dtype(torch.float64)

CONFIGS = {
    "llama": dict(vocab=50, hidden=48, inter=72, layers=2, heads=6, kv_heads=2, head_dim=8, tie=True, bias=False, qk_norm=False),
    "qwen2": dict(vocab=37, hidden=32, inter=56, layers=2, heads=4, kv_heads=2, head_dim=8, tie=False, bias=True, qk_norm=False),
    "qwen3": dict(vocab=41, hidden=40, inter=64, layers=2, heads=4, kv_heads=2, head_dim=16, tie=False, bias=False, qk_norm=True),
}
LENGTHS = [9, 5, 13]


def fp32(x):
    """The constants that ops take in single precision."""
    return struct.unpack("f", struct.pack("f", x))[0]


EPS = fp32(1e-5)


def names(c):
    h, q, kv = c["hidden"], c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
    yield "model.embed_tokens.weight", (c["vocab"], h)
    for l in range(c["layers"]):
        p = f"model.layers.{l}."
        yield p + "input_layernorm.weight", (h,)
        for n, o in (("q", q), ("k", kv), ("v", kv)):
            yield p + f"self_attn.{n}_proj.weight", (o, h)
        if c["bias"]:
            for n, o in (("q", q), ("k", kv), ("v", kv)):
                yield p + f"self_attn.{n}_proj.bias", (o,)
        if c["qk_norm"]:
            yield p + "self_attn.q_norm.weight", (c["head_dim"],)
            yield p + "self_attn.k_norm.weight", (c["head_dim"],)
        yield p + "self_attn.o_proj.weight", (h, q)
        yield p + "post_attention_layernorm.weight", (h,)
        yield p + "mlp.gate_proj.weight", (c["inter"], h)
        yield p + "mlp.up_proj.weight", (c["inter"], h)
        yield p + "mlp.down_proj.weight", (h, c["inter"])
    yield "model.norm.weight", (h,)
    if not c["tie"]:
        yield "lm_head.weight", (c["vocab"], h)


def value(index, position):
    """In [-0.5, 0.5), rounded to a multiple of 2^-12: exact in every float format the tests use."""
    x = (index * 7919 + position * 104729 + (position * position) % 7907 * 31) % 4096
    return x / 4096 - 0.5


def rms_norm(x, w, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * w


def rotate(x, positions, theta):
    d = x.shape[-1]
    f = theta ** (-torch.arange(0, d, 2) / d)
    angle = positions[:, None] * f[None, :]
    cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(c, w, ids):
    t, d = len(ids), c["head_dim"]
    positions = torch.arange(t).double()
    x = w["model.embed_tokens.weight"][ids]
    mask = torch.full((t, t), -math.inf).triu(1)
    for l in range(c["layers"]):
        p = f"model.layers.{l}."
        n = rms_norm(x, w[p + "input_layernorm.weight"], EPS)

        def proj(name, heads):
            y = n @ w[p + f"self_attn.{name}_proj.weight"].T
            if c["bias"]:
                y = y + w[p + f"self_attn.{name}_proj.bias"]
            return y.view(t, heads, d)

        q, k, v = proj("q", c["heads"]), proj("k", c["kv_heads"]), proj("v", c["kv_heads"])
        if c["qk_norm"]:
            q = rms_norm(q, w[p + "self_attn.q_norm.weight"], EPS)
            k = rms_norm(k, w[p + "self_attn.k_norm.weight"], EPS)
        q, k = rotate(q, positions, 10000.0), rotate(k, positions, 10000.0)
        group = c["heads"] // c["kv_heads"]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        s = torch.einsum("ihd,jhd->hij", q, k) * fp32(1 / fp32(math.sqrt(d))) + mask
        o = torch.einsum("hij,jhd->ihd", s.softmax(-1), v).reshape(t, -1)
        x = x + o @ w[p + "self_attn.o_proj.weight"].T
        n = rms_norm(x, w[p + "post_attention_layernorm.weight"], EPS)
        g, u = n @ w[p + "mlp.gate_proj.weight"].T, n @ w[p + "mlp.up_proj.weight"].T
        x = x + (torch.nn.functional.silu(g) * u) @ w[p + "mlp.down_proj.weight"].T
    x = rms_norm(x, w["model.norm.weight"], EPS)
    head = w["model.embed_tokens.weight"] if c["tie"] else w["lm_head.weight"]
    return x @ head.T


out = {}
for family, c in CONFIGS.items():
    w = {}
    for index, (name, shape) in enumerate(names(c)):
        count = math.prod(shape)
        flat = torch.tensor([value(index, i) for i in range(count)])
        if "norm" in name:
            flat = flat + 1
        w[name] = flat.view(shape).requires_grad_()
    total, log_probs = 0, []
    for s, length in enumerate(LENGTHS):
        ids = torch.tensor([(s * 11 + i * i * 3 + i) % c["vocab"] for i in range(length)])
        lp = forward(c, w, ids).log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        log_probs += lp.tolist()
        total = total - lp.sum()
    loss = total / len(log_probs)
    loss.backward()
    gradients = {}
    for name, p in w.items():
        g = p.grad.flatten()
        stride = max(1, g.numel() // 12)
        gradients[name] = dict(norm=g.norm().item(), stride=stride, values=g[::stride].tolist())
    out[family] = dict(config=c, lengths=LENGTHS, loss=loss.item(), log_probs=log_probs, gradients=gradients)
print(json.dumps(out, indent=None))
