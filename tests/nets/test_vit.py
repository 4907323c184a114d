"""Vision transformers: every way through the tokens against the whole net or a slow rule."""

import pytest
import timm
import torch

from eyespot.errors import UserError
from eyespot.nets.backbones import backbone
from eyespot.nets.vit import gather_tokens, sincos_positions


@pytest.fixture(params=["vit_nano", "test_vit", "vit_nano_registers", "no_class_token"])
def vit(request):
    torch.manual_seed(0)
    options = {"vit_nano_registers": {"registers": 2}, "no_class_token": {"class_token": False}}.get(request.param, {})
    name = request.param if request.param == "test_vit" else "vit_nano"
    return backbone(name, image_size=32, **options).double().eval()


def pixels(*shape):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.golden
def test_positions_agree_with_the_recorded_ones(golden):
    arrays, _ = golden("masked_bases__losses")
    for name in [n for n in arrays if n.startswith("sincos_")]:
        dim, grid = (int(v) for v in name.split("_")[1:])
        expected = torch.from_numpy(arrays[name])
        made = sincos_positions(dim, grid, prefix=len(expected) - grid * grid)
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


def test_first_half_of_the_positions_is_the_column():
    table = sincos_positions(8, (2, 3), prefix=1)
    assert table.shape == (7, 8) and table[0].abs().sum() == 0
    cells = table[1:].view(2, 3, 8)
    torch.testing.assert_close(cells[0, :, :4], cells[1, :, :4])  # the same column in both rows
    torch.testing.assert_close(cells[:, 0, 4:], cells[:, 2, 4:])
    torch.testing.assert_close(cells[0, 2, 0], torch.tensor(2.0).sin())
    with pytest.raises(UserError, match="divisible by 4"):
        sincos_positions(6, 2)


def test_tokens_are_timms(vit):
    x = pixels(2, 3, 32, 32)
    torch.testing.assert_close(vit.tokens(x), vit.net.forward_features(vit.normalize(x)))


def test_native_pooling_is_timms():
    net = backbone("test_vit", image_size=160).eval()
    theirs = timm.create_model("test_vit", num_classes=0, img_size=160).eval()
    theirs.load_state_dict(net.net.state_dict())
    x = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(net(x), theirs(net.normalize(x)))


def test_average_pooling_is_the_mean_of_the_patches(vit):
    x = pixels(2, 3, 32, 32)
    vit.set_pooling("avg")
    torch.testing.assert_close(vit(x), vit.tokens(x)[:, vit.prefix :].mean(1))
    torch.testing.assert_close(vit.forward_dense(x).mean((2, 3)), vit(x))
    dense, tokens = vit.forward_dense(x), vit.tokens(x)
    torch.testing.assert_close(dense[:, :, 1, 0], tokens[:, vit.prefix + vit.grid])


def test_a_subset_is_the_whole_with_the_others_unseen(vit):
    x = pixels(3, 3, 32, 32)
    tokens = vit.grid**2
    keep = torch.stack([torch.randperm(tokens)[:3] if tokens > 4 else torch.randperm(tokens)[:2] for _ in range(3)])
    seen = torch.zeros(3, tokens, dtype=torch.bool).scatter(1, keep, True)
    seen = torch.cat([torch.ones(3, vit.prefix, dtype=torch.bool), seen], 1)
    whole = vit.tokens(x, attn_mask=seen[:, None, :].expand(-1, seen.shape[1], -1))
    subset = vit.tokens(x, keep=keep)
    assert subset.shape == (3, vit.prefix + keep.shape[1], vit.embed_dim)
    torch.testing.assert_close(subset[:, : vit.prefix], whole[:, : vit.prefix])
    torch.testing.assert_close(subset[:, vit.prefix :], gather_tokens(whole[:, vit.prefix :], keep))


