"""Renderings of reports: JSON, Markdown, JUnit, HTML."""
