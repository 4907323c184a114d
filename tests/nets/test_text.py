"""Text towers: recorded numbers, what fills a text up changes nothing, who sees what."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from eyespot.errors import UserError
from eyespot.losses.image_text import symmetric_contrast
from eyespot.nets.text import TextTransformer, VectorAttention, quick_gelu, text_tower

TOWERS = {
    "transformer": {"width": 16, "layers": 2, "heads": 2},
    "gru": {"width": 6, "heads": 2},
    "bag": {"width": 8},
}


def tensors(arrays, prefix):
    return {k[len(prefix) :]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}


@pytest.mark.golden
def test_attention_agrees_with_the_recorded_numbers(golden):
    arrays, p = golden("grounded_sentences__attention_pool")
    pooled = []
    for k in range(p["heads"]):
        head = VectorAttention(p["C"], p["hidden"])
        head.load_state_dict(tensors(arrays, f"head{k}."))
        pooled.append(head(torch.from_numpy(arrays["x"])))
    found = torch.cat(pooled, 1).detach()
    np.testing.assert_allclose(found, arrays["pooled"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(F.normalize(found, dim=1), arrays["embedding"], rtol=1e-5, atol=1e-5)


class QuickGELU(nn.Module):
    def forward(self, x):
        return quick_gelu(x)


def picture_tower(w, p):
    """CLIP's transformer for pictures, as timm builds it."""
    width, depth, heads = p["vision_width"], p["vision_layers"], p["vision_heads"]
    net = VisionTransformer(
        *(p["resolution"], p["patch"]),
        num_classes=0,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        pre_norm=p["pre_norm"],
        act_layer=QuickGELU,
        norm_layer=partial(nn.LayerNorm, eps=p["layernorm_eps"]),
    )
    state = {"cls_token": w["class_embedding"].view(1, 1, -1), "pos_embed": w["positional_embedding"][None]}
    state |= {"patch_embed.proj.weight": w["conv1.weight"]}
    for ours, theirs in (("norm_pre", "ln_pre"), ("norm", "ln_post")):
        state |= {f"{ours}.{k}": w[f"{theirs}.{k}"] for k in ("weight", "bias")}
    names = {"norm1.": "ln_1.", "norm2.": "ln_2.", "attn.qkv.": "attn.in_proj_", "attn.proj.": "attn.out_proj."}
    names |= {"mlp.fc1.": "mlp.c_fc.", "mlp.fc2.": "mlp.c_proj."}
    net.load_state_dict(state | blocks(w, names, "blocks", depth))
    return net


def text_part(w, p):
    net = TextTransformer(p["vocab"], p["context"], p["text_width"], p["text_layers"], p["text_heads"])
    names = {"norm1.": "ln_1.", "norm2.": "ln_2.", "qkv.": "attn.in_proj_", "proj.": "attn.out_proj."}
    names |= {"fc1.": "mlp.c_fc.", "fc2.": "mlp.c_proj."}
    state = {"embedding.weight": w["token_embedding.weight"], "positions": w["positional_embedding"]}
    state |= {f"norm.{k}": w[f"ln_final.{k}"] for k in ("weight", "bias")}
    net.load_state_dict(state | blocks(w, names, "blocks", p["text_layers"]))
    return net


def blocks(w, names, prefix, depth):
    return {
        f"{prefix}.{i}.{ours}{kind}": w[f"transformer.resblocks.{i}.{theirs}{kind}"]
        for i in range(depth)
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }


