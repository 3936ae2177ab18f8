//! Wires the role to libos and the driver. On the host this is an empty program, so that the workspace builds and is
//! linted as a whole.

fn main() {}
