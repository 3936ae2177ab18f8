//! build-image, run, test, doctor.

fn main() {}
