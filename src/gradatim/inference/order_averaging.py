"""Decoding that depends on no order of the demonstrations: log-probabilities averaged over orders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from gradatim.inference.in_context_text import InContextPredictor, Texts, log_average, orders
from gradatim.inference.next_token import encode, next_token_logits


class OrderAveragedLogits(LogitsProcessor):
    """For `generate`: scores of the next token become the mean of its log-probabilities over orders.

    The sequence being generated begins with a prompt of `question` alone; each order's prompt is its
    demonstrations, that question, and what has been generated so far.

        average = OrderAveragedLogits(icl, X_demo, y_demo, text, n_orders=10)
        model.generate(**tokenizer(icl.template.question(text), return_tensors="pt"),
                       logits_processor=LogitsProcessorList([average]))

    Args:
        predictor: gives model, tokenizer and template; it is not fitted here.
        X, y: the demonstrations.
        text: the question that `generate` is asked.
        n_orders: how many orders, drawn uniformly without repetition, all of them where there are no more.

    Raises ValueError where the sequences do not begin with the question's tokens.
    """

    def __init__(
        self, predictor: InContextPredictor, X: Texts, y: Texts, text: str, n_orders: int = 10, seed: int = 0
    ) -> None:
        self.model, tokenizer = predictor.model, predictor.tokenizer
        self.batch_size = predictor.batch_size
        self.question = encode(tokenizer, predictor.template.question(text))
        self.prompts = [
            encode(tokenizer, predictor.template.prompt(predictor._demonstrations(X, y, order), text))
            for order in orders(len(X), n_orders, seed)
        ]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Averaged log-probabilities [sequences, vocabulary], in place of the scores."""
        start = len(self.question)
        rows = input_ids.tolist()
        if any(row[:start] != self.question for row in rows):
            raise ValueError("sequences must begin with the question alone, without padding")
        prompts = [prompt + row[start:] for prompt in self.prompts for row in rows]
        logits = next_token_logits(self.model, prompts, batch_size=self.batch_size)
        averaged: Tensor = log_average(logits.unflatten(0, (len(self.prompts), len(rows))))
        # Tokens that another processor has ruled out stay ruled out.
        return torch.where(scores.isinf() & (scores < 0), scores, averaged.to(scores.dtype))
