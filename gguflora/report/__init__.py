"""What a person and a program see of a run: lines on the terminal, and the metrics file."""

from gguflora.report.console import ConsoleReport
from gguflora.report.metrics import append_metrics, keep_metrics_until
from gguflora.report.progress import EncodingProgress

__all__ = ["ConsoleReport", "EncodingProgress", "append_metrics", "keep_metrics_until"]
