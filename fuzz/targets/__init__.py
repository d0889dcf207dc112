"""One module a parser: `seeds()`, valid inputs; `parse(data)`, which may raise what `REFUSALS` holds, no more."""
