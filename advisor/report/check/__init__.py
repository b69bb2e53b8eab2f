"""What came of a check, in the form that each reader takes. Pure functions of its records."""

from advisor.report.check.formats import dumps
from advisor.report.check.github import to_github
from advisor.report.check.junit import to_junit
from advisor.report.check.markdown import to_markdown
from advisor.report.check.sarif import to_sarif
from advisor.report.check.table import to_csv
from advisor.report.check.terminal import print_text

__all__ = ["dumps", "print_text", "to_csv", "to_github", "to_junit", "to_markdown", "to_sarif"]
