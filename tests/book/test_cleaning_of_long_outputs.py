"""A long output is cleaned letter by letter: a pattern that takes back what it has read would not come to its end.

No time is measured. What was quadratic took minutes for a third of this length, and what was cubic would take years.
"""

from typing import Any

import pytest

from descent_book.run.notebook import cleaned

LENGTH = 1_000_000
HIDDEN = {"/home/someone": "~", "/srv/book project": ".", "/tmp/descent-x1": "<scratch>"}
WARNING = "UserWarning: A worker stopped while some jobs "
LONG = {  # what each is made of
    "digits": "1",
    "digits and per cents": "1%",
    "the start of a bar": "1%|",
    "bars that do not end": "1%|x| ",
    "bars with a bracket": "1%|x| [",
    "whole bars": "\r 12%|█▏  | 3/25 [00:01<00:10, 2.1it/s]",
    "one word": "a",
    "spaces": " ",
    "line breaks": "\n",
    "carriage returns": "\r",
    "cells of a kernel, cut off": "ipykernel_1/",
    "names of kernels": "ipykernel_",
    "a warning over and over": WARNING,
    "warnings, a line each": f"{WARNING}were given.\n",
    "slashes": "/",
    "a folder of this machine": "/home/someone",
    "a folder of this machine, by its address": "file:///home/someone",
    "addresses": "file://",
    "quotes": "'",
    "base64": "A+/=",
    "the word base64": ";base64,",
    "letters of several bytes": "σ",
}


def neutral(output: dict[str, Any]) -> list[dict[str, Any]]:
    cell = {"cell_type": "code", "metadata": {}, "source": "", "outputs": [output]}
    return cleaned({"metadata": {}, "cells": [cell]}, HIDDEN)["cells"][0]["outputs"]


@pytest.mark.parametrize("made_of", LONG)
def test_a_million_letters_are_read_once(made_of: str) -> None:
    text = LONG[made_of] * (LENGTH // len(LONG[made_of]))
    for output in ({"name": "stderr", "text": text}, {"name": "stdout", "text": text}, {"data": {"text/html": text}}):
        neutral(output)
    neutral({"traceback": [text], "evalue": text, "ename": "Error"})


def test_a_long_picture_within_html_stays_as_it_is_and_the_folder_beside_it_goes() -> None:
    picture = "data:image/png;base64," + "AA+/home/someone+/tmp/descent-x1+ipykernel_1/2.py"[:38] * 10_000
    html = f'<p title="/home/someone/x">/srv/book project/y</p><img src="{picture}"/><p>/tmp/descent-x1</p>'
    (output,) = neutral({"data": {"text/html": html, "image/png": "/home/someone"}})
    assert output["data"]["text/html"] == f'<p title="~/x">./y</p><img src="{picture}"/><p><scratch></p>'
    assert output["data"]["image/png"] == "/home/someone"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/tmp/ipykernel_12/3456.py:3: UserWarning: mind\n", "<cell>:3: UserWarning: mind\n"),
        ("see '/tmp/ipykernel_1/2.py' and </tmp/ipykernel_1/3.py>\n", "see '<cell>' and <<cell>>\n"),
        ("\r 12%|█▏  | 3/25 [00:01<00:10]\r100%|██| 25/25 [00:09<00:00]\nkept\n", "kept\n"),
        ("a|b:  12%|█▏  | 3/25 [00:01<00:10]\nkept\n", "kept\n"),
        ("5%| of nothing\n", "5%| of nothing\n"),
        ("100%|██| 2/2 [00:01<00:00]said beside it\n", "said beside it\n"),
        (f"x.py:7: {WARNING}were given.\n  warnings.warn(\nkept\n", "kept\n"),
        (f"x.py:7: {WARNING}were given.\nkept\n", f"x.py:7: {WARNING}were given.\nkept\n"),
        ("/home/someone/x and /home/someone2 and a/home/someone\n", "~/x and /home/someone2 and a/home/someone\n"),
    ],
)
def test_what_goes_and_what_stays(text: str, left: str) -> None:
    for given in (text, text.splitlines(keepends=True)):
        (output,) = neutral({"name": "stderr", "output_type": "stream", "text": given})
        assert "".join(output["text"]) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("file:///home/someone/x", "file://~/x"),
        ('<a href="file:///tmp/descent-x1/x.html">', '<a href="file://<scratch>/x.html">'),
        ("file:///srv/book%20project/a", "file://./a"),
        ("/srv/book%20project/a /srv/book project/b", "./a ./b"),
        ("/home//someone/x //home/someone", "~/x //home/someone"),
        ("http://home/someone file:///home/someone-else", "http://home/someone file:///home/someone-else"),
        ("x/home/someone, (/home/someone)", "x/home/someone, (~)"),
    ],
)
def test_a_folder_goes_however_it_is_written(text: str, left: str) -> None:
    assert neutral({"name": "stdout", "text": text}) == [{"name": "stdout", "text": left}]
