"""One module for each output format, imported when it is needed."""

from mpsdiag.errors import BadInput
from mpsdiag.reporting.layout.blocks import Document


def shown(made: Document, form: str, *, width: int = 100, color: bool = False) -> str:
    """Write a document as `terminal`, `markdown` (the block for an issue), `html` or a `fragment` of a page.

    `width` in columns and `color` are for the terminal. Raises BadInput for another format.
    """
    if form == "terminal":
        from mpsdiag.reporting.formats import terminal

        return terminal.write(made, width=width, color=color)
    if form == "markdown":
        from mpsdiag.reporting.formats.markdown import issue_block

        return issue_block(made)
    if form not in {"html", "fragment"}:
        command = made.title.removeprefix("mpsdiag ")
        raise BadInput(f"A {command} has no format '{form}'. Choose from: terminal, markdown, html, json.")
    from mpsdiag.reporting.formats import html

    return html.page(made) if form == "html" else html.fragment(made)
