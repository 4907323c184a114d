"""Tokenizers: CLIP's recorded ids, learned byte pairs against a slow version, any script, cutting and filling."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eyespot.errors import UserError
from eyespot.nets.tokenizers import (
    CLIP_MERGES,
    BytePairs,
    cleaned,
    clip_merges,
    clip_order,
    clip_tokenizer,
    joined,
    learn_merges,
    split_words,
    tokenizer,
)

TEXTS = [
    "the red barn",
    "the red boat and the red barn",
    "Ein rotes Boot.",
    "một con thuyền đỏ",
    "红色的船 红色 42",
    "the there",
]
ENTRIES = Path(__file__).parent / "clip_merges.json"


def clip_of(texts):
    """CLIP's tokenizer: whole where the package that has its merges is installed, else with the entries that can occur
    in the texts recorded in tests/golden."""
    if importlib.util.find_spec("open_clip") is not None:
        return clip_tokenizer()
    kept = json.loads(ENTRIES.read_text(encoding="utf-8"))
    if os.environ.get("EYESPOT_GOLDEN") and not {w for t in texts for w in split_words(cleaned(t))} <= set(
        kept["words"]
    ):
        pytest.skip("other texts than those in tests/golden need CLIP's merges: install open-clip-torch")
    entries = [kept["merges"].get(str(r)) for r in range(CLIP_MERGES)]
    return BytePairs(clip_merges(entries), clip_order())


@pytest.mark.golden
def test_agrees_with_clips_recorded_ids(golden):
    arrays, p = golden("clip__bpe_tokens")
    clip = clip_of(p["texts"])
    found = clip(p["texts"], p["context_length"])
    np.testing.assert_array_equal(found["tokens"], arrays["token_ids"])
    np.testing.assert_array_equal(found["length"], arrays["lengths"])
    assert (clip.start, clip.end, clip.pad, clip.vocab) == (p["start_id"], p["end_id"], p["pad_id"], p["vocab_size"])
    assert [clip.decode(clip.encode(text)) for text in p["texts"]] == p["decoded"]


def test_reads_the_file_as_clip_writes_it(tmp_path):
    lines = ["#version: 0.2", "t h", "th e</w>", *["a b"] * (CLIP_MERGES - 2), "too many", ""]
    for name, data in (("m.txt", "\n".join(lines).encode()), ("m.txt.gz", gzip.compress("\n".join(lines).encode()))):
        (tmp_path / name).write_bytes(data)
        found = tokenizer(f"clip:{tmp_path / name}")
        assert found.vocab == 49408 and found.encode("THE")[1:-1] == [513]
    (tmp_path / "bad.txt").write_text("#version\nqq zz\n")
    for name in ("bad.txt", "none.txt"):
        with pytest.raises(UserError, match=name):
            tokenizer(f"clip:{tmp_path / name}")


def slow_merges(texts, merges):
    """Counts all pairs anew before every merge."""
    plain = BytePairs()
    spelled = [plain.letters(w) for t in texts for w in split_words(cleaned(t))]
    learned = []
    while len(learned) < merges:
        pairs = Counter(p for ids in spelled for p in pairwise(ids))
        best = max(pairs.items(), key=lambda i: (i[1], -i[0][0], -i[0][1]), default=(None, 0))
        if best[1] < 2:
            break
        spelled = [joined(ids, best[0], 512 + len(learned)) for ids in spelled]
        learned.append(best[0])
    return learned


@given(st.lists(st.text("abc .", max_size=12), max_size=8), st.integers(0, 20))
def test_merges_equal_a_slow_version(texts, most):
    assert [tuple(p) for p in learn_merges(texts, most).tolist()] == slow_merges(texts, most)


def test_merges_do_not_depend_on_the_order_of_the_texts():
    assert torch.equal(learn_merges(TEXTS, 30), learn_merges(TEXTS[::-1], 30))


def test_learned_pairs_shorten_and_keep_the_text():
    plain, learned = tokenizer("pairs", 600), tokenizer("pairs", 600, learn_merges(TEXTS, 600 - 514))
    assert plain.vocab == learned.vocab == 600
    for text in TEXTS:
        a, b = plain.encode(text), learned.encode(text)
        assert len(b) < len(a) and max(b) < 600
        assert plain.decode(a) == learned.decode(b) == " ".join(split_words(cleaned(text))) + " "
    assert len(learned.encode("the")) == 3


@given(st.text(max_size=30))
def test_any_text_comes_back(text):
    for name, kept in (("pairs", "".join(split_words(cleaned(text)))), ("bytes", text)):
        found = tokenizer(name)
        ids = found.encode(text)
        assert all(0 <= i < found.vocab for i in ids)
        back = found.decode(ids)
        assert (back if name == "bytes" else back.replace(" ", "")) == kept


@given(st.text("ab's tremvl.,!1²½é́ 漢'd", max_size=14))
def test_words_are_those_of_clips_pattern(text):
    regex = pytest.importorskip("regex")
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    assert split_words(cleaned(text)) == regex.findall(pattern, cleaned(text))


def test_cleaning():
    assert cleaned("  A &amp;amp;  B\n&lt;C&gt; ") == "a & b <c>"
    assert cleaned("e\u0301") == "\u00e9"


def test_filled_up_and_cut_with_the_end_kept():
    found = tokenizer("pairs")
    both = found(["ab", "a long text that is cut"], 8)
    assert both["tokens"].shape == (2, 8) and both["length"].tolist() == [4, 8]
    assert both["tokens"][0].tolist()[4:] == [0] * 4
    assert both["tokens"][range(2), both["length"] - 1].tolist() == [found.end] * 2
    assert tokenizer("bytes")(["", "abc"], 2)["length"].tolist() == [1, 2]


def test_characters_are_pythons_printable_ones():
    import string

    found = tokenizer("printable")
    assert found.encode(string.printable) == list(range(1, 101)) and found.vocab == 101
    assert found.decode(found.encode("aé漢b")) == "ab"


def test_hugging_face_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[PAD]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "b": 4}, "[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing("$A [SEP]", special_tokens=[("[SEP]", 1)])
    names = {"pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(tmp_path)
    found = tokenizer(f"hf:{tmp_path}")
    assert found.encode("a b z") == [3, 4, 2, 1] and found.vocab == 5 and set(found.special) == {0, 1, 2}
    assert found(["a b z", "a"], 3)["tokens"].tolist() == [[3, 4, 1], [3, 1, 0]]
    with pytest.raises(UserError, match="No tokenizer can be loaded"):
        tokenizer(f"hf:{tmp_path / 'none'}")


def test_mistakes():
    with pytest.raises(UserError, match="did you mean 'pairs'"):
        tokenizer("pair")
    with pytest.raises(UserError, match="vocab=500"):
        tokenizer("pairs", 500)
    with pytest.raises(UserError, match="do not fit"):
        tokenizer("pairs", 514, [(1, 2)])
