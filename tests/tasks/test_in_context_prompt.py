"""The prompt's text, what is cut and what never is, its file, and the collator that draws examples per
row."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradatim.tasks import (
    InContextCollator,
    InContextPrompt,
    classification_rows,
    clustering_rows,
    similarity_rows,
)
from tiny_encoder import tiny_encoder

EXAMPLES = (
    ("mean of a", "returns the mean"),
    ("sort a", "sorts an array"),
    ("norm of a", "computes the norm"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("model"))


def test_the_template_as_written():
    prompt = InContextPrompt("Find it.", EXAMPLES, k=2)
    assert prompt.format("read a file") == (
        "Instruct: Find it.\nQuery: mean of a\nResponse: returns the mean\n\n"
        "Instruct: Find it.\nQuery: sort a\nResponse: sorts an array\n\n"
        "Instruct: Find it.\nQuery: read a file"
    )
    assert InContextPrompt("Find it.", EXAMPLES, k=0).format("x") == "Instruct: Find it.\nQuery: x"
    assert prompt.as_st_prompts() == {"query": prompt.format(""), "document": ""}


texts = st.text(max_size=20)


@given(texts, st.lists(st.tuples(texts, texts), max_size=4), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_any_text_goes_in_as_it_is(query, examples, k):
    prompt = InContextPrompt("Find {query} and {passage}.", examples, k=k, max_example_tokens=100)
    shown = [e for e in examples if e[0] != query][:k]
    head = "Instruct: Find {query} and {passage}.\nQuery: "
    expected = "".join(f"{head}{q}\nResponse: {p}\n\n" for q, p in shown) + head + query
    if any("\0" in text for pair in examples for text in pair):
        return  # the one character that templates reserve
    assert prompt.format(query) == expected


def test_draws_follow_the_generator_and_leave_the_target_out():
    prompt = InContextPrompt("T.", [*EXAMPLES, ("mean of a", "again")], k=3)
    counts = np.zeros(4)
    orders = set()
    for seed in range(400):
        text = prompt.format("mean of a", np.random.default_rng(seed))
        assert text == prompt.format("mean of a", np.random.default_rng(seed))
        assert "returns the mean" not in text
        assert "again" not in text
        number = text.count("Response:")
        counts[number] += 1
        orders.add(text)
    # 0, 1 or 2 of the two others, evenly: 5 texts in all.
    assert counts[3] == 0
    assert counts[:3].min() > 400 / 3 - 50
    assert len(orders) == 5


def test_examples_are_cut_and_left_out_first_and_the_query_never(model):
    long = " ".join(["sort"] * 50)
    prompt = InContextPrompt(
        "mean", [("a", long), ("b", "wave")], k=2, max_example_tokens=5, tokenizer=model.tokenizer
    )
    assert prompt.format("norm").count("sort") == 5
    count = len(model.tokenizer(prompt.format("norm"))["input_ids"])
    assert prompt.format("norm", max_tokens=count) == prompt.format("norm")
    shorter = prompt.format("norm", max_tokens=count - 1)
    assert "sort" not in shorter
    assert "wave" in shorter
    assert shorter.endswith("Query: norm")
    bare = len(model.tokenizer(InContextPrompt("mean", k=0).format("norm"))["input_ids"])
    assert prompt.format("norm", max_tokens=bare).count("Response") == 0
    with pytest.raises(
        ValueError, match=f"need {bare} tokens and {bare - 1} are there: the query would be cut"
    ):
        prompt.format("norm", max_tokens=bare - 1)
    assert prompt.as_st_prompts(max_tokens=2 * count)["query"].count("Response") == 2
    with pytest.raises(ValueError, match="instruction need"):
        prompt.as_st_prompts(max_tokens=4)


def test_saved_and_read_again(tmp_path):
    prompt = InContextPrompt(
        "T é {x}", EXAMPLES, 1, "{task} {query}", "{passage}|{query}", 9, [("q", "p")] * 3
    )
    file = prompt.save(tmp_path)
    assert file.name == "in_context_prompt.json"
    assert InContextPrompt.load(tmp_path) == prompt == InContextPrompt.load(file)
    good = json.loads(file.read_text())
    for change in (
        {"task": 3},
        {"k": "2"},
        {"k": True},
        {"examples": [["a"]]},
        {"examples": "ab"},
        {"extra": 1},
        {"ids": [["a", 1]]},
    ):
        file.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match="holds no in-context prompt"):
            InContextPrompt.load(file)
    for text in ("", "[]", "{", "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match="holds no in-context prompt"):
            InContextPrompt.load(file)


def test_leaks_and_bad_fields_are_refused():
    prompt = InContextPrompt("T.", EXAMPLES, ids=[("q1", "d1"), ("q2", "d2"), ("q3", "d3")])
    prompt.check_leak(["q9", "other"], ["d9"])
    for queries, documents in ((["q2"], []), (["sort a"], []), ([], ["d2"]), ([], ["sorts an array"])):
        with pytest.raises(ValueError, match="example 1 holds"):
            prompt.check_leak(queries, documents)
    for fields, message in (
        ({"task": " "}, "task is empty"),
        ({"k": -1}, "k=-1"),
        ({"max_example_tokens": 0}, "max_example_tokens=0"),
        ({"template": "{query} {task}"}, "must end with"),
        ({"example_template": "{query}"}, "must hold"),
        ({"ids": [("a", "b")]}, "1 ids for 3 examples"),
    ):
        with pytest.raises(ValueError, match=message):
            InContextPrompt(**{"task": "T.", "examples": EXAMPLES, **fields})


# --- The collator ------------------------------------------------------------------------------------------


def rows():
    queries = ["a file read", "mean of a", "the norm of a matrix", "sort"]
    return [{"query": q, "doc_1": d, "doc_2": "wave", "label": [1, 0]} for q, d in zip(
        queries, ["write a file", "returns the mean", "computes", "sorts an array"], strict=True
    )]  # fmt: skip


def test_the_collator_prompts_each_row_and_counts_its_prompt(model):
    prompt = InContextPrompt("find", EXAMPLES, k=2)
    collator = InContextCollator(model.preprocess, in_context=prompt, seed=1, max_tokens=64)
    batch = collator(rows())
    again = InContextCollator(model.preprocess, in_context=prompt, seed=1, max_tokens=64)(rows())
    assert torch.equal(batch["query_input_ids"], again["query_input_ids"])
    assert batch["label"].tolist() == [[1, 0]] * 4
    assert "doc_1_prompt_length" not in batch
    words = model.tokenizer.convert_ids_to_tokens
    for i, row in enumerate(rows()):
        ids = batch["query_input_ids"][i][batch["query_attention_mask"][i].bool()].tolist()
        skip = int(batch["query_prompt_length"][i])
        query = model.tokenizer(row["query"])["input_ids"][1:]  # without [CLS]
        assert ids[skip:] == query, words(ids)
        # What is said about the row's own query or passage is not shown to it.
        shown = words(ids[:skip])
        if row["query"] == "mean of a":
            assert "returns" not in shown
    drawn = set()
    for epoch in range(12):
        collator.set_epoch(epoch)
        drawn.add(int(collator(rows())["query_attention_mask"][0].sum()))
    assert len(drawn) > 2


def test_a_rows_own_passage_is_never_shown_to_it(model):
    prompt = InContextPrompt("find", [("kernel", "write a file")], k=1)
    collator = InContextCollator(model.preprocess, in_context=prompt)
    written = model.tokenizer.convert_tokens_to_ids("write")
    seen = [
        (collator(rows())["query_input_ids"] == written).any(dim=1).tolist()
        for epoch in range(12)
        if collator.set_epoch(epoch) is None
    ]
    assert not any(row[0] for row in seen)  # its doc_1 is that passage
    assert any(row[1] for row in seen)


def test_the_collator_by_dataset_and_column(model):
    prompt = InContextPrompt("find", k=0)
    collator = InContextCollator(model.preprocess, in_context={"nq": prompt}, columns=("query", "doc_1"))
    named = [{"dataset_name": "nq", **row} for row in rows()]
    batch = collator(named)
    assert batch["dataset_name"] == "nq"
    assert {"query_prompt_length", "doc_1_prompt_length"} <= set(batch)
    other = collator([{**row, "dataset_name": "sts"} for row in named])
    assert "query_prompt_length" not in other
    assert other["query_input_ids"].shape[1] < batch["query_input_ids"].shape[1]
    assert collator([]) == {}
    with pytest.raises(ValueError, match="in_context is missing"):
        InContextCollator(model.preprocess)


# --- Other tasks as rows -----------------------------------------------------------------------------------


def test_classification_rows_take_other_labels_as_negatives():
    data = classification_rows(["x", "y", "z"], [0, 1, 0], {0: "zero", 1: "one", 2: "two"}, num_negatives=7)
    assert data["doc_1"] == ["zero", "one", "zero"]
    assert data["doc_2"] == ["one", "zero", "one"]
    assert data["label"][0] == [1, 0]
    with pytest.raises(ValueError, match="label 1 has no text"):
        classification_rows(["x", "y"], [0, 1], {0: "zero"})
    with pytest.raises(ValueError, match="one label"):
        classification_rows(["x", "y"], [0, 0])
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        classification_rows(["x", "y"], [0])


def test_clustering_rows_stay_in_and_out_of_the_cluster():
    texts = [f"{c}{i}" for c in "abc" for i in range(4)] + ["d0"]
    clusters = [t[0] for t in texts]
    data = clustering_rows(texts, clusters, num_negatives=3, seed=1)
    assert len(data) == 12
    for row in data:
        assert row["doc_1"][0] == row["query"][0]
        assert row["doc_1"] != row["query"]
        negatives = [row[f"doc_{i}"] for i in (2, 3, 4)]
        assert len(set(negatives)) == 3
        assert all(n[0] != row["query"][0] for n in negatives)
    with pytest.raises(ValueError, match="clusters"):
        clustering_rows(["a", "b"], [0, 1])


def test_similarity_rows_go_both_ways():
    data = similarity_rows(["a", "b", "a"], ["A", "B", "C"], [5.0, 1.0, 4.5], num_negatives=2)
    pairs = list(zip(data["query"], data["doc_1"], strict=True))
    assert pairs == [("a", "A"), ("A", "a"), ("a", "C"), ("C", "a")]
    for row in data:
        used = {row[f"doc_{i}"] for i, label in zip((1, 2, 3), row["label"], strict=True) if label == 0}
        assert not used & {"a", "A", "C"} or row["query"] != "a"
        assert row["query"] not in used
    with pytest.raises(ValueError, match="no pair scores"):
        similarity_rows(["a"], ["b"], [1.0])
