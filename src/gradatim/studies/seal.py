"""Paper 13: search by generating n-grams of the corpus, and scoring documents by those it holds.

Bevilacqua, Ottaviano, Lewis, Yih and Riedel, Petroni, "Autoregressive Search Engines: Generating Substrings
as Document Identifiers", NeurIPS 2022, arXiv 2204.10628.

Quick: a world in which queries and documents share few words, a small generator trained in it, every way of
scoring, and BM25. Standard: also the docstrings of installed packages, with a pretrained model of which the
last layers are trained. Paper: a folder in BEIR layout and a BART, for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from gradatim.bench import (
    Arm,
    Claim,
    Contrast,
    Control,
    Level,
    Outcome,
    Paper,
    Profile,
    Results,
    Scale,
    Study,
)
from gradatim.studies.seal_figures import FIGURES
from gradatim.studies.seal_text import text_generator_trial, text_lexical_trial
from gradatim.studies.seal_world import generator_trial, lexical_trial


def trial(arm: Arm, seed: int, scale: Scale) -> Outcome:
    """Rank documents in the arm's way; a generator's keys are scored in every way at once."""
    kind = arm.settings["kind"]
    if kind == "generator":
        return generator_trial(arm.settings, seed, scale)
    if kind == "bm25":
        return lexical_trial(arm.settings, seed, scale)
    if kind == "text generator":
        return text_generator_trial(arm.settings, seed, scale)
    return text_lexical_trial(seed, scale)


def data_version(scale: Scale) -> str:
    """The world is generated; the docstrings are a function of three packages' versions."""
    if "text" not in scale:
        return ""
    return "; ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn"))


WORLD_ARMS = (
    Arm("seal", {"kind": "generator", "trained": True}, label="SEAL"),
    Arm("seal/untrained", {"kind": "generator", "trained": False}, "SEAL, untrained", role="control"),
    Arm("bm25", {"kind": "bm25", "translated": False}, "BM25", role="baseline"),
    Arm("bm25/translated", {"kind": "bm25", "translated": True}, "BM25, query translated", role="control"),
)
TEXT_ARMS = (
    Arm("text/seal", {"kind": "text generator", "trained": True}, "SEAL, fine-tuned"),
    Arm("text/zero-shot", {"kind": "text generator", "trained": False}, "SEAL, zero-shot", role="control"),
    Arm("text/bm25", {"kind": "text bm25"}, "BM25", role="baseline"),
)


@dataclass(frozen=True)
class Between:
    """By how much a metric of one arm is above a metric of another (or the same), seed by seed."""

    arm: str
    metric: str
    other: str
    other_metric: str

    def __call__(self, results: Results) -> Mapping[int, float]:
        ours, theirs = results.metric(self.arm, self.metric), results.metric(self.other, self.other_metric)
        return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


@dataclass(frozen=True)
class MoreGained:
    """By how much more a metric is above another in one arm than in a second arm, seed by seed."""

    metric: str
    other_metric: str
    arm: str
    beside: str

    def __call__(self, results: Results) -> Mapping[int, float]:
        gain, plain = (
            Between(arm, self.metric, arm, self.other_metric)(results) for arm in (self.arm, self.beside)
        )
        return {seed: gain[seed] - plain[seed] for seed in gain if seed in plain}


def _over(other: str, arm: str = "seal", ours: str = "intersective") -> Between:
    return Between(arm, f"mrr/{ours}", arm, f"mrr/{other}")


