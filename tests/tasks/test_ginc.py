"""The language is what the formulas say: exact next tokens and likelihoods against sums over hidden walks."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from gradatim.tasks.ginc import DELIMITER, GINC

SMALL = {"concepts": 3, "values": 3, "slots": 3, "symbols": 5, "permutations": 4}


def walks(language, tokens, concept, slot):
    """Joint probability of the tokens and of each token after them, summed over all hidden walks."""
    seen, following = 0.0, torch.zeros(language.symbols, dtype=torch.float64)
    states = list(product(range(3), range(3)))
    for path in product(states, repeat=len(tokens) + 1):
        if path[0][1] != slot or any(
            language.emission[v, s] != t for (v, s), t in zip(path[:-1], tokens, strict=True)
        ):
            continue
        p = 1 / 3
        for (v, s), (w, t) in pairwise(path):
            p *= float(language.value_transition[v, w] * language.slot_transition[concept, s, t])
        following[language.emission[path[-1]]] += p
        seen += p
    return seen, following


def test_next_token_and_likelihood_are_sums_over_walks():
    language = GINC(1, **SMALL)
    g = torch.Generator().manual_seed(0)
    p = language.prompts(4, 0, 4, generator=g)
    found = language.next_token(p.tokens, p.concepts, p.slots)
    likely = language.log_likelihood(p.tokens, p.slots)
    for i in range(4):
        seen, following = walks(language, p.tokens[i].tolist(), int(p.concepts[i]), int(p.slots[i]))
        torch.testing.assert_close(found[i], following / seen)
        assert int(p.answers[i]) == int(following.argmax())
        for c in range(3):
            other, _ = walks(language, p.tokens[i].tolist(), c, int(p.slots[i]))
            assert float(likely[i, c].exp()) == pytest.approx(other, abs=1e-12)


def test_transitions_are_mixtures_of_permutations_and_mostly_stay():
    language = GINC(0)
    for matrix in (*language.slot_transition, language.value_transition):
        torch.testing.assert_close(matrix.sum(0), torch.ones(10, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(matrix.sum(1), torch.ones(10, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (language.value_transition.diagonal() >= 0.9 - 1e-6).all()
    assert (language.emission[:, 0] == DELIMITER).all()
    assert (language.emission[:, 1:] != DELIMITER).all()


def test_documents_follow_their_concepts():
    language = GINC(2, **SMALL)
    tokens, concepts = language.documents(300, 200, generator=torch.Generator().manual_seed(0))
    share = (tokens == DELIMITER).double().mean()
    assert float(share) == pytest.approx(1 / 3, abs=0.02)  # mixtures of permutations leave slots uniform
    after = tokens[:, 1:][tokens[:, :-1] == DELIMITER]
    stays = language.slot_transition[concepts][:, 0, 0].mean()
    assert float((after == DELIMITER).double().mean()) == pytest.approx(float(stays), abs=0.03)


def test_prompts_are_examples_between_delimiters():
    language = GINC(0)
    p = language.prompts(50, 3, 5, generator=torch.Generator().manual_seed(1))
    assert p.tokens.shape == (50, 3 * 6 + 4)
    assert (p.tokens[:, [5, 11, 17]] == DELIMITER).all()
    first = language.emission[:, p.slots].T
    for start in (0, 6, 12, 18):
        assert (p.tokens[:, start, None] == first).any(1).all()  # every example begins in the prompt's slot
    again = language.prompts(50, 3, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(p.tokens, again.tokens)
    assert (language.next_token(p.tokens[:, 18:], p.concepts, p.slots).argmax(-1) == p.answers).all()


def test_examples_tell_the_concept():
    language = GINC(0)
    p = language.prompts(100, 8, 10, generator=torch.Generator().manual_seed(2))
    whole = sum(language.log_likelihood(p.tokens[:, 11 * i : 11 * i + 10], p.slots) for i in range(8))
    assert float((whole.argmax(-1) == p.concepts).double().mean()) > 0.9


def test_misuse():
    with pytest.raises(ValueError, match="at least two values"):
        GINC(values=1)
    with pytest.raises(ValueError, match="mixing weight"):
        GINC(mixing=1.5)
    with pytest.raises(ValueError, match="2 tokens"):
        GINC().prompts(1, 0, 1)
