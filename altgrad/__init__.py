"""Which 8-bit number format trains a GPT best, and where and why do the others fail?"""

__version__ = "0.1.0"
