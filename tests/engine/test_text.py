"""Text as it comes: against decoding everything at once, and against reading it by character."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from foreword.engine._text import TextStream

SPECIAL = 10_000
MERGES = [
    *(bytes([byte]) for byte in range(256)),
    b" the",
    "é".encode(),
    "€"[:1].encode()[:2],
    "€".encode()[2:] + b"x",
    b"a" + "🙂".encode()[:1],
    "🙂".encode()[1:],
    "\ufffd".encode(),
    b"\n\n",
    b"END",
    b"E",
    b"\xff\xfe",
    *(CROSSING := (b"\xac\xe2", b"\x82\xac\xe2", b"\x99\x82\xf0", b"\x82\xf0\x9f", b"\xac\xff")),
]


def decode_bytes(ids: list[int]) -> str:
    """A byte-level BPE: ids are byte strings, special tokens say nothing."""
    return b"".join(MERGES[i] for i in ids if i != SPECIAL).decode("utf-8", "replace")


WORDS = ["▁the", "▁a", "▁", "b", "c", "▁▁", ",", "é", "▁END", "."]


def decode_words(ids: list[int]) -> str:
    """SentencePiece: a bar is a space, and the text's first space is not written."""
    text = "".join(WORDS[i] for i in ids if i != SPECIAL).replace("▁", " ")
    return text.removeprefix(" ")


def decode_fallback(ids: list[int]) -> str:
    """SentencePiece with bytes below 256, where every byte that is no text is one U+FFFD."""
    pieces = [bytes([i]) if i < 256 else WORDS[i - 256].encode() for i in ids if i != SPECIAL]
    text = b"".join(pieces).decode("utf-8", "surrogateescape").replace("▁", " ")
    return re.sub("[\udc80-\udcff]", "\ufffd", text).removeprefix(" ")


Decode = Callable[[list[int]], str]


def run(decode: Decode, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[str, str | None]:
    stream = TextStream(decode, tuple(stop))
    text = "".join(stream.push(i) for i in ids)
    return text + stream.finish(), stream.stopped


def by_character(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """The rule, word by word: the stop text complete first; of several at once the longest."""
    for end in range(1, len(text) + 1):
        for each in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(each):
                return text[: end - len(each)], each
    return text, None


def spell(text: str) -> list[int]:
    return list(text.encode())


any_ids = st.lists(st.integers(0, len(MERGES) - 1) | st.just(SPECIAL), max_size=120)
odd_bytes = st.lists(
    st.sampled_from([0x80, 0xBF, 0xE2, 0x82, 0xAC, 0xF0, 0xFF, 0xC3, 260, 0x9F]), max_size=150
)
real_text = st.text(st.sampled_from("ab é€🙂\ufffdEND\n")).map(spell)
# Tokens that end one character and begin the next: text without a single clean place.
crossing = st.lists(
    st.sampled_from(
        [*range(len(MERGES) - len(CROSSING), len(MERGES)), 0xE2, 0x82, 0xF0, 0x9F, 0x80]
    ),
    min_size=40,
    max_size=150,
)
stops = st.lists(st.text(st.sampled_from("abEND é€🙂\ufffd\n"), min_size=1, max_size=4), max_size=4)
overlapping = st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=9), min_size=1)


@settings(deadline=None, max_examples=300)
@given(any_ids | odd_bytes | real_text | crossing)
@example([0xE2, *[0x82, MERGES.index(b"\xac\xe2")] * 60, 0x82])
@example([0xF0, *[0x9F, MERGES.index(b"\x99\x82\xf0")] * 60, 0x9F, 0x99])
@example([0xE2, *[MERGES.index(b"\x82\xac\xe2")] * 60, *spell("a")])
@example([0xE2, 0x82, 0xAC, *[0xE2, 0x82] * 40, 0xAC])
@example([0xFF] * 100 + spell("€"))
@example([*spell("a"), 0xE2, SPECIAL, 0x82, SPECIAL, 0xAC])
@example([SPECIAL, *spell(" a"), SPECIAL, *spell("€")])
@example([0xE2] * 40 + [0x82, 0xAC] + [0x80] * 40)
def test_pieces_of_byte_level_text_make_the_whole(ids: list[int]) -> None:
    assert run(decode_bytes, ids) == (decode_bytes(ids), None)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, len(WORDS) - 1) | st.just(SPECIAL), max_size=60))
