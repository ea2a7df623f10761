"""What a person and a program see of a run: lines on the terminal, and the metrics file."""

from gguflora.report.console import ConsoleReport
from gguflora.report.metrics import append_metrics, keep_metrics_until

__all__ = ["ConsoleReport", "append_metrics", "keep_metrics_until"]
