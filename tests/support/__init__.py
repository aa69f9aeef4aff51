"""What the tests share: the pass under test, captured and hand-built graphs, comparison."""
