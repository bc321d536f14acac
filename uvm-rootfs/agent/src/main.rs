//! PID 1 of the utility VM: runs the containers its owner allows.

fn main() {}
