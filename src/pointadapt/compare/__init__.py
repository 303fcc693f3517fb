"""One fair comparison of methods: the grid of runs, what they cost, how sure the differences are, and the page."""
