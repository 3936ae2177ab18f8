//! A machine in the test's own process: the hal over the ConnectX-3 model.
#![forbid(unsafe_code)]
