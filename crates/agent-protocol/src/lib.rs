//! The Kata agent protocol over ttrpc, and the conventions around it.
