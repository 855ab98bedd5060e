"""Gradient norms from TensorBoard event files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gradatim.optim.trace_readers import Record, TraceError, build_trace, norm_type_in_name
from gradatim.optim.traces import GradNormTrace


def read_events(
    path: Path, *, key: str | None = None, norm_type: int | None = None, max_records: int
) -> GradNormTrace:
    """The scalar series `key` of an event file or a folder of them; None looks for a tag with "grad_norm".

    Raises TraceError where `tensorboard` is not installed, no file is there, or no single tag fits.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise TraceError(f'{path}: reading it needs: pip install "gradatim[tensorboard]"') from error
    if path.is_dir() and not any("tfevents" in f.name for f in path.iterdir()):
        raise TraceError(f"{path}: a folder without TensorBoard event files (tfevents in the name)")
    events = EventAccumulator(
        str(path), size_guidance={"scalars": max_records + 1, "tensors": max_records + 1}
    )
    try:
        events.Reload()
    except Exception as error:  # the loader raises types of its several backends
        raise TraceError(f"{path}: not a readable TensorBoard event file ({type(error).__name__})") from error
    scalars, tensors = list(events.Tags()["scalars"]), list(events.Tags()["tensors"])
    tag = _choose_tag(path, scalars + tensors, key)

    def records() -> Iterator[Record]:
        if tag in scalars:
            for i, event in enumerate(events.Scalars(tag), 1):
                yield i, event.step, float(event.value)
        else:
            from tensorboard.util.tensor_util import make_ndarray

            for i, event in enumerate(events.Tensors(tag), 1):
                values = make_ndarray(event.tensor_proto)
                if values.size != 1:
                    raise TraceError(
                        f"{path}: tag {tag!r} holds tensors of {values.size} values, not scalars"
                    )
                yield i, event.step, float(values.item())

    return build_trace(
        str(path),
        records(),
        unit="event",
        description={"norm_type": norm_type or norm_type_in_name(tag)},
        max_records=max_records,
    )


def _choose_tag(path: Path, tags: list[str], key: str | None) -> str:
    shown = ", ".join(tags[:8]) or "none"
    if key is not None:
        if key not in tags:
            raise TraceError(f"{path}: no tag {key!r}; there are: {shown}")
        return key
    found = [t for t in tags if "grad_norm" in t.lower() or "gradient_norm" in t.lower()]
    if len(found) != 1:
        what = "no tag names a gradient norm" if not found else f"{len(found)} tags name a gradient norm"
        raise TraceError(f"{path}: {what} (tags: {shown}); name one with key (--key)")
    return found[0]
