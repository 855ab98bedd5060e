"""ConvKNRM: a small re-ranker of n-gram convolutions and soft matches, in the shape of a CrossEncoder.

For n = 1 ... max_ngram the word vectors of query and document are convolved to n-gram vectors g, and for
every pair (n, n') (or n = n' alone, without crossmatch)

    M_qd = cos(g_q, g_d)     S_k(q) = sum_d exp(-(M_qd - mu_k)^2 / (2 sigma_k^2))
    phi_k = sum_q log(S_k(q) + 1e-6)     score = w . phi + b

with sums over real positions only. mu = -0.9, -0.7 ... 0.9 with sigma = 0.1, and mu = 1 with sigma = 0.001
for exact matches.

Source: Convolutional Neural Networks for Soft-Matching N-Grams in Ad-hoc Search, WSDM 2018 (no arXiv id), as
used in Training Curricula for Open Domain Answer Re-Ranking, SIGIR 2020, arXiv 2004.14269.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gradatim.models.kernel_pooling import kernel_pooling
from gradatim.models.principal_vectors import principal_word_vectors
from gradatim.models.ranker_files import read_ranker, write_ranker

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Activation = Literal["relu"]
Texts = Sequence[str]

_SMALL = 1e-6  # inside the logarithm


@dataclass(frozen=True)
class ConvKNRMConfig:
    """What shapes a ConvKNRM, apart from its word vectors."""

    filters: int = 128
    max_ngram: int = 3
    crossmatch: bool = True
    train_kernels: bool = True
    activation: Activation | None = None
    max_query_tokens: int = 40
    max_doc_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("filters", "max_ngram", "max_query_tokens", "max_doc_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.activation is not None and self.activation not in get_args(Activation):
            raise ValueError(f"activation={self.activation!r} is unknown; choose 'relu' or None")


@dataclass
class EvaluationLog:
    """What evaluators of sentence-transformers report to a model, kept as they reported it."""

    metrics: dict[str, float] = field(default_factory=dict)

    def set_evaluation_metrics(
        self, evaluator: object, metrics: Mapping[str, Any], epoch: int = 0, step: int = 0
    ) -> None:
        """Called by an evaluator."""
        self.metrics.update(metrics)


class ConvKNRM(nn.Module):
    """A re-ranker of a few thousand trained weights on fixed word vectors.

    It answers to what sentence-transformers' losses and re-ranking evaluator ask of a CrossEncoder:
    `preprocess`, `forward`, `predict`, `rank`, `device`, `num_labels`. `save_pretrained` and
    `from_pretrained` keep it as JSON, safetensors and the tokenizer's own files.

    Batches are padded to their longest text and pads take part in nothing, so that a score does not depend on
    the batch; texts that occur several times in a batch are convolved once. Kernels are pooled in float32
    under autocast.

    Args:
        tokenizer: a Hugging Face tokenizer; its unknown token is left out of texts.
        embeddings: word vectors by token id, never trained.
        filters: size of an n-gram vector.
        max_ngram: longest n-gram.
        crossmatch: compare n-grams of different n as well.
        train_kernels: train mu and sigma.
        activation: "relu" after the convolution, as in the original of 2018; None as in the code of the
            curriculum paper.
        max_query_tokens, max_doc_tokens: longer texts are cut.
        seed: of the initial weights (PyTorch's default distributions).

    Raises ValueError for sizes below 1, an unknown activation or word vectors that are no finite matrix. A
    query without a known token scores 0.
    """

    num_labels = 1

    def __init__(
        self,
        tokenizer: Any,
        embeddings: Float[Tensor, "vocabulary dim"],
        filters: int = 128,
        max_ngram: int = 3,
        crossmatch: bool = True,
        train_kernels: bool = True,
        activation: Activation | None = None,
        max_query_tokens: int = 40,
        max_doc_tokens: int = 512,
        seed: int = 42,
    ) -> None:
        super().__init__()
        if not bool(embeddings.isfinite().all()):
            raise ValueError("the word vectors hold values that are not finite")
        self.config = ConvKNRMConfig(
            filters, max_ngram, crossmatch, train_kernels, activation, max_query_tokens, max_doc_tokens
        )
        self.tokenizer = tokenizer
        self.model_card_data = EvaluationLog()
        self.activation_fn: Callable[[Tensor], Tensor] = _as_it_is
        self.embeddings: Tensor
        self.register_buffer("embeddings", embeddings.detach().clone().float())
        means = [*(round(-0.9 + 0.2 * i, 1) for i in range(10)), 1.0]
        self.mu = nn.Parameter(torch.tensor(means), requires_grad=train_kernels)
        self.sigma = nn.Parameter(torch.tensor([0.1] * 10 + [0.001]), requires_grad=train_kernels)
        grams = range(1, max_ngram + 1)
        self.matches = [(a, b) for a in grams for b in grams if crossmatch or a == b]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.convolutions = nn.ModuleList(nn.Conv1d(embeddings.shape[1], filters, n) for n in grams)
            self.output = nn.Linear(len(self.matches) * len(means), 1)
        self._tokens: dict[tuple[str, int], list[int]] = {}

    @classmethod
    def from_sentence_transformer(
        cls, model: SentenceTransformer | str, dim: int = 32, **options: Any
    ) -> ConvKNRM:
        """A ranker on an encoder's word-piece vectors, reduced to their `dim` principal directions.

        `model` is a SentenceTransformer or what `load_text_encoder` opens ("minilm", a folder, a name);
        `options` are those of the constructor. Raises ValueError if the encoder's vectors have fewer
        dimensions.
        """
        if isinstance(model, str):
            from gradatim.models.text_encoder import load_text_encoder

            model = load_text_encoder(model)
        transformer: Any = model[0]
        table = transformer.auto_model.get_input_embeddings().weight
        return cls(model.tokenizer, principal_word_vectors(table, dim), **options)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mu.device

    def preprocess(
        self, pairs: Sequence[Sequence[str]], prompt: str | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """Token ids of the distinct queries and documents of (query, document) pairs, and who is whose.

        `prompt` is put before each query.
        """
        queries, query_of = _distinct([(prompt or "") + query for query, _ in pairs])
        docs, doc_of = _distinct([doc for _, doc in pairs])
        query_ids, query_mask = self._ids(queries, self.config.max_query_tokens)
        doc_ids, doc_mask = self._ids(docs, self.config.max_doc_tokens)
        return {
            "query_ids": query_ids,
            "query_mask": query_mask,
            "query_of": query_of,
            "doc_ids": doc_ids,
            "doc_mask": doc_mask,
            "doc_of": doc_of,
        }

    def forward(self, features: Mapping[str, Any], **_: Any) -> dict[str, Tensor]:
        """`{"scores": (pairs,)}` of what `preprocess` made."""
        query_of, doc_of = features["query_of"], features["doc_of"]
        query_mask, doc_mask = features["query_mask"][query_of], features["doc_mask"][doc_of]
        queries = self.grams(features["query_ids"], features["query_mask"])
        docs = self.grams(features["doc_ids"], features["doc_mask"])
        with torch.autocast(self.device.type, enabled=False):
            # One matrix per pair of n-gram lengths: pairs x matches x query x document positions.
            similarity = torch.stack(
                [queries[a - 1][query_of] @ docs[b - 1][doc_of].mT for a, b in self.matches], dim=1
            )
            counts = kernel_pooling(
                similarity,
                doc_mask[:, None].expand(-1, len(self.matches), -1),
                self.mu.to(similarity.dtype),
                self.sigma.to(similarity.dtype),
            )
            logs = (counts + _SMALL).log().masked_fill(~query_mask[:, None, :, None], 0.0)
            weight, bias = self.output.weight, self.output.bias
            phi = logs.sum(dim=2).flatten(1).to(weight.dtype)
            scores = F.linear(phi, weight, bias).squeeze(1)
        return {"scores": torch.where(query_mask.any(dim=1), scores, 0.0)}

    def grams(
        self, ids: Int[Tensor, "texts positions"], mask: Bool[Tensor, "texts positions"]
    ) -> list[Float[Tensor, "texts positions filters"]]:
        """Unit n-gram vectors of every position, n = 1 ... max_ngram; beyond a text's end words are zeros."""
        words = (self.embeddings[ids] * mask.unsqueeze(-1)).to(self.output.weight.dtype).mT
        found = []
        for n, convolution in enumerate(self.convolutions, start=1):
            gram = convolution(F.pad(words, (0, n - 1))).mT
            if self.config.activation == "relu":
                gram = gram.relu()
            # Unit length in float32: with bfloat16's 8 bits an exact match would not look like one.
            exact = gram if gram.dtype == torch.float64 else gram.float()
            found.append(F.normalize(exact, dim=-1))
        return found

    @torch.inference_mode()
    def predict(
        self,
        inputs: Sequence[Any],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """Scores of (query, document) pairs, or of one pair; as CrossEncoder.predict gives them.

        `show_progress_bar` and `prompt_name` are accepted for its sake and do nothing.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        single = len(inputs) == 2 and all(isinstance(text, str) for text in inputs)
        pairs: list[Sequence[str]] = [tuple(inputs)] if single else list(inputs)
        # Alike lengths side by side: a batch is as wide as its longest text.
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][1]))
        scores = torch.zeros(len(pairs), device=self.device)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            features = self.preprocess([pairs[i] for i in rows], prompt=prompt)
            found = self({name: tensor.to(self.device) for name, tensor in features.items()})["scores"]
            scores[rows] = (activation_fn or self.activation_fn)(found.float())
        if convert_to_tensor:
            return scores[0] if single else scores
        if convert_to_numpy:
            return scores[0].cpu().numpy() if single else scores.cpu().numpy()
        return scores[0] if single else list(scores)

    def rank(
        self,
        query: str,
        documents: Texts,
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        prompt: str | None = None,
        **_: Any,
    ) -> list[dict[str, Any]]:
        """Documents by score, best first: corpus_id, score and, if asked for, text."""
        scores = self.predict([(query, doc) for doc in documents], batch_size, prompt=prompt)
        order = np.argsort(-scores, kind="stable")[:top_k]
        found: list[dict[str, Any]] = [{"corpus_id": int(i), "score": float(scores[i])} for i in order]
        if return_documents:
            for entry in found:
                entry["text"] = documents[entry["corpus_id"]]
        return found

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the weights (safetensors), the configuration (JSON) and the tokenizer into a folder."""
        write_ranker(Path(folder), asdict(self.config), self.state_dict(), self.tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> ConvKNRM:
        """Reads what `save_pretrained` wrote; raises ValueError, naming the file, for anything else."""
        options, tensors, tokenizer = read_ranker(Path(folder))
        try:
            model = cls(tokenizer, tensors["embeddings"], **options)
            model.load_state_dict(tensors)
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder} holds no ConvKNRM: {reason}") from error
        return model.to(device)

    def _ids(self, texts: Texts, most: int) -> tuple[Tensor, Tensor]:
        known = [self._tokenized(text, most) for text in texts]
        lengths = torch.tensor([len(ids) for ids in known])
        mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([i for row in known for i in row], dtype=torch.long)
        return ids, mask

    def _tokenized(self, text: str, most: int) -> list[int]:
        """Token ids, remembered: training sees a text many times and tokenizing costs as much as scoring."""
        found = self._tokens.get((text, most))
        if found is None:
            unknown = self.tokenizer.unk_token_id
            ids = self.tokenizer(text, add_special_tokens=False, truncation=True, max_length=most)[
                "input_ids"
            ]
            found = [i for i in ids if i != unknown]
            if len(self._tokens) >= _REMEMBERED:
                self._tokens.clear()
            self._tokens[text, most] = found
        return found


_REMEMBERED = 50_000


def _as_it_is(scores: Tensor) -> Tensor:
    return scores


def _distinct(texts: Texts) -> tuple[list[str], Int[Tensor, " texts"]]:
    row: dict[str, int] = {}
    of = torch.tensor([row.setdefault(text, len(row)) for text in texts], dtype=torch.long)
    return list(row), of
