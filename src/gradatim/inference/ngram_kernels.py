"""Compiled matching of search keys in documents: a trie of all keys, and the greedy choice of the best.

Keys are numbered by rank, best first; `key_begin[k] ... key_begin[k + 1]` are the tokens of key k.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

_MIX = 0x9E3779B97F4A7C15


@njit(cache=True, inline="always")
@no_type_check
def slot_of(nodes, tokens, mask, node, token):
    """Place of the edge (node, token) in the hash table, or the empty place where it belongs."""
    mixed = (np.uint64(node) * np.uint64(_MIX) + np.uint64(token)) * np.uint64(_MIX)
    slot = np.int64((mixed >> np.uint64(20)) & np.uint64(mask))
    while nodes[slot] >= 0 and (nodes[slot] != node or tokens[slot] != token):
        slot = (slot + 1) & mask
    return slot


@njit(cache=True)
@no_type_check
def build_trie(key_begin, key_token, numbers, roots, nodes, tokens, children, ends):
    """roots[token] is the node of a first token, or -1.

    Further edges (node, token) -> child are in open addressing; ends[node] is the number of the key that
    ends there, or -1.
    """
    mask = nodes.shape[0] - 1
    size = 0
    for key in range(key_begin.shape[0] - 1):
        first = key_token[key_begin[key]]
        if roots[first] < 0:
            roots[first] = size
            size += 1
        node = np.int64(roots[first])
        for at in range(key_begin[key] + 1, key_begin[key + 1]):
            slot = slot_of(nodes, tokens, mask, node, key_token[at])
            if nodes[slot] < 0:
                nodes[slot] = node
                tokens[slot] = key_token[at]
                children[slot] = size
                size += 1
            node = children[slot]
        ends[node] = numbers[key]


@njit(cache=True)
@no_type_check
def match(roots, nodes, tokens, children, ends, longest, doc_begin, doc_token, out_doc, out_key, out_place):
    """Every occurrence of every key: document, key and place. Returns how many there are in all.

    Those beyond the length of the outputs are only counted.
    """
    mask = nodes.shape[0] - 1
    found = 0
    for doc in range(doc_begin.shape[0] - 1):
        begin, end = doc_begin[doc], doc_begin[doc + 1]
        for place in range(begin, end):
            node = np.int64(roots[doc_token[place]])
            at = place
            while node >= 0:
                if ends[node] >= 0:
                    if found < out_doc.shape[0]:
                        out_doc[found] = doc
                        out_key[found] = ends[node]
                        out_place[found] = place - begin
                    found += 1
                at += 1
                if at >= end or at >= place + longest:
                    break
                slot = slot_of(nodes, tokens, mask, node, doc_token[at])
                node = children[slot] if nodes[slot] >= 0 else np.int64(-1)
    return found


@njit(cache=True)
@no_type_check
def put_boundaries(begin, tokens, out):
    """Documents of tokens + 1, each with 0 in front."""
    for doc in range(begin.shape[0] - 1):
        out[begin[doc] + doc] = 0
        for i in range(begin[doc], begin[doc + 1]):
            out[i + doc + 1] = tokens[i] + 1


@njit(cache=True)
@no_type_check
def choose(
    match_begin,
    match_key,
    match_place,
    key_length,
    set_begin,
    set_token,
    gain,
    beta,
    doc_begin,
    doc_token,
    unigram,
    base,
    used,
    stamp,
    counted,
    out_score,
    chosen_begin,
    chosen_key,
    chosen_gain,
):
    """Score of every document, and the keys chosen in it with what each added.

    Matches of a document are sorted by key, then place. An occurrence is taken where no better one lies; a
    key counts once, with gain * (1 - beta + beta * share of its tokens that no better chosen key has). Then
    each distinct token left free adds its unigram weight, less beta of it where a chosen key has the token.

    used[place], stamp[token] and counted[token] hold the last document in which the place was taken, the
    token was in a chosen key, the token was added. Documents are numbered from `base` there, so that the
    arrays serve many calls.
    """
    chosen = 0
    for row in range(match_begin.shape[0] - 1):
        doc = base + row
        chosen_begin[row] = chosen
        score = 0.0
        last = -1
        for at in range(match_begin[row], match_begin[row + 1]):
            key, place = match_key[at], match_place[at]
            free = True
            for i in range(place, place + key_length[key]):
                if used[i] == doc:
                    free = False
                    break
            if not free:
                continue
            for i in range(place, place + key_length[key]):
                used[i] = doc
            if key == last:
                continue
            last = key
            fresh = 0
            begin, end = set_begin[key], set_begin[key + 1]
            for i in range(begin, end):
                if stamp[set_token[i]] != doc:
                    fresh += 1
                    stamp[set_token[i]] = doc
            added = gain[key] * (1.0 - beta + beta * fresh / max(end - begin, 1))
            score += added
            chosen_key[chosen] = key
            chosen_gain[chosen] = added
            chosen += 1
        if doc_begin.shape[0] > 1:
            begin = doc_begin[row]
            for i in range(begin, doc_begin[row + 1]):
                token = doc_token[i]
                if unigram[token] > 0.0 and used[i - begin] != doc and counted[token] != doc:
                    counted[token] = doc
                    score += unigram[token] * (1.0 - beta if stamp[token] == doc else 1.0)
        out_score[row] = score
    chosen_begin[match_begin.shape[0] - 1] = chosen
