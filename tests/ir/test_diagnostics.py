"""What diagnostics say to people: one message of a kind, the worst last."""

from __future__ import annotations

from snncc.ir import Diagnostic, Loc, Severity, Source
from snncc.ir.diagnostics import choices, render_all


def place(line: int, module: str, file: str = "net.py") -> Loc:
    return Loc((Source(module, file, line),))


def needs(name: str, words: int, line: int = 3, hint: str = "use fewer channels", file: str = "net.py") -> Diagnostic:
    text = f"`{name}`: needs {words:,} words of memory, {words // 4} of its {words // 2} channels fit"
    return Diagnostic("SNN056", text, place(line, name, file), hint=hint, limit=64, found=words, quantity="words")


def test_one_is_told_with_its_line(tmp_path: object) -> None:
    (text,) = render_all([needs("conv", 100)])
    assert text == needs("conv", 100).render()
    assert text.splitlines()[1:] == [
        " --> net.py:3, module `conv`", "  = limit: 64 words, found 100 (36 too many)", "  = help: use fewer channels",
    ]  # fmt: skip


def test_many_of_a_kind_are_one_table() -> None:
    (text,) = render_all([needs("conv1", 100), needs("conv2", 2000), needs("fc", 512, line=12)])
    assert text.splitlines() == [
        "error[SNN056]: 3 layers: needs … words of memory, … channels fit",
        " --> net.py",
        "     layer  words         channels",
        "     conv1    100     25 of its 50  line 3",
        "     conv2  2,000  500 of its 1000  line 3",
        "     fc       512   128 of its 256  line 12",
        "  = limit: 64 words, found 100 to 2,000",
        "  = help: use fewer channels",
    ]


def test_a_long_table_shows_the_worst_in_order() -> None:
    found = [needs(f"layer{i}", 100 * i, file=f"{i}.py", hint=f"halve {i}") for i in range(1, 21)]
    (text,) = render_all(found)
    lines = text.splitlines()
    assert lines[0].startswith("error[SNN056]: 20 layers: ") and lines[-3:-2] == ["     and 12 more"]
    assert [line.split()[0] for line in lines[2:10]] == [f"layer{i}" for i in range(13, 21)]
    assert [line.split()[-1] for line in lines[2:10]] == [f"{i}.py:3" for i in range(13, 21)]
    assert lines[-1] == "  = help: of `layer20`: halve 20"


def test_what_stands_beside_something_worse_is_short() -> None:
    note = Diagnostic("SNN033", "`out` has no activation", place(9, "out"), Severity.NOTE, "nothing")
    warnings = [
        Diagnostic(
            "SNN040", f"the weights of `fc{i}` are left with {i} of 8 bits", place(i, f"fc{i}"), Severity.WARNING
        )
        for i in range(1, 6)
    ]
    short = "warning[SNN040]: 5 layers: the weights of … are left with … bits\n --> fc1, fc2, fc3 and 2 more"
    (said, error) = render_all([needs("conv", 100), *warnings, note])
    assert said == short and error.startswith("error")
    (first, last) = render_all([*warnings, note])
    assert first == "note[SNN033]: `out` has no activation"
    assert last.splitlines()[2:4] == ["     layer    bits", "     fc1    1 of 8  line 1"]
    assert render_all([note]) == [first]


def test_the_same_words_of_several_places() -> None:
    found = [Diagnostic("SNN001", "gelu is unknown", place(1, f"mlp.{i}")) for i in range(2)]
    assert render_all(found)[0].splitlines() == [
        "error[SNN001]: 2 layers: gelu is unknown", " --> net.py:1", "     layer", "     mlp.0", "     mlp.1",
    ]  # fmt: skip
    nowhere = Diagnostic("SNN072", "weights are missing")
    assert render_all([nowhere, nowhere]) == ["error[SNN072]: 2 times: weights are missing"]


def test_what_differs_is_a_kind_of_its_own() -> None:
    other = Diagnostic("SNN054", "`fc`: 1,280 features, a core takes 1,024")
    assert len(render_all([needs("a", 100), other, Diagnostic("SNN056", "no core is free")])) == 3
    assert render_all([]) == []


def test_names_of_users_move_no_cursor() -> None:
    found = [Diagnostic("SNN001", f"`{name}` is unknown", place(1, name)) for name in ("a\x1b[2J", "b")]
    assert "\x1b" not in "".join(render_all(found))


def test_hints_of_many_names_are_short() -> None:
    hint = choices("layer7x", [f"layer{i}" for i in range(100)])
    assert hint.startswith("did you mean 'layer7'? choose one of layer0, ") and hint.endswith("... (100 in all)")
    assert len(hint) < 300
    assert choices("x", ["only"]) == "choose only" and choices("x", []) == ""
