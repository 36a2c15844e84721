"""Tests mirror src; tiny models come from tests.tiny."""