UNIT = "MRR"
TEXT = ("standard", "paper")
CLAIMS = (
    Claim(
        id="beats-bm25",
        statement="a trained generator beats BM25 where the words of query and document differ",
        effect=Contrast("seal", "bm25", "mrr"),
        control=Control(
            "it only translates: BM25 given the translated query would find as much",
            Contrast("seal", "bm25/translated", "mrr"),
        ),
        unit=UNIT,
        paper_says="at least 10 points of R-precision over BM25 and DPR on KILT passages; above BM25 and "
        "near DPR on Natural Questions",
    ),
    Claim(
        id="beats-one-key",
        statement="many keys (intersective) beat the single best key by weight (LM+FM)",
        effect=_over("lm+fm"),
        control=Control("any sum of keys would, also without the cover factor (beta = 0)", _over("beta=0")),
        unit=UNIT,
        paper_says="intersective scoring far above LM+FM on Natural Questions",
    ),
    Claim(
        id="cover",
        statement="damping keys that repeat better ones (beta = 0.8) beats adding them up (beta = 0)",
        effect=_over("beta=0"),
        control=Control(
            "it helps with any keys, also those of an untrained generator: what it adds beyond that",
            MoreGained("mrr/intersective", "mrr/beta=0", "seal", "seal/untrained"),
        ),
        unit=UNIT,
        paper_says="beta = 0.8 by default, chosen on development data",
    ),
    Claim(
        id="alpha",
        statement="squaring the weights (alpha = 2) beats plain weights (alpha = 1)",
        effect=_over("alpha=1"),
        control=Control("the best key alone would do, as alpha grows without end", _over("lm+fm")),
        unit=UNIT,
        paper_says="alpha = 2 by default, chosen on development data",
    ),
    Claim(
        id="frequency",
        statement="weighing the best key against its frequency (LM+FM) beats its probability alone (LM)",
        effect=_over("lm", ours="lm+fm"),
        control=Control(
            "it is the keys of every length that help: against LM with those",
            _over("lm, all lengths", ours="lm+fm"),
        ),
        unit=UNIT,
        paper_says="LM below LM+FM on Natural Questions",
    ),
    Claim(
        id="valid",
        statement="under the constraint every generated n-gram is in the corpus; without it many are not",
        effect=Between("seal", "valid", "seal", "valid unconstrained"),
        control=Control(
            "a trained generator would stay in the corpus by itself (19 of 20 n-grams)",
            Level("seal", "valid unconstrained", bound=0.95, better="lower"),
        ),
        unit="share of 5-grams in the corpus",
        paper_says="the index makes every generated n-gram an identifier of some document",
    ),
    Claim(
        id="untrained",
        statement="without training the same machinery is below BM25",
        effect=Contrast("bm25", "seal/untrained", "mrr"),
        control=Control(
            "nothing of the kind could find these documents: trained minus untrained",
            Contrast("seal", "seal/untrained", "mrr"),
        ),
        unit=UNIT,
        paper_says="not in the paper, which always trains",
    ),
    Claim(
        id="text-order",
        statement="on docstrings intersective scoring is above LM+FM",
        effect=_over("lm+fm", "text/seal"),
        control=Control(
            "the pretrained model does it: fine-tuned minus zero-shot",
            Contrast("text/seal", "text/zero-shot", "mrr"),
        ),
        unit=UNIT,
        paper_says="LM < LM+FM < intersective",
        profiles=TEXT,
    ),
    Claim(
        id="text-bm25",
        statement="on text a fine-tuned generator beats BM25",
        effect=Contrast("text/seal", "text/bm25", "mrr"),
        control=Control(
            "together they find more than the generator alone, by reciprocal rank fusion",
            Between("text/seal", "mrr/fusion with bm25", "text/bm25", "mrr"),
        ),
        unit=UNIT,
        paper_says="above BM25 on Natural Questions and KILT",
        profiles=TEXT,
    ),
)

_SCALE: dict[str, Any] = {
    "documents": 1500,
    "shared": 0.3,
    "queries": 80,
    "looked_at": 40,
    "looks": 5,
    "beams": 10,
    "steps": 1200,
    "batch": 64,
    "lr": 5e-3,
    "gate": 2.2,
}
_DOCSTRINGS: dict[str, Any] = {
    "source": "docstrings",
    "model": "smollm2",
    "zero_shot_prompt": "Summary: {query}\nThe documentation continues:",
    "queries": 100,
    "beams": 8,
    "ngram": 8,
    "layers": 6,
    "steps": 200,
    "batch": 16,
    "lr": 3e-4,
    "clip": 1.0,
    "spans": 10,
    "max_source": 48,
    "label_smoothing": 0.1,
    "precision": "bf16",
}
_BART: dict[str, Any] = {
    **_DOCSTRINGS,
    "source": "beir",
    "model": "facebook/bart-large",
    "queries": 10**6,
    "beams": 15,
    "ngram": 10,
    "layers": 0,
    "steps": 800_000,
    "batch": 128,
    "lr": 3e-5,
    "clip": 0.1,
    "max_source": 256,
}