@pytest.mark.golden
def test_both_towers_agree_with_clips_recorded_numbers(golden):
    arrays, p = golden("clip__tiny_forward")
    w = tensors(arrays, "w.")
    images, tokens = (torch.from_numpy(arrays[k]) for k in ("image", "tokens"))
    vision = {k.removeprefix("visual."): v for k, v in w.items() if k.startswith("visual.")}
    with torch.no_grad():
        f = picture_tower(vision, p)(images) @ vision["proj"]
        length = tokens.argmax(1) + 1  # the end token has the largest id
        g = text_part(w, p)(tokens.long(), length) @ w["text_projection"]
        logits = w["logit_scale"].exp() * F.normalize(f, dim=1) @ F.normalize(g, dim=1).T
    for found, name in ((f, "image_features"), (g, "text_features"), (logits, "logits_per_image")):
        np.testing.assert_allclose(found, arrays[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert float(symmetric_contrast(logits)) == pytest.approx(float(arrays["loss"]), rel=1e-5)


def tower_of(name, vocab=20, context=12):
    torch.manual_seed(0)
    net = text_tower(name, vocab=vocab, context=context, **TOWERS[name]).double().eval()
    for parameter in net.parameters():  # a start with small numbers hides who sees what
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    return net


def texts(n=4, context=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 20, (n, context), generator=generator), torch.tensor([5, 12, 1, 8])[:n]


@pytest.mark.parametrize("name", TOWERS)
def test_filling_changes_nothing_and_every_token_counts(name):
    net = tower_of(name)
    tokens, length = texts()
    found = net(tokens, length)
    assert found.shape == (4, net.embed_dim)
    other = tokens.clone()
    other[0, 5:] = 0
    torch.testing.assert_close(net(other, length)[0], found[0])
    torch.testing.assert_close(net(tokens[:1], length[:1]), found[:1])  # whatever else is in the batch
    for place in range(5):
        other = tokens.clone()
        other[0, place] = other[0, place] % 19 + 1
        assert not torch.allclose(net(other, length)[0], found[0]), place


def test_a_place_of_the_transformer_sees_only_what_is_before_it():
    net = tower_of("transformer")
    tokens, length = texts()
    states = net.states(tokens, length)
    other = tokens.clone()
    other[:, 6] = other[:, 6] % 19 + 1
    changed = (net.states(other, length) - states).abs().amax(2) > 1e-9
    assert not changed[:, :6].any() and changed[:, 6:].all()


def test_order_matters_but_not_to_a_bag():
    tokens, length = texts(1)
    turned = tokens.clone()
    turned[0, :5] = tokens[0, :5].flip(0)
    for name in TOWERS:
        net = tower_of(name)
        assert torch.allclose(net(tokens, length), net(turned, length)) == (name == "bag")


def test_attention_of_one_state_or_of_equal_states_is_that_state():
    head = VectorAttention(5, 3).double()
    x = torch.randn(2, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(head(x), x[:, 0])
    torch.testing.assert_close(head(x.expand(-1, 7, -1)), x[:, 0])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    weights = head.weights(torch.randn(2, 3, 5, dtype=torch.float64), mask)
    assert float(weights[~mask].detach().abs().sum()) == 0
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 5, dtype=torch.float64))


def test_starts_as_clip_does():
    net = TextTransformer(2000, 50, 64, 3, 4)
    spread = {"embedding.weight": 0.02, "positions": 0.01, "blocks.0.qkv.weight": 64**-0.5}
    spread |= {"blocks.1.proj.weight": 64**-0.5 * 6**-0.5, "blocks.2.fc1.weight": 128**-0.5}
    named = dict(net.named_parameters())
    for name, std in spread.items():
        assert float(named[name].detach().std()) == pytest.approx(std, rel=0.05), name


def test_a_model_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(1)
    transformers.BertModel(config).save_pretrained(tmp_path / "weights")
    config.save_pretrained(tmp_path / "bare")
    net = text_tower(f"hf:{tmp_path / 'weights'}", vocab=30, context=12).eval()
    assert net.embed_dim == 16
    tokens, length = texts()
    found = net(tokens, length)
    other = tokens.clone()
    other[0, 5:] = 0
    torch.testing.assert_close(net(other, length)[0], found[0])
    again = text_tower(f"hf:{tmp_path / 'weights'}", vocab=30, context=12).eval()
    torch.testing.assert_close(again(tokens, length), found)
    assert text_tower(f"hf:{tmp_path / 'bare'}", vocab=30, context=12).embed_dim == 16
    found.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(UserError, match="No text model can be loaded"):
        text_tower(f"hf:{tmp_path / 'none'}", vocab=30, context=12)


def test_mistakes():
    with pytest.raises(UserError, match="did you mean 'transformer'"):
        text_tower("transformers", vocab=5, context=5)
    with pytest.raises(UserError, match="not a multiple of 3 heads"):
        text_tower("transformer", vocab=5, context=5, width=16, heads=3)
    with pytest.raises(UserError, match="12 tokens where 8 fit"):
        text_tower("transformer", vocab=20, context=8, width=8, heads=1)(*texts())
