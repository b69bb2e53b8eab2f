"""What came of a check, in the form that each reader takes. Pure functions of its records."""

from advisor.report.check.formats import dumps
from advisor.report.check.github import github
from advisor.report.check.junit import junit
from advisor.report.check.markdown import markdown
from advisor.report.check.sarif import sarif
from advisor.report.check.terminal import print_text

__all__ = ["dumps", "github", "junit", "markdown", "print_text", "sarif"]
