"""BPMN models: decoded as they claim, well-formed to their end, and of BPMN 2.0."""

import codecs
import xml.etree.ElementTree as ET
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmwatch.formats import Broken, decode_model, read_model

NAMESPACE = "http://www.omg.org/spec/BPMN/20100524/MODEL"
BODY = f'<bpmn:definitions xmlns:bpmn="{NAMESPACE}"><bpmn:process id="p" name="Größe €"/></bpmn:definitions>'


def declared(encoding: str) -> str:
    return f"<?xml version='1.0' encoding='{encoding}'?>\n{BODY}"


@pytest.mark.parametrize(
    "data",
    [
        BODY.encode(),
        codecs.BOM_UTF8 + BODY.encode(),
        declared("utf-8").encode(),
        codecs.BOM_UTF8 + declared("UTF-8").encode(),
        declared("windows-1252").encode("cp1252"),
        declared("ISO-8859-15").encode("iso-8859-15"),
        declared("UTF-16").encode("utf-16"),
        declared("UTF-16").encode("utf-16-be"),
        declared("UTF-16LE").encode("utf-16-le"),
        BODY.encode("utf-16"),
    ],
)
def test_every_character_survives_whatever_the_encoding(data: bytes) -> None:
    text = read_model(data)
    assert text.endswith(BODY)
    assert "\ufeff" not in text
    assert not text.startswith("<?xml") or "'UTF-8'" in text, "the string travels as UTF-8, and must say so"
    [process] = ET.fromstring(text.encode())
    assert process.get("name") == "Größe €"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty"),
        (b"not XML", "line 1: it is not well-formed"),
        (BODY.encode()[:-5], "line 1: it is torn: it ends inside"),
        (BODY.encode() + b"<more/>", "line 1: something follows its end"),
        (BODY.encode("cp1252", "replace"), "it is not in the encoding that it claims, utf-8"),
        (declared("klingon").encode(), 'its encoding "klingon" is not known here'),
        (declared("idna").encode(), 'its encoding "idna" is not known here'),
        (codecs.BOM_UTF16_LE + b"<\0d", "it is not in the encoding that it claims, utf-16"),
        (b"<definitions/>", 'it is no BPMN 2.0 model: its outermost element is "definitions"'),
        (f'<process xmlns="{NAMESPACE}"/>'.encode(), 'it is no BPMN 2.0 model: its outermost element is "process"'),
        (b'<!DOCTYPE a [<!ENTITY b "c">]>' + BODY.encode(), "line 1: it declares a document type"),
        (b"<a>" * 2000, "line 1: its elements lie more than 1000 deep"),
    ],
)
def test_what_is_no_model_is_told_apart(data: bytes, sentence: str) -> None:
    with pytest.raises(Broken) as caught:
        read_model(data)
    assert caught.value.sentence.startswith(sentence)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_text_or_broken(data: bytes) -> None:
    with suppress(Broken):
        decode_model(data).encode()
