"""What is in some shards: a survey of samples spread evenly over them, and the ways to tell what was found."""

from m3ae_scale.data.inspect.look import Lengths, Look
from m3ae_scale.data.inspect.page import write_page
from m3ae_scale.data.inspect.report import as_json, as_section, as_text
from m3ae_scale.data.inspect.survey import LIMIT, Inspection, SourceReport, inspect, spread

__all__ = [
    "LIMIT",
    "Inspection",
    "Lengths",
    "Look",
    "SourceReport",
    "as_json",
    "as_section",
    "as_text",
    "inspect",
    "spread",
    "write_page",
]
