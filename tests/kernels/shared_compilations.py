"""The attention cases as a GPU runs them: dressed, so that many share one compilation.

Triton compiles a kernel anew for every set of arguments that are there or not. A part that hides
nothing (padding of no key, ranks that let all see all, bits without a one), a dropout that keeps
everything, and segments, take part in any case and change nothing of what it is about. So each
case gets those that its profile has beyond its own, and a table of profiles says which
compilations there are. What changes the case itself (the flags, positions, a memory apart, the head
dim) is never added.

bfloat16 runs every case. float32 and float16 run those for which their tables have a profile: their
code differs in types and tiles, not in branches. The interpreter and the emulation run all cases
undressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from attention_cases import CASES, Case
from two_stream_cases import CASES as STREAM_CASES
from two_stream_cases import Streams

ADDED = ("segments", "padding", "ranks", "bits", "dropout")
"""Features that a case may be dressed with."""
_NEUTRAL = {"padding": "padding_none", "ranks": "ranks_open", "bits": "bits_none"}
_KEEPS_ALL = 1e-12  # as a threshold on 32 random bits: 0
FULL = " ".join(ADDED)

# Of these the size is the point, not the head dim; and a stride of bits that happens to be a
# multiple of 16 is one more compilation.
_RESIZED = {name: replace(CASES[name], head_dim=32) for name in ("shapes-one", "shapes-chunks")}
_ABSENT = STREAM_CASES["streams-absent"]
_RESIZED_STREAMS = {"streams-absent": replace(_ABSENT, content=replace(_ABSENT.content, rows=41))}


@dataclass(frozen=True)
class Profile:
    """Features by which Triton tells compilations apart, and the head dim in whole 16."""

    features: frozenset[str]
    head_dim: int = 32

    @property
    def label(self) -> str:
        """A name for messages."""
        return f"{' '.join(sorted(self.features)) or 'plain'}, D = {self.head_dim}"


def profile(features: str, head_dim: int = 32) -> Profile:
    """A profile by its features' names."""
    return Profile(frozenset(features.split()), head_dim)


# Every feature somewhere without and somewhere with each other one, the flags with few and with
# all, the widest tiles in the dtype that has the narrowest.
PROFILES: dict[str, list[Profile]] = {
    "bfloat16": [
        profile(""),
        profile(FULL),
        profile("segments padding see_self"),  # Hugging Face's content stream
        profile(f"{FULL} see_self"),
        profile("bits shared"),
        profile(f"{FULL} apart"),
        profile("apart segments padding see_self"),
        profile(f"{FULL} causal"),
        profile(f"{FULL} causal same_length"),
        profile("segments apart causal same_length"),
        profile(f"{FULL} causal see_self"),
        profile(f"{FULL} causal same_length see_self"),
        profile(f"{FULL} positions"),
        profile("ranks apart positions"),
        profile("padding causal positions"),
        profile("padding causal see_self positions"),
        profile("segments", 64),
        profile("segments padding see_self", 80),
        profile("segments padding", 128),
        profile(f"{FULL} window"),
        profile(f"{FULL} window chunks start apart"),
        profile("padding window start causal see_self"),
        profile("segments ranks window chunks start positions"),
        profile("segments start"),
    ],
    "float32": [
        profile(FULL),
        profile("segments padding see_self"),
        profile("segments apart"),
        profile("segments causal"),
        profile("segments positions"),
        profile("segments padding", 64),
        profile("segments padding", 128),
    ],
    "float16": [
        profile("dropout"),
        profile("ranks"),
        profile(FULL),
    ],
}
STREAM_PROFILES: dict[str, list[Profile]] = {
    "bfloat16": [
        profile(f"{FULL} positions"),
        profile("segments ranks dropout apart positions"),  # a pretraining step
        profile("segments bits"),
        profile("causal positions"),
        profile("ranks window chunks start positions"),
    ],
    "float32": [profile("positions")],
    "float16": [profile(f"{FULL} positions")],
}


