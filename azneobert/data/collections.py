"""The eleven collections that the corpus is made of."""

# In the order of their precedence: a text that stands in two collections is kept in the first.
COLLECTIONS = {
    "wikipedia": "encyclopaedia articles",
    "e_qanun": "legislation",
    "court_cases": "court rulings",
    "news": "news items",
    "pdfs": "text extracted from PDF files: books, theses, reports",
    "folklor": "folk tales, verse and sayings",
    "nllb": "the Azerbaijani side of sentence pairs",
    "fineweb2": "filtered web pages",
    "hplt3": "web pages of the HPLT crawl",
    "culturax": "web pages of CulturaX",
    "cc100": "raw paragraphs of Common Crawl",
}
