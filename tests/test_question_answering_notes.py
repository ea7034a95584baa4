"""Notes with lists, tables, identifiers and other scripts: answered, or declined, beside others."""

import pytest

from llmnb import handbook
from llmnb.applications.question_answering import QuestionAnswerer
from llmnb.applications.retrieval import Index

NOTES = {
    "lease.txt": "The tenant pays the deposit. The lease ends on 31 August 2027.",
    "menu.md": "# Menu\n\n- lentil soup: 7.50 euros\n- apple cake: 4 euros\n- green tea: 2 euros",
    "prices.md": "| Item | Price |\n|---|---|\n| desk lamp | 30 |\n| oak shelf | 85 |",
    "orders.txt": "Order 7731904 is Petra Lang's.\nOrder 7731914 was placed by Omar Haddad.",
    "devices.txt": "The projector is model A-17.\n\nThe router runs v2.1.3.",
    "cafe.txt": "The Cafe\u0301 Ba\u0301ra\u0301ny closes at 22:00.\n\nThe bakery closes at 18:00.",
    "club.md": "# Club\n\n## Boathouse\n\nIt opens at 6:30.\n\n## Office\n\nIt opens at 9:15.",
    "people.md": "Deliveries go to St. Anna Square. The head is Dr. Maria Voss.",
    "vega.txt": "Invoice 202400017. The customer of this invoice is Vega. The amount is 410.",
    "lindt.txt": "Invoice 202400037. The customer of this invoice is Lindt. The amount is 95.",
    "hindi.txt": "दिल्ली में कार्यालय का किराया 500 है।",
}
ANSWERS = {
    "Who pays the deposit?": "tenant",
    "When does the lease end?": "31 August",
    "How much is the lentil soup?": "7.50",
    "What is the price of the oak shelf?": "85",
    "Who placed order 7731914?": "Omar Haddad",
    "Which model is the projector?": "A-17",
    "Which version does the router run, v2.1.3?": "router",
    "When does the Café Bárány close?": "22:00",
    "When does the office of the club open?": "9:15",
    "Who is the customer of invoice 202400037?": "Lindt",
    "What is the amount of invoice 202400017?": "410",
    "What is the amount of invoice 202400037?": "95",
    "Where do deliveries go?": "Anna Square",
    "दिल्ली में कार्यालय का किराया कितना है?": "500",
}
UNANSWERABLE = (
    "Who painted the Sistine Chapel?",
    "What is the capital of France?",
    "How do I bake bread?",
    "Who placed order 7731999?",
    "Which model is the A-18?",
    "Who is the customer of invoice 202400999?",
    "How much is the tomato soup?",
    "When does the swimming pool open?",
    "What is the phone number of the plumber?",
)


@pytest.mark.parametrize("n_files", [0, 14, 100])
def test_notes_are_answered_and_the_rest_declined_in_folders_of_any_size(cache, tmp_path, n_files):
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, contents in NOTES.items():
        (folder / name).write_text(contents, encoding="utf-8")
    others = handbook.passages()
    for n in range(n_files):
        (folder / f"other{n}.txt").write_text(others[n % len(others)].text[:200], encoding="utf-8")
    app = QuestionAnswerer(Index.build(folder, say=lambda line: None), None)
    questions = [*ANSWERS, *UNANSWERABLE]
    results = app._best_sentences(questions, app.index.search_all(questions, 5))
    for question, result in zip(questions, results, strict=True):
        is_answered = result.score >= app.threshold
        assert is_answered == (question in ANSWERS), (question, result.score, result.sentence)
        assert ANSWERS.get(question, "") in result.sentence, question
