"""The HTML report of runs and evaluations, with its pictures and tables as files beside it."""
