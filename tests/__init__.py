"""The tests: `reference` is the oracle, `cases` the table of problems that every algorithm goes through."""