@example([2, 2, 2, SPECIAL, 0])
@example([SPECIAL, 0, SPECIAL, 0])
@example([2, SPECIAL, 3, 0])
def test_pieces_of_spaced_words_make_the_whole(ids: list[int]) -> None:
    assert run(decode_words, ids) == (decode_words(ids), None)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.lists(st.sampled_from([0xFF, 0xE2, 0x82, 0xAC, 0xC3]), min_size=20, max_size=45)
        | st.lists(st.integers(256, 255 + len(WORDS)) | st.just(SPECIAL), max_size=3),
        max_size=5,
    ).map(lambda parts: [*chain.from_iterable(parts)])
)
@example([*[0xFF] * 30, 259, *[0xFF] * 5, 259, 256])
@example([*[0xFF] * 30, 0xE2, 0x82, 0xAC])
@example([*[0xFF] * 29, 0xE2, 0x82, 0xAC, 0xAC])
@example([*[0xFF] * 28, 0xE2, 0x82, 0xAC, 0xAC])
def test_pieces_of_words_and_bytes_make_the_whole(ids: list[int]) -> None:
    assert run(decode_fallback, ids) == (decode_fallback(ids), None)


@settings(deadline=None, max_examples=400)
@given(any_ids | odd_bytes | real_text, stops)
@example(spell("abcabd"), ["abd"])
@example(spell("aab"), ["ab"])
@example(spell("abcd"), ["bcd", "c"])
@example(spell("abc"), ["c", "bc"])
@example(spell("xEN"), ["END"])
@example([0xE2], ["\ufffd"])
@example(spell("D\ufffd"), ["D\ufffd"])
def test_stop_texts_are_found_as_if_read_by_character(ids: list[int], stop: list[str]) -> None:
    assert run(decode_bytes, ids, stop) == by_character(decode_bytes(ids), stop)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=40), st.sampled_from([" a", "bc", " END"]))
def test_stop_texts_among_spaced_words(ids: list[int], stop: str) -> None:
    assert run(decode_words, ids, [stop]) == by_character(decode_words(ids), [stop])


@settings(deadline=None, max_examples=100)
@given(st.text(st.sampled_from("ab"), max_size=60), overlapping)
def test_stop_texts_that_overlap_themselves(text: str, stop: list[str]) -> None:
    assert run(decode_bytes, spell(text), stop) == by_character(text, stop)


@settings(deadline=None, max_examples=100)
@given(any_ids, stops)
def test_nothing_given_out_is_ever_taken_back(ids: list[int], stop: list[str]) -> None:
    """What came so far begins the final text at any time, so no stop text is ever shown in part."""
    final, _ = by_character(decode_bytes(ids), stop)
    stream, shown = TextStream(decode_bytes, tuple(stop)), ""
    for token in ids:
        shown += stream.push(token)
        assert final.startswith(shown)


