"""A run as pages that people read: one HTML file that needs nothing else, and a Markdown card.

`writing.report` is the way in. `run` reads a run once; each section has a file that works out what it says (`answer`,
`heat`, `curves`, `ranks`, `ends`, `cost`, `limits`, `repeat`); `charts` draws, `page` and `card` put it together.
"""