class Run(NamedTuple):
    """One case as it runs on a GPU."""

    name: str
    dtype: str
    case: Case
    ordered: bool  # whether dr is summed in order
    profile: Profile


class StreamRun(NamedTuple):
    """One case with both streams as it runs on a GPU."""

    name: str
    dtype: str
    case: Streams
    ordered: bool
    profile: Profile


def profile_of(case: Case, positions: str | None = None) -> Profile:
    """The profile of a case as it stands; positions: those of its query stream."""
    flags = ("causal", "same_length", "see_self")
    features = {part if part in flags else part.partition("_")[0] for part in case.mask}
    if "bits" in features and case.bits_batch == 1:
        features.add("shared")
    present = {
        "segments": case.segments,
        "dropout": case.dropout_p > 0.0,
        "positions": (case.positions or positions) is not None,
        "apart": case.apart and case.memory > 0,
        "window": case.window not in (None, (None, None)),
        "chunks": case.chunk > 1,
        "start": case.r_start > 0,
    }
    features |= {name for name, is_there in present.items() if is_there}
    return Profile(frozenset(features), -(-case.head_dim // 16) * 16)


def dressed(case: Case, wanted: Profile) -> Case:
    """A case with the features that it lacks, none of which changes what it is about."""
    missing = wanted.features - profile_of(case).features
    # Bits of one batch element count as shared, which is another compilation.
    pairs = "bits" in missing and case.batch == 1
    return replace(
        case,
        batch=2 if pairs else case.batch,
        segments=case.segments or "segments" in missing,
        dropout_p=_KEEPS_ALL if "dropout" in missing else case.dropout_p,
        mask=case.mask + tuple(part for name, part in _NEUTRAL.items() if name in missing),
    )


def fitting(own: Profile, profiles: Sequence[Profile]) -> Profile | None:
    """The profile that adds least to that of a case, None where none fits."""
    fits = [
        other
        for other in profiles
        if other.head_dim == own.head_dim
        and own.features <= other.features
        and other.features - own.features <= set(ADDED)
    ]
    return min(fits, key=lambda other: len(other.features), default=None)


def _runs() -> list[Run]:
    found = []
    for dtype, profiles in PROFILES.items():
        for name, case in (CASES | _RESIZED).items():
            if name == "shapes-one" and profile("", case.head_dim) not in profiles:
                continue  # its stride of bits would be 1, one more compilation
            if (chosen := fitting(profile_of(case), profiles)) is not None:
                ordered = profiles.index(chosen) % 2 == 0
                found.append(Run(name, dtype, dressed(case, chosen), ordered, chosen))
    return found


def _stream_runs() -> list[StreamRun]:
    found = []
    for dtype, profiles in STREAM_PROFILES.items():
        for name, case in (STREAM_CASES | _RESIZED_STREAMS).items():
            own = profile_of(case.content, case.positions)
            if (chosen := fitting(own, profiles)) is not None:
                content = dressed(case.content, chosen)
                ordered = profiles.index(chosen) % 2 == 1
                run = StreamRun(name, dtype, replace(case, content=content), ordered, chosen)
                found.append(run)
    return found


def _one_of_each(runs: Sequence[Run]) -> list[Run]:
    found: dict[tuple[str, Profile], Run] = {}
    for run in sorted(runs, key=lambda run: run.case.rows + run.case.length + run.case.memory):
        if not run.case.nan_in_padding:  # there backends differ in gradients that nobody may use
            found.setdefault((run.dtype, run.profile), run)
    return list(found.values())


RUNS = _runs()
STREAM_RUNS = _stream_runs()
ONE_OF_EACH = _one_of_each(RUNS)
"""The smallest run of each profile."""
TILE_RUNS = {
    heavy: next(run for run in RUNS if (run.name, run.dtype) == (name, "bfloat16"))
    for heavy, name in ((False, "masks-padding-self"), (True, "dropout-masked"))
}
"""On what every tile that may be chosen is tried, by load."""
TILE_STRETCH = 64  # keys of a stretch in these: many stretches of few keys