SNIPPET = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gradatim.inference import SubstringLogitsProcessor, TokenIndex

texts = ["random numbers are drawn with a seed", "the nearest neighbours of a point are found with a tree"]
tokenizer = lambda text: list(text.encode())  # any tokenizer; this one gives bytes
index = TokenIndex.from_texts(texts, tokenizer, vocab_size=257)

# Any model with `generate`; this one knows nothing, and still writes only what stands in the texts.
torch.manual_seed(0)
config = GPT2Config(vocab_size=257, n_embd=32, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
model = GPT2LMHeadModel(config).eval()
prompt = torch.tensor([tokenizer("where is a point?")])
out = model.generate(
    prompt,
    attention_mask=torch.ones_like(prompt),
    logits_processor=[SubstringLogitsProcessor(index, prompt_length=prompt.shape[1], eos_token_id=256)],
    num_beams=4,
    max_new_tokens=12,
    eos_token_id=256,
    pad_token_id=256,
)
written = bytes(t for t in out[0, prompt.shape[1] :].tolist() if t < 256).decode()
print(repr(written), index.count(tokenizer(written)))

# Search, with a model that was trained on `gradatim.tasks.SpanPairs`:
#   from gradatim.inference import SEALRetriever
#   retriever = SEALRetriever(model, tokenizer).fit(texts, ids=names)
#   retriever.search(["how are random numbers drawn?"], k=10)
"""

PLAIN = """
Instead of comparing a question with documents, a language model *writes* pieces of text that it expects in
the answer. It may write only what occurs in the corpus: an index over all suffixes of the text says at every
step which tokens can follow. Each n-gram it considered is a **key**: it names the documents that hold it, and
it weighs the more, the likelier the model finds it for the question and the rarer it is in the corpus.
A document's score adds its keys, without overlaps, and damps keys that repeat better ones (*intersective*).

Here documents say a concept by a phrase and queries by another word, so that word matching fails by
construction. A small generator learns the correspondence from other documents of the same world.
"""

NOTES = """
The world is built so that BM25 fails: that SEAL beats it here says that the machinery works, not that it
would on your text. BM25 with the query translated into the documents' words shows what word matching could do
without the mismatch. **Without training SEAL loses to BM25**, here and on real text (standard profile). One
trial trains one generator and scores its keys in every way, so that ways of scoring are compared on the
same keys. Trials whose training loss stays above the gate fail rather than speak for or against the method.
LM scoring uses complete n-grams only: a shorter key is always more probable than a longer one with the same
beginning. In this world no single key names a document, so that both rankings by the best key stand near
zero: their order says little, and the standard profile's on text says more.
"""

study = Study(
    number=13,
    slug="seal",
    title="Autoregressive search engines: n-grams as document identifiers",
    paper=Paper(
        "Autoregressive Search Engines: Generating Substrings as Document Identifiers",
        "Bevilacqua, Ottaviano, Lewis, Yih, Riedel, Petroni",
        2022,
        "2204.10628",
    ),
    plain=PLAIN,
    snippet=SNIPPET,
    notes=NOTES,
    rooms=("inference", "tasks", "models"),
    arms=(*WORLD_ARMS, *TEXT_ARMS),
    claims=CLAIMS,
    trial=trial,
    data=data_version,
    figures=FIGURES,
    headline=(("mrr", "higher"), ("hits@1", "higher"), ("hits@10", "higher")),
    profiles={
        "quick": Profile(
            seeds=5, scale=_SCALE, core_seconds=135, arms=tuple(arm.name for arm in WORLD_ARMS), batch=1
        ),
        "standard": Profile(
            seeds=3,
            scale={**_SCALE, "steps": 2500, "queries": 100, "text": _DOCSTRINGS},
            core_seconds=2200,
            batch=1,
        ),
        "paper": Profile(
            seeds=2,
            scale={**_SCALE, "data": None, "text": _BART},
            core_seconds=3_000_000,
            arms=tuple(arm.name for arm in TEXT_ARMS),
            batch=1,
        ),
    },
)
