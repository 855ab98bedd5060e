"""What is there to learn? Datasets, generators and their metrics."""

from typing import TYPE_CHECKING, Any

from gradatim.tasks.annotations import Row, draw_rows, heterogeneous, homogeneous, to_multi_positive
from gradatim.tasks.attention_tokens import (
    AttentionInstance,
    orthonormal_instance,
    planar_instance,
    random_instance,
    random_instances,
    relu_instance,
)
from gradatim.tasks.beir import write_beir
from gradatim.tasks.boolean import BOOLEAN_TASKS, BooleanTask, Prompt
from gradatim.tasks.concept_grammar import ConceptGrammar
from gradatim.tasks.concept_parser import parse_concept
from gradatim.tasks.concept_tasks import ConceptTasks
from gradatim.tasks.concepts import Concept
from gradatim.tasks.contexts import ContextStream, ContextTask, ICLBatch, context_generator
from gradatim.tasks.docstrings import (
    LabelledDocuments,
    TextCorpus,
    docstring_retrieval,
    docstring_texts,
    docstring_topics,
    linked_split,
)
from gradatim.tasks.embedding_tasks import classification_rows, clustering_rows, similarity_rows
from gradatim.tasks.few_shot import Tasks, tasks_of_contexts
from gradatim.tasks.formal_languages import FORMAL_LANGUAGES, FormalLanguage, LabelledStrings
from gradatim.tasks.formal_text import FORMAL_TEXTS, arithmetic_text, dyck_text, python_source_text
from gradatim.tasks.ginc import GINC, GINCPrompts
from gradatim.tasks.image_denoising import DigitImages, NoiseSchedule, digit_images, psnr
from gradatim.tasks.in_context_prompt import InContextPrompt
from gradatim.tasks.intents import Intents, hashed_ngrams, read_intents
from gradatim.tasks.linear_regression import LinearRegressionTask
from gradatim.tasks.nonlinear_regression import ContextPool, NetworkTask, SineTask
from gradatim.tasks.pseudo_words import PseudoWords, pseudo_words
from gradatim.tasks.retrieval import (
    RetrievalScores,
    RetrievalTask,
    bm25_run,
    dense_run,
    evaluate_run,
    pooled_negatives,
)
from gradatim.tasks.span_pairs import Pair, PairCollator, SpanPairs, span_pairs, unsupervised_pairs
from gradatim.tasks.tabular import TABULAR_TASKS, TabularTask
from gradatim.tasks.text_classification import (
    PromptTemplate,
    Shots,
    TextTask,
    read_text_classification,
    statements,
)
from gradatim.tasks.text_stream import TextStream, text_stream
from gradatim.tasks.tied_retrieval import retrieval_scores, shared_labels
from gradatim.tasks.trec_run import read_trec_run, write_trec_run

if TYPE_CHECKING:
    from gradatim.tasks.graded_evaluator import GradedRetrievalEvaluator
    from gradatim.tasks.in_context_collator import InContextCollator
    from gradatim.tasks.resampling import ResampleCallback

__all__ = [
    "BOOLEAN_TASKS",
    "FORMAL_LANGUAGES",
    "FORMAL_TEXTS",
    "GINC",
    "TABULAR_TASKS",
    "AttentionInstance",
    "BooleanTask",
    "Concept",
    "ConceptGrammar",
    "ConceptTasks",
    "ContextPool",
    "ContextStream",
    "ContextTask",
    "DigitImages",
    "FormalLanguage",
    "GINCPrompts",
    "GradedRetrievalEvaluator",
    "ICLBatch",
    "InContextCollator",
    "InContextPrompt",
    "Intents",
    "LabelledDocuments",
    "LabelledStrings",
    "LinearRegressionTask",
    "NetworkTask",
    "NoiseSchedule",
    "Pair",
    "PairCollator",
    "Prompt",
    "PromptTemplate",
    "PseudoWords",
    "ResampleCallback",
    "RetrievalScores",
    "RetrievalTask",
    "Row",
    "Shots",
    "SineTask",
    "SpanPairs",
    "TabularTask",
    "Tasks",
    "TextCorpus",
    "TextStream",
    "TextTask",
    "arithmetic_text",
    "bm25_run",
    "classification_rows",
    "clustering_rows",
    "context_generator",
    "dense_run",
    "digit_images",
    "docstring_retrieval",
    "docstring_texts",
    "docstring_topics",
    "draw_rows",
    "dyck_text",
    "evaluate_run",
    "hashed_ngrams",
    "heterogeneous",
    "homogeneous",
    "linked_split",
    "orthonormal_instance",
    "parse_concept",
    "planar_instance",
    "pooled_negatives",
    "pseudo_words",
    "psnr",
    "python_source_text",
    "random_instance",
    "random_instances",
    "read_intents",
    "read_text_classification",
    "read_trec_run",
    "relu_instance",
    "retrieval_scores",
    "shared_labels",
    "similarity_rows",
    "span_pairs",
    "statements",
    "tasks_of_contexts",
    "text_stream",
    "to_multi_positive",
    "unsupervised_pairs",
    "write_beir",
    "write_trec_run",
]


def __getattr__(name: str) -> Any:
    # transformers and sentence-transformers take seconds to import; whoever needs no trainer should not wait.
    if name == "ResampleCallback":
        from gradatim.tasks.resampling import ResampleCallback

        return ResampleCallback
    if name == "InContextCollator":
        from gradatim.tasks.in_context_collator import InContextCollator

        return InContextCollator
    if name == "GradedRetrievalEvaluator":
        from gradatim.tasks.graded_evaluator import GradedRetrievalEvaluator

        return GradedRetrievalEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