def test_additive_mask_is_the_boolean_one(vit):
    x = pixels(2, 3, 32, 32)
    n = vit.prefix + vit.grid**2
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    added = torch.zeros(n, n).masked_fill(~causal, -torch.inf)
    by_bool = vit.tokens(x, attn_mask=causal)
    torch.testing.assert_close(vit.tokens(x, attn_mask=added), by_bool)
    heads = vit.net.blocks[0].attn.num_heads
    torch.testing.assert_close(vit.tokens(x, attn_mask=added.expand(2, heads, n, n)), by_bool)
    changed = x.clone()
    changed[:, :, -vit.patch :, -vit.patch :] += 1  # the last patch
    after = vit.tokens(changed, attn_mask=causal)
    torch.testing.assert_close(after[:, :-1], by_bool[:, :-1])
    assert (after[:, -1] - by_bool[:, -1]).abs().max() > 1e-6


def test_mask_token_replaces_content_but_not_position(vit):
    token = pixels(vit.embed_dim)
    a, b = pixels(2, 3, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.float64)
    everywhere = torch.ones(2, vit.grid**2, dtype=torch.bool)
    hidden = vit.embed_patches(a, replace=(everywhere, token))
    torch.testing.assert_close(hidden, vit.embed_patches(b, replace=(everywhere, token)))
    positions = vit.positions(vit.grid, vit.grid)[1]
    torch.testing.assert_close(hidden, (token + positions).expand_as(hidden))
    one = torch.zeros_like(everywhere)
    one[:, 1] = True
    torch.testing.assert_close(vit.embed_patches(a, (one, token))[:, [0]], vit.embed_patches(a)[:, [0]])
    torch.testing.assert_close(vit.tokens(a, replace=(one, token)), vit.run(vit.embed_patches(a, (one, token))))


def test_attention_explains_the_block(vit):
    x = pixels(2, 3, 32, 32)
    for layer in (0, -1):
        maps = vit.attention(x, layer)
        n = vit.prefix + vit.grid**2
        assert maps.shape == (2, vit.net.blocks[0].attn.num_heads, n, n)
        torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
        caught = []
        block = vit.net.blocks[layer]
        hooks = [
            block.attn.register_forward_hook(lambda m, i, o, c=caught: c.append((i[0], o))),
        ]
        vit(x)
        hooks[0].remove()
        inside, out = caught[0]
        value = block.attn.qkv(inside).chunk(3, -1)[2].unflatten(-1, (maps.shape[1], -1)).transpose(1, 2)
        torch.testing.assert_close(block.attn.proj((maps @ value).transpose(1, 2).flatten(2)), out)


def test_intermediate_maps(vit):
    x = pixels(1, 3, 32, 32)
    states = vit.intermediate(x, 2)
    assert len(states) == 2
    torch.testing.assert_close(states[-1], vit.tokens(x))
    torch.testing.assert_close(vit.intermediate(x, [len(vit.net.blocks) - 2])[0], states[0])
    raw = vit.intermediate(x, 1, norm=False)[0]
    torch.testing.assert_close(vit.net.norm(raw), states[-1])


def test_other_sizes_and_shapes(vit):
    x = pixels(1, 3, 2 * vit.patch, 4 * vit.patch)
    assert vit.forward_dense(x).shape == (1, vit.embed_dim, 2, 4)
    assert vit(x).shape == (1, vit.embed_dim)
    with pytest.raises(UserError, match="not a multiple of the patch"):
        vit(pixels(1, 3, 32, 33))


def test_frozen_positions_are_not_trained_but_learned_ones_are():
    assert not backbone("vit_nano", image_size=32).net.pos_embed.requires_grad
    learned = backbone("vit_nano", image_size=32, positions="learned")
    learned(torch.rand(1, 3, 32, 32)).sum().backward()
    assert learned.net.pos_embed.grad is not None
    names = [n for n, p in backbone("vit_nano", image_size=32).named_parameters() if not p.requires_grad]
    assert names == ["net.pos_embed"]


def test_patch_follows_the_picture_size():
    assert [backbone("vit_nano", image_size=s).patch for s in (32, 64, 96, 224)] == [4, 4, 8, 16]
    assert backbone("vit_nano", image_size=224, patch=32).grid == 7


def test_attention_pooling_gives_way_to_the_mean():
    net = backbone("vit_base_patch16_siglip_224", image_size=32, depth=1, embed_dim=48, num_heads=2)
    assert net(torch.rand(1, 3, 32, 32)).shape == (1, 48)
    net.set_pooling("avg")
    net(torch.rand(1, 3, 32, 32)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
