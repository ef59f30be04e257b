"""The README's figures are those of the committed results."""

from benchmarks.readme import README, filled


def test_the_readme_holds_the_figures_of_the_results():
    text = README.read_text()
    assert "<!-- figures: check_cpu -->" in text
    assert filled(text) == text, "run `python -m benchmarks.readme`"
