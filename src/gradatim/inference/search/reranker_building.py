"""A re-ranker of the folder's own: ConvKNRM, trained on its sentences, easy pairs first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gradatim.inference.search.errors import SearchError
from gradatim.inference.search.own_questions import own_questions
from gradatim.inference.search.passages import StoredPassage
from gradatim.inference.search.postings import build_postings
from gradatim.inference.search.ranking import best_rows
from gradatim.inference.search.reranking import BLEND_FILE
from gradatim.inference.search.settings import Progress
from gradatim.inference.search.words import query_words, words_of

MOST_QUESTIONS = 1500
FEWEST_QUESTIONS = 30
DEPTH = 30
ITERATIONS, STEPS = 10, 16


def build_reranker(
    folder: Path, passages: Sequence[StoredPassage], encoder: str, on_progress: Progress
) -> None:
    """Train on (first sentence, passage) with BM25's other hits as negatives, and save below `folder`.

    A tenth of the questions says when to stop, and how much the re-ranker weighs beside the first stage.
    Raises SearchError where the folder has too few sentences to ask, or the encoder with the word vectors is
    missing.
    """
    from gradatim.curricula import LinearCurriculum
    from gradatim.models import ConvKNRM, EncoderUnavailableError, load_text_encoder
    from gradatim.models.reranker_training import score_run, train_reranker
    from gradatim.models.run_blending import choose_blend

    asked = own_questions(passages, MOST_QUESTIONS)
    if len(asked) < FEWEST_QUESTIONS:
        raise SearchError(
            f"no re-ranker: {len(asked)} passages begin with a sentence to ask, {FEWEST_QUESTIONS} are"
            " needed; index without --reranker"
        )
    on_progress("training re-ranker", 0, ITERATIONS)
    queries = {f"q{row}": question for row, question, _ in asked}
    corpus, run = _first_stage(passages, asked)
    qrels = {f"q{row}": {f"d{row}": 1} for row, _, _ in asked}
    held_out = {q: qrels[q] for q in list(qrels)[: max(3, len(qrels) // 10)]}
    try:
        source = load_text_encoder(encoder)
    except EncoderUnavailableError as error:
        raise SearchError(f"{error}; or index without --reranker") from error
    dim = min(32, source.get_embedding_dimension() or 32)
    model = ConvKNRM.from_sentence_transformer(source, dim, filters=64, max_doc_tokens=200)
    train_reranker(
        model,
        queries,
        corpus,
        run,
        qrels,
        curriculum=LinearCurriculum(ITERATIONS // 3, iteration_size=16 * STEPS),
        iterations=ITERATIONS,
        steps_per_iteration=STEPS,
        patience=4,
        validation_qrels=held_out,
    )
    shown = {query: run[query] for query in held_out}
    blend = choose_blend(shown, score_run(model, queries, corpus, shown, DEPTH), held_out)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / BLEND_FILE).write_text(json.dumps({"reranker": blend}) + "\n", encoding="utf-8")
    on_progress("training re-ranker", ITERATIONS, ITERATIONS)


def _first_stage(
    passages: Sequence[StoredPassage], asked: Sequence[tuple[int, str, str]]
) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Texts by id and BM25's hits of every question, where its own passage lacks the question."""
    texts = [passage.whole for passage in passages]
    for row, _, rest in asked:
        texts[row] = rest
    postings = build_postings(words_of(text) for text in texts)
    corpus: dict[str, str] = {}
    run: dict[str, dict[str, float]] = {}
    for row, question, _ in asked:
        terms = query_words(question)
        scores = postings.scores(terms, postings.statistics(terms))
        found = best_rows(scores, DEPTH, above=0.0).tolist()
        if row not in found:
            found.append(row)
        run[f"q{row}"] = {f"d{r}": float(scores[r]) for r in found}
        corpus |= {f"d{r}": texts[r] for r in found}
    return corpus, run
