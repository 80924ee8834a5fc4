"""Pages of HTML, read."""

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "img"}


class Page(HTMLParser):
    """The tags of a page, checked to close in order, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data.split()

    @property
    def text(self):
        return " ".join(self.words).replace("\N{EN DASH}", "-").replace("\N{MULTIPLICATION SIGN}", "x")

    def all(self, tag, **wanted):
        """The attributes of all such tags that have these; None is an attribute without a value."""
        return [attributes for name, attributes in self.tags if name == tag and wanted.items() <= attributes.items()]
