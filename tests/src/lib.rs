//! Test bed: the nested node, suites and benchmarks.