TEXT = "Once  upon a time \u2014 the END, naïve €5 🙂🙂!\n\n the theme.  "


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the theme of the end, 🙂 €"] * 3, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Oncemupathd", "th", "▁th"]
    vocab = {piece: place for place, piece in enumerate(pieces)}
    merges = [("t", "h"), ("▁", "th")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<s>"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@pytest.mark.parametrize("build", [byte_level, sentencepiece])
def test_tokenizers_own_decoders(build: Callable[[], Tokenizer]) -> None:
    tokenizer = build()
    ids = tokenizer.encode(TEXT).ids
    assert tokenizer.decode(ids) == TEXT
    assert len(ids) > 40
    for start in range(len(ids)):
        part = [0, *ids[start:], 0, *ids[:start]]
        whole = tokenizer.decode(part)
        if build is sentencepiece and "\ufffd" in whole:
            continue  # its runs of bytes are right or wrong as a whole, in hindsight
        assert run(tokenizer.decode, part) == (whole, None)
        assert run(tokenizer.decode, part, ["me", "END"]) == by_character(whole, ["me", "END"])


def test_text_comes_as_soon_as_it_is_certain() -> None:
    stream = TextStream(decode_bytes, ("END",))
    pieces = [stream.push(i) for i in spell("hi €EEN!")]
    assert pieces == ["h", "i", " ", "", "", "€", "", "E", "", "EN!"]


def test_text_before_half_a_character_is_not_held() -> None:
    stream = TextStream(decode_bytes)
    assert [stream.push(260), stream.push(261), stream.finish()] == ["a", "🙂", ""]


def test_the_end_gives_what_was_held() -> None:
    stream = TextStream(decode_bytes, ("END",))
    assert "".join(stream.push(i) for i in [*spell("aEN"), 0xE2, 0x82]) == "a"
    assert stream.finish() == "EN\ufffd"
    assert stream.stopped is None


def test_after_a_stop_there_is_nothing() -> None:
    stream = TextStream(decode_bytes, ("\n",))
    assert [stream.push(i) for i in spell("a\nb")] == ["a", "", ""]
    assert stream.stopped == "\n"
    assert stream.finish() == ""


def test_a_stop_inside_a_token_cuts_the_token() -> None:
    stream = TextStream(decode_bytes, ("t",))
    assert stream.push(256) == " "
    assert stream.stopped == "t"


def test_a_finished_stream_takes_no_more() -> None:
    stream = TextStream(decode_bytes)
    assert stream.finish() == ""
    with pytest.raises(ValueError, match="finished"):
        stream.push(65)
    with pytest.raises(ValueError, match="finished"):
        stream.finish()


@pytest.mark.parametrize(
    ("ids", "decode"),
    [
        (spell("Once upon a time, " * 200), decode_bytes),
        (spell("€🙂é" * 400), decode_bytes),
        ([0xFF] * 4000, decode_bytes),
        ([0x82] * 4000, decode_bytes),
        ([0xF0, 0x9F, 0x99] * 1300, decode_bytes),
        ([0xFF] + [0xF0, 0x9F, 0x99] * 1300, decode_bytes),
        ([65] + [SPECIAL] * 4000, decode_bytes),
        ([SPECIAL] * 4000, decode_bytes),
        ([0, 1, 3, 2] * 1000, decode_words),
        ([SPECIAL] * 2000 + [0, SPECIAL] * 1000, decode_words),
    ],
)
def test_the_work_does_not_grow_with_the_answer(ids: list[int], decode: Decode) -> None:
    work = 0

    def counted(tokens: list[int]) -> str:
        nonlocal work
        work += len(tokens)
        return decode(tokens)

    assert run(counted, ids)[0] == decode(ids)
    assert work < 24 * len(ids)


def test_text_without_a_clean_place_is_not_searched_for_one_each_time() -> None:
    """Tokens that straddle characters all along, the one case with a window that grows."""
    ids = [0xE2, *[0x82, MERGES.index(b"\xac\xe2")] * 200]
    work = 0

    def counted(tokens: list[int]) -> str:
        nonlocal work
        work += len(tokens)
        return decode_bytes(tokens)

    assert run(counted, ids)[0] == decode_bytes(ids)
    assert work < 0.7 * len(ids) ** 2


def test_a_long_stop_text_costs_no_more_than_its_length() -> None:
    """A text that keeps nearly matching: quadratic work would take minutes."""
    stop = "a" * 50_000 + "b"
    stream = TextStream(lambda ids: "a" * 10 * len(ids), (stop,))
    text = "".join(stream.push(0) for _ in range(8000))
    assert len(text) == 80_000 - 50_000
    assert len(stream.finish()) == 50_000
