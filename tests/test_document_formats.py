"""Mails, as programs save them, are read as they are shown."""

from email.message import EmailMessage

import pytest

from llmnb.applications import documents

MAIL = b"""Subject: =?utf-8?q?M=C3=BCll?=
Content-Type: text/%b
Content-Transfer-Encoding: quoted-printable

%b"""


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"plain; charset=latin1", b"Die B=E4ume sind=\r\n alt.\r\n> Wer?"),
        (b"plain", b"Die B=C3=A4ume sind alt.\n> Wer?"),
        (b"html; charset=utf-8", b"<p>Die B=C3=A4ume <b>sind</b> alt.<p>&gt; Wer?"),
    ],
)
def test_a_mail_is_read_as_it_is_shown(kind, body):
    (passage,), note = documents.read("a.eml", MAIL % (kind, body))
    assert passage.title == "Müll" and note == ""
    assert passage.text == "Subject: Müll\nDie Bäume sind alt.\n> Wer?"


def test_the_attachments_of_a_mail_are_counted():
    mail = EmailMessage()
    mail.set_content("The rent is 500 euros.")
    mail.add_attachment(b"pixels", maintype="image", subtype="png")
    (passage,), note = documents.read("a.eml", mail.as_bytes())
    assert passage.text == "The rent is 500 euros."
    assert note == "its attachments are left out: 1"
