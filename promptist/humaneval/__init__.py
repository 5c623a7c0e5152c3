"""Human evaluation as in the paper (section 3.4): blinded pairs of pictures, rated A, B or equally good.

`study` draws the pairs and every rater's order, `rate` writes the page that raters get, `ratings` reads and unblinds
what they saved, `scores` aggregates it, `bars` and `words` show it.
"""
