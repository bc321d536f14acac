//! Everything a person types: demo, test, node, kernel, image.

fn main() {}
