"""What became of runs: scores, votes, verdicts, comparisons, reports and exports."""
